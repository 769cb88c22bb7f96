"""Which blocks of a TIFF are stored: what was never written costs neither time nor room."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from geoseg.types import BoolArray, Window


@dataclass(frozen=True, eq=False)
class StoredBlocks:
    """Where a TIFF holds anything; elsewhere it reads as nodata."""

    stored: BoolArray
    """``(rows, cols)`` of blocks."""
    side: tuple[int, int]
    """Height and width of a block in pixels."""
    shape: tuple[int, int]
    """Of the raster in pixels."""

    @classmethod
    def of(cls, dataset: Any) -> StoredBlocks:
        """Ask an open dataset; where it is no TIFF all of its blocks are stored."""
        height, width = dataset.block_shapes[0]
        stored = np.ones((-(-dataset.height // height), -(-dataset.width // width)), np.bool_)
        if dataset.driver == "GTiff":
            for row, col in np.ndindex(stored.shape):
                name = f"BLOCK_OFFSET_{col}_{row}"
                stored[row, col] = any(
                    dataset.get_tag_item(name, "TIFF", bidx=band) for band in dataset.indexes
                )
        return cls(stored, (height, width), dataset.shape)

    def any_in(self, window: Window) -> bool:
        """Whether any block of a window is stored."""
        (height, width), last = self.side, (-window.row_stop, -window.col_stop)
        rows = slice(window.row // height, -(last[0] // height))
        cols = slice(window.col // width, -(last[1] // width))
        return bool(self.stored[rows, cols].any())

    @property
    def window(self) -> Window:
        """The smallest window that holds all stored blocks; the first block if there are none."""
        stored = self.stored if self.stored.any() else np.ones((1, 1), np.bool_)
        (first, last), (left, right) = (
            (int(hit[0]), int(hit[-1]) + 1)
            for hit in (np.flatnonzero(stored.any(1)), np.flatnonzero(stored.any(0)))
        )
        height, width = self.side
        found = Window(
            first * height, left * width, (last - first) * height, (right - left) * width
        ).intersection(Window(0, 0, *self.shape))
        assert found is not None
        return found
