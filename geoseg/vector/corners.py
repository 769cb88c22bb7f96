"""Where do regions of equal value meet inside a few rows of a raster?

Everything happens on the grid of pixel corners: corner ``(y, x)`` is the upper left corner of
pixel ``(y, x)``. Between two pixels of different value runs an edge. A corner is a *vertex* if the
edges there do anything but go straight on, and a *junction* if three or four edges meet.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
ByteArray = npt.NDArray[np.uint8]
Values = npt.NDArray[np.integer]

NORTH, EAST, SOUTH, WEST = 0, 1, 2, 3
"""Directions on that grid; a corner's mask has bit ``1 << direction`` for each edge there."""

_BITS = np.arange(16)[:, None] >> np.arange(4) & 1
DEGREE = _BITS.sum(axis=1).astype(np.int64)
"""``(16,)`` number of edges at a corner with this mask."""
RANK = np.concatenate([np.zeros((16, 1), np.int64), np.cumsum(_BITS, axis=1)[:, :3]], axis=1)
"""``(16, 4)`` number of edges before this direction."""


def _turns() -> IntArray:
    """Table of ``[mask, arriving direction]``: how a face kept on the left continues."""
    table = np.full((16, 4), -1, np.int64)
    for mask in range(16):
        for arriving in range(4):
            for turn in (-1, 0, 1):
                leaving = (arriving + turn) % 4
                if mask >> leaving & 1:
                    table[mask, arriving] = leaving
                    break
    return table


TURN = _turns()
"""``(16, 4)`` direction in which a boundary goes on: left, else straight, else right."""

# Pixel to the left of someone who leaves a corner northwards, eastwards, southwards, westwards,
# as (row, column) offsets from the corner; the pixel to the right is the next one.
_LEFT_ROW = np.array([-1, -1, 0, 0])
_LEFT_COL = np.array([-1, 0, 0, -1])


@dataclass(frozen=True, slots=True)
class Strip:
    """Pixel rows with the row above them, cut into runs, and the lattice rows above each.

    A strip of ``h`` pixel rows covers the ``h`` lattice rows on their upper sides; the lattice row
    below belongs to the next strip.
    """

    padded: Values
    """``(h + 1, W + 2)``: the row above, the rows; a void column on either side."""
    run_start: IntArray
    """Flat positions ``row * (W + 1) + col`` of the runs' first pixels, ascending; row 0 is the
    row above. Every vertical edge starts a run, also one of void."""
    vertical: npt.NDArray[np.bool_]
    """``(h + 1, W + 1)``: an edge on the left side of this pixel."""
    void: int
    """Value of pixels that belong to no face."""

    @classmethod
    def from_rows(cls, above: Values, rows: Values, void: int) -> Strip:
        """Find the runs of ``rows``, ``(h, W)``, below the pixel row ``above``, ``(W,)``."""
        height, width = rows.shape
        padded = np.full((height + 1, width + 2), void, rows.dtype)
        padded[0, 1:-1] = above
        padded[1:, 1:-1] = rows
        vertical = padded[:, :-1] != padded[:, 1:]
        return cls(padded, np.flatnonzero(vertical), vertical, void)

    @property
    def height(self) -> int:
        """Number of pixel rows, without the one above."""
        return int(self.padded.shape[0]) - 1

    @property
    def stride(self) -> int:
        """Corners in one lattice row: width + 1."""
        return int(self.padded.shape[1]) - 1

    def run_position(self) -> IntArray:
        """Flat index into ``padded`` of each run's first pixel."""
        # One column more a row than corners, and the void column on the left.
        return self.run_start + self.run_start // self.stride + 1

    def run_places(self) -> tuple[IntArray, IntArray, IntArray]:
        """Line of each run, 0 being the row above, its first column and the one after its last."""
        line, col = np.divmod(self.run_start, self.stride)
        stop = np.append(col[1:], self.stride - 1)[: len(col)]
        stop[np.append(line[1:] != line[:-1], True)[: len(line)]] = self.stride - 1
        return line, col, stop

    def painted(self, value: npt.NDArray[Any], void: Any) -> npt.NDArray[Any]:
        """``(h, W)`` rows in which each run has its value, and void has another."""
        width = self.stride - 1
        below = self.run_start >= self.stride
        line, col = np.divmod(self.run_start[below] - self.stride, self.stride)
        # A run reaches to the next one; before the first one lies void.
        lengths = np.diff(np.concatenate([[0], line * width + col, [self.height * width]]))
        values = np.concatenate([np.full(1, void, value.dtype), value[below]])
        return np.repeat(values, lengths).reshape(self.height, width)

    def run_at(self, row: IntArray, col: IntArray) -> IntArray:
        """Run that pixel ``(row, col)`` of ``padded``'s rows belongs to; -1 if it is void."""
        found = np.searchsorted(self.run_start, row * self.stride + col, side="right") - 1
        return np.where(self.padded[row, col + 1] == self.void, -1, found)

    def sides(self, row: IntArray, col: IntArray, leaving: IntArray) -> tuple[IntArray, IntArray]:
        """Runs to the left and to the right of the edge that leaves a corner; -1 for void."""
        right = (leaving + 1) % 4
        return (
            self.run_at(row + 1 + _LEFT_ROW[leaving], col + _LEFT_COL[leaving]),
            self.run_at(row + 1 + _LEFT_ROW[right], col + _LEFT_COL[right]),
        )

    def touching_runs(self) -> tuple[IntArray, IntArray]:
        """Pairs of runs of one value that share a pixel side, upper and lower."""
        line = self.stride + 1
        flat = self.padded.ravel()
        at = self.run_position()
        solid = flat[at] != self.void
        lower = np.flatnonzero(solid & (self.run_start >= self.stride))
        lower = lower[flat[at[lower]] == flat[at[lower] - line]]
        upper = np.flatnonzero(solid & (self.run_start < self.stride * self.height))
        below = self.run_start[upper] + self.stride
        # Where both runs start in one column, the pair is already among those of `lower`.
        upper = upper[(flat[at[upper]] == flat[at[upper] + line]) & ~self.vertical.ravel()[below]]
        starts = self.run_start
        above_lower = np.searchsorted(starts, starts[lower] - self.stride, side="right") - 1
        below_upper = np.searchsorted(starts, starts[upper] + self.stride, side="right") - 1
        return np.concatenate([above_lower, upper]), np.concatenate([lower, below_upper])


