"""Upsampling kernels that overlapping windows share.

A kernel depends on the guidance around its pixel only, so windows that overlap would make the same
kernels again and again. Here they are made once, for the cells of the windows' lattice::

    +----+----+----+      cells are a stride wide; a window covers window / stride of them each
    |    :    :    |      way. Blocks along a window's own border mirror their margin there, so
    |....:....:....|      a cell has some more kernels for those; windows beside or below one
    |    :    :    |      another share them too.
    +----+----+----+

It holds for the finest steps, whose blocks fit the stride; coarser ones cost little.

Everything is computed for one cell at a time, in arrays of the same shapes whatever is around it,
so that a window gets the same bits from every scene tile it belongs to.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor

from geoseg.model.blocks import BLOCK, Blocks, StepGeometry
from geoseg.model.learned_jbu import LearnedJbu, LearnedUpsampling, StepWeights, UpsamplingStep

Place = tuple[int, int]


class SharedKernels:
    """Operators of the windows of one area.

    Parameters
    ----------
    upsampler
        The learned upsampler.
    area
        ``(3, H, W)`` normalised pixels that hold the windows.
    origin
        Row and column in the area of any window of the lattice; they may be negative.
    window, stride, grid
        Side and step of the windows in pixels, and patches along a side.
    """

    def __init__(
        self,
        upsampler: LearnedJbu,
        area: Tensor,
        *,
        origin: Place,
        window: int,
        stride: int,
        grid: int,
    ) -> None:
        self._upsampler = upsampler
        self._area = area
        self._origin = (origin[0] % stride, origin[1] % stride)
        self._window, self._stride = window, stride
        sides = [size[0] for size in upsampler.ladder((window, window), (grid, grid))]
        self._steps = list(pairwise(sides))
        pixels = area.permute(1, 2, 0)
        self._levels = {
            step: self._level(pixels, step)
            for step in range(len(self._steps))
            if self._shares(step)
        }

    def _shares(self, step: int) -> bool:
        return _can_share(*self._steps[step], self._window, self._stride)

    def _level(self, pixels: Tensor, step: int) -> _Level:
        weights = self._upsampler.weights(step)
        coarse, fine = self._steps[step]
        return _Level(
            StepGeometry.of((fine, fine), (coarse, coarse), weights.radius, pixels.device),
            _Cells(pixels, self._origin, self._stride, self._window // fine, weights),
            self._window // self._stride,
        )

    @staticmethod
    def worthwhile(upsampler: LearnedJbu, window: int, stride: int, grid: int) -> bool:
        """Whether windows of this lattice overlap, and have a step whose kernels they can share."""
        if not 0 < stride < window:
            return False
        sizes = [size[0] for size in upsampler.ladder((window, window), (grid, grid))]
        return _can_share(sizes[-2], sizes[-1], window, stride)

    def operator(self, row: int, col: int) -> LearnedUpsampling | None:
        """Operator of the window at a place in the area; None if it is not one of the lattice.

        Operators may be used in several threads at once.
        """
        down, right = row - self._origin[0], col - self._origin[1]
        if min(down, right) < 0 or down % self._stride or right % self._stride:
            return None
        place = (down // self._stride, right // self._stride)
        guidance = self._area[None, :, row : row + self._window, col : col + self._window]
        steps: list[UpsamplingStep] = []
        for step, (coarse, fine) in enumerate(self._steps):
            level = self._levels.get(step)
            if level is None:
                own = self._upsampler.step(step, guidance, (coarse, coarse), (fine, fine))
                steps.append(own)
            else:
                steps.append(_SharedStep(level, place))
        return LearnedUpsampling(tuple(steps))

    def forget_before(self, row: int, col: int) -> None:
        """Drop what only windows before the one at this place need; they come row by row."""
        place = (row - self._origin[0]) // self._stride, (col - self._origin[1]) // self._stride
        for level in self._levels.values():
            level.cells.forget_before(place)


def _can_share(coarse: int, fine: int, window: int, stride: int) -> bool:
    """Whether a step doubles, and cells of its pixels are whole blocks."""
    scale, rest = divmod(window, fine)
    return (
        rest == 0 and fine == 2 * coarse and window % stride == 0 and stride % (scale * BLOCK) == 0
    )


Side = int
"""-1 for a window's first row or column of blocks, 1 for its last, 0 for those between."""

Sides = tuple[Side, Side]
"""Of a row and of a column of blocks."""

