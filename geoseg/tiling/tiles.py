"""How a scene is cut into work.

::

    |-- halo --|-margin-|-------- core --------|-margin-|-- halo --|

    core + margin = grown;  read = union of the windows that touch what is grown

Cores partition the region to be mapped. A tile reads every encoder window that touches its grown
core and keeps only the core's pixels, so any cut gives the same map. The margin is what the steps
after the windows reach: nothing where pixels are decided one by one.

Tiles below one another make a lane, which goes from top to bottom and runs each of its windows
once: a tile leaves what its windows see of the next one open, and that goes on with it::

    | tile 0 | tile 3 | tile 6 |
    |   |    |   |    |   |    |      the windows at the sides of a lane run in both lanes, so
    | tile 1 | tile 4 | tile 7 |      lanes are as wide as memory allows
    |   v    |   v    |   v    |
    | tile 2 | tile 5 | tile 8 |
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from geoseg.errors import TilingError
from geoseg.tiling.lattice import IntArray, Lattice
from geoseg.types import Window


@dataclass(frozen=True, slots=True)
class Tile:
    """One unit of work."""

    index: int
    """Position in the plan, row by row from 0."""
    core: Window
    """Pixels this tile owns."""
    grown: Window
    """The core and its margin, as far as the scene goes: where logits are needed."""
    read: Window
    """Pixels to have at hand: what its windows see, and what is grown."""
    windows: tuple[Window, ...]
    """Encoder windows to run, in scene pixels, row by row: in a lane those that no tile above has
    run, alone all that touch what is grown."""


@dataclass(frozen=True, slots=True)
class Lane:
    """Tiles below one another, from top to bottom."""

    tiles: tuple[Tile, ...]
    core: Window
    """Pixels of all of them."""
    grown: Window
    """Where logits are needed."""


_OPEN_BYTES = 2**28
"""Of logits that a lane holds open: of one window's height, float32."""
_WIDE_PIXELS = 10_240
"""Of a lane that is wide enough: few windows run twice, also where workers share its length."""


