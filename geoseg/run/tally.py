"""How much of each class there is."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from geoseg.io.grid import Grid, pieces
from geoseg.io.labels import LabelRaster
from geoseg.types import Window, label_nodata

_EQUAL_AREAS = 1e-4
"""Share by which areas of pixels may differ and still be taken for one."""
_PIXELS_AT_A_TIME, _COUNTED_AT_A_TIME = 2**24, 2**18
_SAMPLE_SIDE = 64
"""Pixels a side whose area is looked at here and there."""


class Tally:
    """Pixels and area of every class, added up window by window."""

    def __init__(self, grid: Grid, classes: int) -> None:
        self._grid = grid
        # Some hundred strips a scene: over each a pixel's area hardly changes.
        self._strip = max(1, grid.height // 512)
        self.counts = np.zeros(classes, dtype=np.int64)
        self.areas_m2: npt.NDArray[np.float64] | None = np.zeros(classes)

    @classmethod
    def of_raster(cls, path: Path, classes: int) -> Tally:
        """Count the labels in a file, from its pixels."""
        labels = LabelRaster.open(path)
        tally = cls(labels.grid, classes)
        width = labels.labelled.width
        for window in pieces(labels.labelled, max(1, _PIXELS_AT_A_TIME // width), width):
            if not labels.known_empty(window):
                tally.add_labels(window, labels.read(window))
        return tally

    @cached_property
    def even(self) -> bool:
        """Whether pixels have the same area all over the grid, or none is known."""
        height, width = self._grid.shape
        rows, cols = (max(1, min(side // 8, _SAMPLE_SIDE)) for side in (height, width))
        areas = [
            self._grid.pixel_area_m2(Window(row, col, rows, cols))
            for row in (0, (height - rows) // 2, height - rows)
            for col in (0, (width - cols) // 2, width - cols)
        ]
        known = [area for area in areas if area is not None]
        return len(known) < len(areas) or max(known) <= min(known) * (1 + _EQUAL_AREAS)

    def add_labels(self, window: Window, labels: npt.NDArray[Any]) -> None:
        """Count the labels of one window of the grid."""
        step = len(labels) if self.even else self._strip
        for first in range(0, len(labels), step):
            part = labels[first : first + step]
            where = Window(window.row + first, window.col, len(part), window.width)
            self.add(where, class_counts(part, len(self.counts)))

    def add(self, window: Window, counts: Sequence[int]) -> None:
        """Add the class counts of one window of the grid; its pixels have one area."""
        found = np.array(counts, dtype=np.int64)
        self.counts += found
        if self.areas_m2 is None or not found.any():
            return
        pixel = self._grid.pixel_area_m2(window)
        self.areas_m2 = None if pixel is None else self.areas_m2 + found * pixel


def class_counts(labels: npt.NDArray[Any], classes: int) -> tuple[int, ...]:
    """Pixels of each class in a block of labels."""
    nodata = label_nodata(labels.dtype)
    flat, counts = labels.ravel(), np.zeros(nodata + 1, np.int64)
    for first in range(0, flat.size, _COUNTED_AT_A_TIME):  # each as large integers meanwhile
        counts += np.bincount(flat[first : first + _COUNTED_AT_A_TIME], minlength=nodata + 1)
    return tuple(int(n) for n in counts[:classes])
