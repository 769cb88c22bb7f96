"""A label raster from top to bottom, without what is known to be empty."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from geoseg.io.grid import pieces
from geoseg.io.labels import LabelRaster
from geoseg.types import Window
from geoseg.vector.corners import Values

FloatArray = npt.NDArray[np.float64]


class Strips:
    """Strips of the part that can hold labels; empty ones in a row are drawn together to one row.

    Polygons have the same shapes and come in the same order without the rows and columns that are
    left out, and :meth:`to_raster` brings them to their place.

    Parameters
    ----------
    raster
        Labels.
    pixels
        How many a strip has at most, unless one row has more.
    """

    def __init__(self, raster: LabelRaster, pixels: int) -> None:
        self._raster = raster
        window = raster.labelled
        self.windows: list[Window] = []
        """Of each strip, in the raster."""
        emptied = False
        for strip in pieces(window, max(1, pixels // window.width), window.width):
            empty = raster.known_empty(strip)
            if not empty:
                self.windows.append(strip)
            elif not emptied:
                self.windows.append(Window(strip.row, strip.col, 1, strip.width))
            emptied = empty
        self._rows = np.cumsum([0, *(strip.height for strip in self.windows)])
        self._shift = np.array([strip.row for strip in self.windows]) - self._rows[:-1]
        self._left = window.col
        self.shape = int(self._rows[-1]), window.width
        """Rows and columns of all strips."""

    def __iter__(self) -> Iterator[tuple[Window, Values]]:
        for window in self.windows:
            values = self._raster.read(window)
            # Without nodata every value is a label: make room for one more.
            yield window, values if self._raster.nodata is not None else values.astype(np.int32)

    def with_rows_done(self) -> Iterator[tuple[int, tuple[Window, Values]]]:
        """Strips, each after how many rows will have been seen with it."""
        return zip(self._rows[1:].tolist(), self, strict=True)

    def to_raster(self, points: FloatArray) -> FloatArray:
        """Pixel coordinates ``(n, 2)``, columns first, of the raster from those of the strips."""
        strip = np.searchsorted(self._rows[1:-1], points[:, 1], side="right")
        placed: FloatArray = points + np.column_stack(
            [np.full(len(points), self._left), self._shift[strip]]
        )
        return placed
