"""Where the encoder windows lie: one lattice over the whole scene.

Starts are multiples of the stride and the last window is shifted inwards to the edge, as in the
original method. The lattice knows nothing of tiles, so a pixel is covered by the same windows
however the scene is cut into work.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from geoseg.errors import TilingError
from geoseg.options.segmentation import refuse_gaps
from geoseg.types import Window

IntArray = npt.NDArray[np.int64]


def axis_starts(length: int, window: int, stride: int) -> IntArray:
    """Start of every window along one axis.

    Parameters
    ----------
    length, window, stride
        Pixels; all at least 1.

    Returns
    -------
    numpy.ndarray
        Increasing int64 starts. Windows are ``min(window, length)`` long; together they cover
        every pixel, and the last one ends at ``length``.
    """
    count = max(length - window + stride - 1, 0) // stride + 1
    starts = np.arange(count, dtype=np.int64) * stride
    return np.minimum(starts, max(length - window, 0))


@dataclass(frozen=True)
class Lattice:
    """All encoder windows of a scene.

    Parameters
    ----------
    height, width
        Size of the scene in pixels.
    window
        Side of the square encoder window in pixels; where the scene is smaller, windows are as
        long as the scene. 0 takes the whole scene as one window.
    stride
        Step between window starts in pixels.

    Raises
    ------
    TilingError
        If the scene is empty, or the stride is not between 1 and the window's side.
    """

    height: int
    width: int
    window: int
    stride: int

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise TilingError(f"a scene of {self.height} x {self.width} pixels has no windows")
        refuse_gaps(self.window, self.stride)

    @cached_property
    def row_starts(self) -> IntArray:
        """First row of each row of windows, increasing."""
        return self._starts(self.height)

    @cached_property
    def col_starts(self) -> IntArray:
        """First column of each column of windows, increasing."""
        return self._starts(self.width)

    def _starts(self, length: int) -> IntArray:
        if self.window == 0:
            return np.zeros(1, dtype=np.int64)
        return axis_starts(length, self.window, self.stride)

    @property
    def window_shape(self) -> tuple[int, int]:
        """``(height, width)`` of every window; smaller than ``window`` where the scene is."""
        if self.window == 0:
            return self.height, self.width
        return min(self.window, self.height), min(self.window, self.width)

    @property
    def count(self) -> int:
        """Number of windows on the whole lattice."""
        return len(self.row_starts) * len(self.col_starts)

    def touching(self, core: Window) -> tuple[Window, ...]:
        """Every window that shares a pixel with ``core``, row by row."""
        height, width = self.window_shape
        rows, cols = self.starts_touching(core)
        return tuple(Window(int(r), int(c), height, width) for r in rows for c in cols)

    def starts_touching(self, core: Window) -> tuple[IntArray, IntArray]:
        """First rows and first columns of the windows that share a pixel with ``core``."""
        height, width = self.window_shape
        return (
            _overlapping(self.row_starts, height, core.row, core.row_stop),
            _overlapping(self.col_starts, width, core.col, core.col_stop),
        )


def _overlapping(starts: IntArray, size: int, low: int, high: int) -> IntArray:
    """Starts of the windows ``[start, start + size)`` that meet ``[low, high)``."""
    first = int(np.searchsorted(starts, low - size, side="right"))
    last = int(np.searchsorted(starts, high, side="left"))
    return starts[first:last]