@dataclass(frozen=True, slots=True)
class Vertices:
    """Vertices on the lattice rows of one strip, row by row."""

    row: IntArray
    """Lattice row, 0 at the upper side of the strip's first pixel row."""
    col: IntArray
    mask: ByteArray
    """Which edges meet here, as bits."""

    @classmethod
    def of(cls, strip: Strip) -> Vertices:
        """Find them by comparing every pixel with its neighbours."""
        padded, north, south = strip.padded, strip.vertical[:-1], strip.vertical[1:]
        level = np.zeros((strip.height, strip.stride + 1), np.bool_)
        np.not_equal(padded[:-1, 1:-1], padded[1:, 1:-1], out=level[:, 1:-1])
        west, east = level[:, :-1], level[:, 1:]
        found = np.flatnonzero((north ^ south) | (west ^ east) | (north & east))
        row, col = np.divmod(found, strip.stride)
        mask = north[row, col].astype(np.uint8)
        for direction, edge in ((EAST, east), (SOUTH, south), (WEST, west)):
            mask |= edge[row, col].astype(np.uint8) << direction
        return cls(row, col, mask)

    def with_edge(self, direction: int) -> IntArray:
        """Numbers of the vertices that an edge leaves in this direction."""
        return np.flatnonzero(self.mask >> direction & 1)

    def diagonal_runs(self, strip: Strip) -> tuple[IntArray, IntArray]:
        """Pairs of runs of one value that share a pixel corner but no side there."""
        crossing = np.flatnonzero(self.mask == 15)
        row, col = self.row[crossing], self.col[crossing]
        north = np.full(len(crossing), NORTH)
        northwest, northeast = strip.sides(row, col, north)
        southeast, southwest = strip.sides(row, col, north + SOUTH)
        pad, values = col + 1, strip.padded
        falling = (values[row, pad - 1] == values[row + 1, pad]) & (northwest >= 0)
        rising = (values[row, pad] == values[row + 1, pad - 1]) & (northeast >= 0)
        return (
            np.concatenate([northwest[falling], northeast[rising]]),
            np.concatenate([southeast[falling], southwest[rising]]),
        )