def wide_tile(
    lattice: Lattice,
    queries: int,
    region: Window | None = None,
    *,
    margin: int = 0,
    pixels: int = 2**21,
) -> tuple[int, int]:
    """Height and width of tiles for wide lanes, which run few windows twice.

    Parameters
    ----------
    lattice
        Encoder windows of the scene.
    queries
        Logits of a pixel.
    region, margin
        As for `TilePlan`.
    pixels
        Of a tile, about.
    """
    open_rows = lattice.window_shape[0] + 2 * margin
    most = max(min(_OPEN_BYTES // (4 * queries * open_rows), _WIDE_PIXELS), lattice.stride)
    whole = lattice.width if region is None else region.width
    strides = -(-whole // lattice.stride) if lattice.window else 1
    lanes = -(-whole // most)
    width = -(-strides // lanes) * lattice.stride if lattice.window else whole
    return max(pixels // width, 2 * margin, 1), width


class TilePlan(Sequence[Tile]):
    """The tiles of one run, computed one at a time when asked for.

    Parameters
    ----------
    lattice
        Encoder windows of the scene.
    tile
        Wanted side of a core in pixels, or its height and width; rounded down to a multiple of
        the stride (at least one stride), because a core that ends on the lattice shares fewest
        windows with its neighbour.
    region
        Pixels to map; the whole scene by default. It does not move the lattice.
    margin
        Pixels around a core whose logits its own pixels depend on.
    alone
        Every tile is a lane of its own.

    Raises
    ------
    TilingError
        If the tile is smaller than one pixel or the region misses the scene.
    """

    def __init__(
        self,
        lattice: Lattice,
        tile: int | tuple[int, int],
        region: Window | None = None,
        *,
        margin: int = 0,
        alone: bool = False,
    ) -> None:
        height, width = (tile, tile) if isinstance(tile, int) else tile
        if min(height, width) < 1:
            raise TilingError(f"tile is {tile}; give its side in pixels, for example 2048")
        scene = Window(0, 0, lattice.height, lattice.width)
        wanted = scene if region is None else region.intersection(scene)
        if wanted is None:
            raise TilingError(f"the region {region} lies outside the scene of {scene.shape} pixels")
        self.lattice = lattice
        self.region = wanted
        self.margin = margin
        self.alone = alone
        self._scene = scene
        step = lattice.stride if lattice.window else max(lattice.height, lattice.width)
        self.tile = max(height // step, 1) * step, max(width // step, 1) * step
        """Height and width of a whole core in pixels."""
        self.rows = -(-wanted.height // self.tile[0])
        self.cols = -(-wanted.width // self.tile[1])

    def __len__(self) -> int:
        return self.rows * self.cols

    def __getitem__(self, index: int) -> Tile:  # type: ignore[override]
        self._check(index)
        return self.lane([index % len(self)]).tiles[0]

    def __iter__(self) -> Iterator[Tile]:
        return (self[i] for i in range(len(self)))

    def core(self, index: int) -> Window:
        """Pixels that a tile owns, without the windows it would run."""
        self._check(index)
        row, col = divmod(index % len(self), self.cols)
        (height, width), region = self.tile, self.region
        top, left = region.row + row * height, region.col + col * width
        return Window(
            top, left, min(height, region.row_stop - top), min(width, region.col_stop - left)
        )

    def _check(self, index: int) -> None:
        if not -len(self) <= index < len(self):
            raise IndexError(index)

    def lanes(self, indices: Iterable[int]) -> list[list[int]]:
        """Put tiles together that lie directly below one another: the tiles of some lanes."""
        found: list[list[int]] = []
        for index in sorted(indices, key=lambda index: (index % self.cols, index)):
            if found and index == found[-1][-1] + self.cols and not self.alone:
                found[-1].append(index)
            else:
                found.append([index])
        return found

    def lane(self, indices: Sequence[int]) -> Lane:
        """Make the lane of some tiles, of which each lies directly below the one before."""
        cores = [self.core(index) for index in indices]
        first, last = cores[0], cores[-1]
        core = Window(first.row, first.col, last.row_stop - first.row, first.width)
        grown = self._grown(core)
        windows = self.lattice.touching(grown)
        left, width = windows[0].col, windows[-1].col_stop - windows[0].col
        rows = np.array([window.row for window in windows])
        stops = np.searchsorted(rows, [c.row_stop for c in cores[:-1]] + [grown.row_stop])
        tiles, start, bottom = [], 0, 0
        for index, own, stop in zip(indices, cores, stops.tolist(), strict=True):
            run, here = windows[start:stop], self._grown(own)
            top = min([here.row, *(window.row for window in run[:1])])
            bottom = max([bottom, here.row_stop, *(window.row_stop for window in run[-1:])])
            seen = min(bottom + self.margin, self.lattice.height) if run else bottom
            read = Window(top, left, seen - top, width)
            tiles.append(Tile(index, own, here, read, run))
            start = stop
        return Lane(tuple(tiles), core, grown)

    def windows_of(self, indices: Sequence[int]) -> list[int]:
        """How many windows each tile of a lane runs, see `lane`."""
        cores = [self.core(index) for index in indices]
        first, last = cores[0], cores[-1]
        core = Window(first.row, first.col, last.row_stop - first.row, first.width)
        rows, cols = self.lattice.starts_touching(self._grown(core))
        stops = [*np.searchsorted(rows, [one.row_stop for one in cores[:-1]]), len(rows)]
        return [int(count) * len(cols) for count in np.diff(stops, prepend=0)]

    def _grown(self, core: Window) -> Window:
        grown = core.grown(self.margin).intersection(self._scene)
        assert grown is not None
        return grown

    @property
    def window_runs(self) -> int:
        """How many windows the lanes of the whole plan run; those at their sides run twice."""
        height, width = self.lattice.window_shape
        (high, wide), region = self.tile, self.region
        long = high if self.alone else region.height
        return self._runs(
            self.lattice.row_starts, height, region.row, region.row_stop, long
        ) * self._runs(self.lattice.col_starts, width, region.col, region.col_stop, wide)

    @property
    def windows(self) -> int:
        """How many windows of the lattice touch what is needed of the region."""
        height, width = self.lattice.window_shape
        region = self.region
        return self._runs(
            self.lattice.row_starts, height, region.row, region.row_stop, region.height
        ) * self._runs(self.lattice.col_starts, width, region.col, region.col_stop, region.width)

    def _runs(self, starts: IntArray, size: int, first: int, stop: int, step: int) -> int:
        """Windows along one axis, counted once for each lane that they touch."""
        lows = np.arange(first, stop, step)
        highs = np.minimum(lows + step, stop) + self.margin
        counts = np.searchsorted(starts, highs, side="left") - np.searchsorted(
            starts, lows - self.margin - size, side="right"
        )
        return int(counts.sum())
