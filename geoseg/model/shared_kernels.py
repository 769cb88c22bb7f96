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
from collections.abc import Iterator, Sequence
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
    matrices: dict[tuple[Side, Side], Tensor] = field(default_factory=dict)
    """``(rows, cols, block², span²)`` for blocks inside of windows and along each of their sides;
    those inside are not to be used where the area ends."""
    lock: threading.RLock = field(default_factory=threading.RLock)
    """Held while the two above are made."""


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

    def matrices(self, place: Place, down: Side, right: Side) -> Tensor:
        """Matrices of blocks of a cell that is in the area, ``(rows, cols, block², span²)``.

        All blocks as they are inside of windows (0, 0), or those along sides of a window, with
        their margin mirrored there.
        """
        cell = self.cells.cell(place)
        assert cell is not None
        with cell.lock:
            if (down, right) not in cell.matrices:
                cell.matrices[down, right] = self._made(cell, place, down, right)
            return cell.matrices[down, right]

    def _made(self, cell: _Cell, place: Place, down: Side, right: Side) -> Tensor:
        weights, blocks = self.cells.weights, self.cells.blocks
        features = self.cells.margined(cell, place)
        features = _mirrored(features, down, blocks, 0)
        features = _mirrored(features, right, blocks, 1)
        around = blocks.neighbourhoods(features[None])[0]
        if (down, right) == (0, 0):
            # All blocks of a cell do not fit the cache at once; those along a side do.
            rows = (
                weights.kernels(blocks, *parts).inside(self.geometry)
                for parts in zip(cell.centres, around, cell.pixels, strict=True)
            )
            return torch.stack(list(rows))
        chosen = (_BLOCKS[down], _BLOCKS[right])
        kernels = weights.kernels(blocks, cell.centres[chosen], around, cell.pixels[chosen])
        geometry, at = self.geometry, {-1: 0, 0: 1, 1: -1}
        return kernels.matrices(
            geometry, geometry.rows.weights[at[down]], geometry.cols.weights[at[right]]
        )


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

    def matrices(self) -> Iterator[Sequence[Tensor]]:
        """Weights of coarse pixels; see `StepGeometry.apply`."""
        level, blocks = self.level, self.geometry.blocks
        per_cell = blocks.rows // level.across
        for row in range(blocks.rows):
            cell_row, within = divmod(row, per_cell)
            down = -1 if row == 0 else int(row == blocks.rows - 1)
            within = 0 if down else within
            cells = [(self.place[0] + cell_row, self.place[1] + k) for k in range(level.across)]
            pieces = [level.matrices(cell, down, 0)[within] for cell in cells]
            pieces[0], pieces[-1] = pieces[0][1:], pieces[-1][:-1]
            first = level.matrices(cells[0], down, -1)[within]
            last = level.matrices(cells[-1], down, 1)[within]
            yield [piece[None] for piece in (first, *pieces, last)]