_WEIGHTS = {-1: 0, 0: 1, 1: -1}
"""Blocks of a window that have the bicubic weights of a side."""
_BLOCKS = {-1: slice(0, 1), 0: slice(None), 1: slice(-1, None)}
"""Blocks of a cell that a side is about."""


@dataclass
class _Cell:
    """What is known of one cell of one step."""

    features: Tensor
    """``(side, side, 32)``."""
    centres: Tensor
    """The same in blocks, ``(rows, cols, block², 32)``."""
    pixels: Tensor
    """``(rows, cols, block², 3)`` guidance at the step's resolution."""
    margined: Tensor | None = None
    """Features of the cell and of what lies around it."""
    inside: dict[int, Tensor] = field(default_factory=dict)
    """``(2, 2, rows, cols, block² / 4, near²)`` for some rows of blocks, by the first: weights of
    near coarse pixels as they are inside of windows; not to be used where the area ends."""
    borders: dict[Sides, Tensor] = field(default_factory=dict)
    """``(blocks, block², span²)``: of those along each side and in each corner of a window."""
    lock: threading.RLock = field(default_factory=threading.RLock)
    """Held while the three above are made."""


@dataclass
class _Cells:
    """Cells of one step, made when first asked for."""

    area: Tensor
    """``(H, W, 3)``."""
    origin: Place
    stride: int
    scale: int
    """Pixels of the area for one of the step."""
    weights: StepWeights
    known: dict[Place, _Cell] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    @property
    def side(self) -> int:
        """Pixels of the step along a cell."""
        return self.stride // self.scale

    @property
    def blocks(self) -> Blocks:
        """Blocks of a cell."""
        return Blocks(self.side, self.side, self.weights.radius)

    def cell(self, place: Place) -> _Cell | None:
        """Return a cell; None if it is not wholly in the area."""
        row, col = (self.origin[k] + place[k] * self.stride for k in (0, 1))
        if min(row, col) < 0:
            return None
        part = self.area[row : row + self.stride, col : col + self.stride]
        if part.shape[:2] != (self.stride, self.stride):
            return None
        with self.lock:
            if place not in self.known:
                self.known[place] = self._new(part)
            return self.known[place]

    def _new(self, area: Tensor) -> _Cell:
        pooled = F.adaptive_avg_pool2d(area.permute(2, 0, 1)[None], (self.side, self.side))[0]
        pixels = pooled.permute(1, 2, 0).contiguous()
        features, blocks = self.weights.features(pixels), self.blocks
        return _Cell(features, blocks.centres(features[None])[0], blocks.centres(pixels[None])[0])

    def margined(self, cell: _Cell, place: Place) -> Tensor:
        """Features of a cell and of what lies around it; zeros where the area ends."""
        if cell.margined is None:
            radius = self.weights.radius
            cut = {-1: slice(-radius, None), 0: slice(None), 1: slice(None, radius)}
            rows = []
            for down in (-1, 0, 1):
                near = [self.cell((place[0] + down, place[1] + right)) for right in (-1, 0, 1)]
                parts = [torch.zeros_like(cell.features) if c is None else c.features for c in near]
                rows.append(
                    torch.cat([p[cut[down], cut[k - 1]] for k, p in enumerate(parts)], dim=1)
                )
            cell.margined = torch.cat(rows)
        return cell.margined

    def forget_before(self, place: Place) -> None:
        """Drop what windows from this one on do not cover."""
        row, col = place
        with self.lock:
            for known in [p for p in self.known if p[0] < row or (p[0] == row and p[1] < col)]:
                del self.known[known]


