"""Pixels of an area that come and go row by row."""

from __future__ import annotations

from collections import deque

import numpy as np

from geoseg.types import PixelBlock


class PixelRows:
    """Rows of an area, from those that were added last up to those that were forgotten.

    Parameters
    ----------
    height
        Rows of the whole area.
    """

    def __init__(self, height: int) -> None:
        self.height = height
        self._stop = 0
        self._blocks: deque[tuple[int, PixelBlock]] = deque()

    def add(self, first: int, block: PixelBlock) -> None:
        """Add the rows of a block that are not there yet; it begins at row ``first``."""
        new = slice(self._stop - first, None)
        rows = PixelBlock(block.rgb[:, new], block.valid[new])
        if len(rows.valid):
            self._blocks.append((self._stop, rows))
            self._stop += len(rows.valid)

    def crop(self, first: int, stop: int) -> PixelBlock:
        """Rows from ``first`` to before ``stop``, as new arrays."""
        rgb, valid = [], []
        for start, block in self._blocks:
            rows = slice(max(first - start, 0), max(stop - start, 0))
            rgb.append(block.rgb[:, rows])
            valid.append(block.valid[rows])
        return PixelBlock(np.concatenate(rgb, axis=1), np.concatenate(valid))

    def forget_above(self, row: int) -> None:
        """Let go of blocks that lie above a row."""
        while self._blocks and self._blocks[0][0] + len(self._blocks[0][1].valid) <= row:
            self._blocks.popleft()
