"""How a scene is cut to fill a store: whole shards of windows, then whole blocks of the field."""

from __future__ import annotations

from collections.abc import Sequence

from geoseg.store.layout import Layout
from geoseg.tiling.tiles import Lane, Tile, TilePlan
from geoseg.types import Window


class WindowPlan(TilePlan):
    """Shards of windows, each of which is run once.

    Parameters
    ----------
    layout
        Of the store.
    region
        Pixels of which there are to be features; all by default.
    margin
        Pixels around it that refiners may want as well.
    """

    def __init__(self, layout: Layout, region: Window | None, margin: int) -> None:
        step = layout.shard * layout.stride
        super().__init__(layout.lattice, step, region, margin=margin, alone=True)
        self._shard = layout.shard
        self.grown = self._grown(self.region)
        """Pixels that the windows see."""
        touched = layout.lattice.touching(self.grown)
        first, last = touched[0], touched[-1]
        starts = layout.lattice.row_starts, layout.lattice.col_starts
        ends = [
            (int(known.searchsorted(low)), int(known.searchsorted(high)))
            for known, low, high in zip(
                starts, (first.row, first.col), (last.row, last.col), strict=True
            )
        ]
        (top, bottom), (left, right) = ends
        self._shards = (
            range(top // self._shard, bottom // self._shard + 1),
            range(left // self._shard, right // self._shard + 1),
        )
        self.rows, self.cols = map(len, self._shards)

    def places(self, index: int) -> tuple[slice, slice]:
        """Rows and columns of the lattice of one shard."""
        row, col = divmod(index, self.cols)
        side, (down, across) = self._shard, self._shards
        counts = len(self.lattice.row_starts), len(self.lattice.col_starts)
        return tuple(  # type: ignore[return-value]
            slice(which * side, min((which + 1) * side, count))
            for which, count in zip((down[row], across[col]), counts, strict=True)
        )

    def core(self, index: int) -> Window:
        """All pixels that a shard's windows see."""
        rows, cols = self.places(index)
        top, bottom = self.lattice.row_starts[rows][[0, -1]].tolist()
        left, right = self.lattice.col_starts[cols][[0, -1]].tolist()
        height, width = self.lattice.window_shape
        return Window(top, left, bottom - top + height, right - left + width)

    def windows_of(self, indices: Sequence[int]) -> list[int]:
        """How many windows some shards have."""
        places = map(self.places, indices)
        return [(r.stop - r.start) * (c.stop - c.start) for r, c in places]

    def lane(self, indices: Sequence[int]) -> Lane:
        """One shard by itself."""
        (index,) = indices
        rows, cols = self.places(index)
        core, shape = self.core(index), self.lattice.window_shape
        windows = tuple(
            Window(int(row), int(col), *shape)
            for row in self.lattice.row_starts[rows]
            for col in self.lattice.col_starts[cols]
        )
        return Lane((Tile(index, core, core, core, windows),), core, core)


class FieldPlan(TilePlan):
    """Some whole blocks of the direction field at a time.

    Parameters
    ----------
    layout
        Of the store.
    region
        Pixels of which there are features; all by default.
    """

    def __init__(self, layout: Layout, region: Window | None) -> None:
        scene = Window(0, 0, layout.height, layout.width)
        here, block = region or scene, layout.block
        top, left = (start // block * block for start in (here.row, here.col))
        aligned = Window(top, left, here.row_stop - top, here.col_stop - left)
        super().__init__(layout.lattice, block, aligned, margin=layout.cell, alone=True)
        side = max(_SIDE // block, 1) * block
        self.tile = side, side
        self.rows = -(-self.region.height // side)
        self.cols = -(-self.region.width // side)


_SIDE = 1024
"""Pixels of what is merged at once, of which all directions are in memory."""
