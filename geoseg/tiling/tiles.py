"""How a scene is cut into work.

::

    |-- halo --|-margin-|-------- core --------|-margin-|-- halo --|

    core + margin = grown;  read = union of the windows that touch what is grown

Cores partition the region to be mapped. A tile reads every encoder window that touches its grown
core and keeps only the core's pixels, so any cut gives the same map. The margin is what the steps
after the windows reach: nothing where pixels are decided one by one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
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
    """Pixels its windows see; contains what is grown."""
    windows: tuple[Window, ...]
    """Encoder windows that touch what is grown, in scene pixels, row by row."""


class TilePlan(Sequence[Tile]):
    """The tiles of one run, computed one at a time when asked for.

    Parameters
    ----------
    lattice
        Encoder windows of the scene.
    tile
        Wanted side of a core in pixels; rounded down to a multiple of the stride (at least one
        stride), because a core that ends on the lattice shares fewest windows with its neighbour.
    region
        Pixels to map; the whole scene by default. It does not move the lattice.
    margin
        Pixels around a core whose logits its own pixels depend on.

    Raises
    ------
    TilingError
        If the tile is smaller than one pixel or the region misses the scene.
    """

    def __init__(
        self, lattice: Lattice, tile: int, region: Window | None = None, *, margin: int = 0
    ) -> None:
        if tile < 1:
            raise TilingError(f"tile is {tile}; give its side in pixels, for example 2048")
        scene = Window(0, 0, lattice.height, lattice.width)
        wanted = scene if region is None else region.intersection(scene)
        if wanted is None:
            raise TilingError(f"the region {region} lies outside the scene of {scene.shape} pixels")
        self.lattice = lattice
        self.region = wanted
        self.margin = margin
        self._scene = scene
        step = lattice.stride if lattice.window else max(lattice.height, lattice.width)
        self.tile = max(tile // step, 1) * step
        self.rows = -(-wanted.height // self.tile)
        self.cols = -(-wanted.width // self.tile)

    def __len__(self) -> int:
        return self.rows * self.cols

    def __getitem__(self, index: int) -> Tile:  # type: ignore[override]
        core = self.core(index)
        grown = self._grown(core)
        windows = self.lattice.touching(grown)
        first, last = windows[0], windows[-1]
        read = Window(
            first.row, first.col, last.row_stop - first.row, last.col_stop - first.col
        )  # fmt: skip
        return Tile(index % len(self), core, grown, read, windows)

    def _grown(self, core: Window) -> Window:
        grown = core.grown(self.margin).intersection(self._scene)
        assert grown is not None
        return grown

    def __iter__(self) -> Iterator[Tile]:
        return (self[i] for i in range(len(self)))

    def core(self, index: int) -> Window:
        """Pixels that a tile owns, without the windows it would run."""
        if not -len(self) <= index < len(self):
            raise IndexError(index)
        return self._core(*divmod(index % len(self), self.cols))

    def _core(self, row: int, col: int) -> Window:
        top, left = self.region.row + row * self.tile, self.region.col + col * self.tile
        return Window(
            top,
            left,
            min(self.tile, self.region.row_stop - top),
            min(self.tile, self.region.col_stop - left),
        )

    @property
    def window_runs(self) -> int:
        """How many windows the plan encodes, those shared by two tiles counted twice."""
        height, width = self.lattice.window_shape
        region = self.region
        return self._runs(self.lattice.row_starts, height, region.row, region.row_stop) * (
            self._runs(self.lattice.col_starts, width, region.col, region.col_stop)
        )

    def _runs(self, starts: IntArray, size: int, first: int, stop: int) -> int:
        """Windows along one axis, counted once for each tile that they touch."""
        lows = np.arange(first, stop, self.tile)
        highs = np.minimum(lows + self.tile, stop) + self.margin
        counts = np.searchsorted(starts, highs, side="left") - np.searchsorted(
            starts, lows - self.margin - size, side="right"
        )
        return int(counts.sum())