@dataclass(frozen=True, eq=False)
class _Level:
    """One step that windows share."""

    geometry: StepGeometry
    cells: _Cells
    across: int
    """Cells along a window."""

    def inside(self, place: Place, rows: range) -> Tensor:
        """Weights for some rows of blocks of a cell as they are inside of windows; see `_Cell`.

        They are made a few rows at a time, so that windows side by side can take turns.
        """
        cell = self._cell(place)
        with cell.lock:
            if rows.start not in cell.inside:
                margined = self.cells.margined(cell, place)
                cell.inside[rows.start] = self._made_inside(cell, margined, rows)
            return cell.inside[rows.start]

    def border(self, place: Place, sides: Sides) -> Tensor:
        """Matrices of the blocks of a cell along sides of a window; see `_Cell`.

        Their margin is mirrored there. Those of one row of blocks are made at once.
        """
        cell = self._cell(place)
        with cell.lock:
            if sides not in cell.borders:
                margined = self.cells.margined(cell, place)
                cell.borders.update(self._made_borders(cell, margined, sides[0]))
            return cell.borders[sides]

    def _cell(self, place: Place) -> _Cell:
        cell = self.cells.cell(place)
        assert cell is not None
        return cell

    def _made_inside(self, cell: _Cell, margined: Tensor, rows: range) -> Tensor:
        weights, blocks = self.cells.weights, self.cells.blocks
        some = slice(rows.start, rows.stop)
        around = blocks.neighbourhoods(margined[None])[0, some]
        return weights.kernels(blocks, cell.centres[some], around, cell.pixels[some]).near()

    def _made_borders(self, cell: _Cell, margined: Tensor, down: Side) -> dict[Sides, Tensor]:
        blocks, cols = self.cells.blocks, self.geometry.cols
        margined = _mirrored(margined, down, blocks, 0)
        sides = (-1, 0, 1) if down else (-1, 1)
        parts = []
        for right in sides:
            features = _mirrored(margined, right, blocks, 1)
            chosen = (_BLOCKS[down], _BLOCKS[right])
            around = blocks.neighbourhoods(features[None])[0].flatten(0, 1)
            across = cols.weights[_WEIGHTS[right]].expand(len(around), -1, -1)
            centres, pixels = (x[chosen].flatten(0, 1) for x in (cell.centres, cell.pixels))
            parts.append((centres, around, pixels, across))
        *kernels, across = (torch.cat(part) for part in zip(*parts, strict=True))
        matrices = self.cells.weights.kernels(blocks, *kernels).matrices(
            self.geometry, self.geometry.rows.weights[_WEIGHTS[down]], across
        )
        counts = [len(part[0]) for part in parts]
        split = torch.split(matrices, counts)
        return {(down, right): some for right, some in zip(sides, split, strict=True)}


def _mirrored(margined: Tensor, side: Side, blocks: Blocks, dim: int) -> Tensor:
    """Cut features down to the blocks of a side, their outer margin mirrored."""
    radius, kept = blocks.radius, blocks.reach - blocks.radius
    if side == 0:
        return margined
    if side < 0:
        inner = margined.narrow(dim, radius, kept)
        return torch.cat([inner.narrow(dim, 1, radius).flip(dim), inner], dim)
    inner = margined.narrow(dim, margined.shape[dim] - blocks.reach, kept)
    return torch.cat([inner, inner.narrow(dim, kept - 1 - radius, radius).flip(dim)], dim)


@dataclass(frozen=True, eq=False)
class _SharedStep:
    """A step of one window, put together from the cells it covers."""

    level: _Level
    place: Place

    @property
    def geometry(self) -> StepGeometry:
        """From which size to which."""
        return self.level.geometry

    def matrices(self) -> Iterator[Tensor]:
        """Weights of coarse pixels; see `StepGeometry.apply`."""
        level, last = self.level, self.geometry.blocks.rows - 1
        blocks = level.cells.blocks
        for cell_row in range(level.across):
            cells = [(self.place[0] + cell_row, self.place[1] + k) for k in range(level.across)]
            for rows in blocks.some_rows():
                first = cell_row * blocks.rows + rows.start
                inner = range(max(first, 1), min(first + len(rows), last))
                if first == 0:
                    yield self._border(cells, -1)
                if inner:
                    inside = self._inside(cells, rows)
                    yield inside[:, inner.start - first : inner.stop - first]
                if first + len(rows) > last:
                    yield self._border(cells, 1)

    def _inside(self, cells: list[Place], rows: range) -> Tensor:
        level, blocks = self.level, self.level.cells.blocks
        some, cols = slice(rows.start, rows.stop), blocks.cols
        matrices = self.geometry.empty(1, len(rows), len(cells) * cols)
        # From the right: the cells on the left are being made for the window before this one.
        for k, cell in reversed(list(enumerate(cells))):
            near = level.inside(cell, rows)
            self.geometry.spread(near, matrices[0, :, k * cols : (k + 1) * cols])
        for col, side in ((0, -1), (-1, 1)):
            matrices[0, :, col] = level.border(cells[col], (0, side))[some]
        return matrices

    def _border(self, cells: list[Place], down: Side) -> Tensor:
        pieces = [self.level.border(cell, (down, 0)) for cell in cells]
        first, last = (self.level.border(cells[k], (down, side)) for k, side in ((0, -1), (-1, 1)))
        pieces[0], pieces[-1] = pieces[0][1:], pieces[-1][:-1]
        return torch.cat([first, *pieces, last])[None, None]
