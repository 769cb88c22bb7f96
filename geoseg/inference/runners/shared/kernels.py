"""Upsampling kernels that overlapping windows share.

A kernel depends on the guidance around its pixel only, so windows that overlap would make the same
kernels again and again. Here they are made once, for the cells of the windows' lattice::

    +----+----+----+      cells are a stride wide; a window covers window / stride of them each
    |    :    :    |      way. Pixels near a window's own border see their margin mirrored, so a
    |....:....:....|      cell has some more kernels for those, along its four sides and in its
    |    :    :    |      corners; windows beside or below one another share them too.
    +----+----+----+

It holds for the finest steps, whose blocks fit the stride; coarser ones cost little. The last step
is most of the work: a cell does it for all windows that cover it at once, and drops the kernels
(`SharedKernels.last`). Of the steps before, windows do one after another what is theirs, and a
cell's kernels are kept for the next one (`SharedKernels.before_last`).

Everything is computed for one cell at a time, in arrays of the same shapes whatever is around it,
so that a window gets the same bits from every scene tile it belongs to.
"""

from __future__ import annotations

import functools
import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor

from geoseg.inference.runners.shared.edges import EdgeWeights
from geoseg.model.upsampling.blocks import BLOCK, TOGETHER, Blocks, StepGeometry
from geoseg.model.upsampling.learned import LearnedJbu
from geoseg.model.upsampling.learned_step import StepWeights, with_one

Place = tuple[int, int]
"""Row and column in a lattice, in strides."""


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

    Attributes
    ----------
    stride : int
        Step of the windows, and side of the cells, in pixels.
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
        self._window, self.stride = window, stride
        self._across = window // stride
        sides = [size[0] for size in upsampler.ladder((window, window), (grid, grid))]
        self._steps = list(itertools.pairwise(sides))
        self._levels = {
            step: self._level(step) for step in range(len(self._steps)) if self._shares(step)
        }

    def _shares(self, step: int) -> bool:
        radius = self._upsampler.weights(step).radius
        return _can_share(*self._steps[step], self._window, self.stride, radius)

    def _level(self, step: int) -> _Level:
        weights = self._upsampler.weights(step)
        coarse, fine = self._steps[step]
        return _Level(
            StepGeometry.of((fine, fine), (coarse, coarse), weights.radius, self._area.device),
            weights,
            self._area,
            self._origin,
            self.stride,
            self._across,
            keep=step < len(self._steps) - 1,
        )

    @staticmethod
    def worthwhile(upsampler: LearnedJbu, window: int, stride: int, grid: int) -> bool:
        """Whether windows of this lattice overlap, and have a step whose kernels they can share."""
        if not 0 < stride < window:
            return False
        sizes = [size[0] for size in upsampler.ladder((window, window), (grid, grid))]
        radius = upsampler.weights(len(sizes) - 2).radius
        return _can_share(sizes[-2], sizes[-1], window, stride, radius)

    def place(self, row: int, col: int) -> Place | None:
        """Where in the lattice a window of the area is, in strides; None if it is not one of it."""
        down, right = row - self._origin[0], col - self._origin[1]
        if min(down, right) < 0 or down % self.stride or right % self.stride:
            return None
        return down // self.stride, right // self.stride

    def cells(self, place: Place) -> Iterator[Place]:
        """Cells that a window covers, row by row; the first one has the window's own place."""
        return (
            (place[0] + down, place[1] + right)
            for down in range(self._across)
            for right in range(self._across)
        )

    def position(self, cell: Place) -> Place:
        """Row and column of a cell's first pixel in the area."""
        return self._origin[0] + cell[0] * self.stride, self._origin[1] + cell[1] * self.stride

    def before_last(self, place: Place, x: Tensor) -> Tensor:
        """Upsample a window up to the last step, which `last` does for cells.

        Several threads may ask for windows at once.

        Parameters
        ----------
        place
            Of the window.
        x
            ``(1, C, grid, grid)``.

        Returns
        -------
        torch.Tensor
            ``(h, w, C)``.
        """
        row, col = self.position(place)
        guidance = self._area[None, :, row : row + self._window, col : col + self._window]
        x = x.permute(0, 2, 3, 1)
        for step, (coarse, fine) in enumerate(self._steps[:-1]):
            level = self._levels.get(step)
            if level is None:
                own = self._upsampler.step(step, guidance, (coarse, coarse), (fine, fine))
                x = own.apply(x)
            else:
                x = level.window(place, x)
        return x[0]

    def last(
        self, cell: Place, windows: Sequence[Place], coarse: Sequence[Tensor]
    ) -> Iterator[Tensor]:
        """Upsample a cell for all windows that cover it.

        Parameters
        ----------
        cell
            Its place.
        windows
            Places of the windows.
        coarse
            Of each, what `before_last` made of it, ``(h, w, C)``.

        Yields
        ------
        torch.Tensor
            A few rows of blocks at a time, ``(rows, cols, block², windows, C)``.
        """
        return self._last.pixels(cell, windows, coarse)

    def image(self, blocks: Tensor) -> Tensor:
        """Put blocks of a cell in order: ``(rows, cols, block², C)`` to ``(side, side, C)``."""
        return self._last.blocks.pixels(blocks[None])[0]

    def blocks(self, image: Tensor) -> Tensor:
        """Inverse of `image`."""
        return self._last.blocks.centres(image[None])[0]

    @property
    def _last(self) -> _Level:
        return self._levels[len(self._steps) - 1]

    def forget_before(self, place: Place) -> None:
        """Drop what only windows before the one at this place need; they come row by row."""
        for level in self._levels.values():
            level.forget_before(place)


def _can_share(coarse: int, fine: int, window: int, stride: int, radius: int) -> bool:
    """Whether a step doubles, cells of its pixels are whole blocks, and borders lie within one."""
    scale, rest = divmod(window, fine)
    doubles = rest == 0 and fine == 2 * coarse and radius <= BLOCK
    return doubles and window % stride == 0 and stride % (scale * BLOCK) == 0


@functools.lru_cache(maxsize=8)
def _edge_weights(weights: StepWeights) -> EdgeWeights:
    return EdgeWeights(weights)


@dataclass
class _Cell:
    """Kernels of one cell of one step.

    Those inside are made when they are wanted, a few rows at a time: windows side by side can take
    turns then, and what is made stays in the cache.
    """

    margined: Tensor
    """Range features of the cell and of what lies around it, ``(side + 2 radius, ..., 32)``."""
    centres: Tensor
    """Range features of the cell, ``(rows, cols, 2, 2, block² / 4, 32)``."""
    guidance: Tensor
    """``(rows, cols, 2, 2, block² / 4, 4)``, see `StepWeights.kernels`."""
    edges: Tensor
    """Weights of coarse pixels along the four sides of a window; see `EdgeWeights.matrices`."""
    corners: Tensor
    """``(2, 2, block², span²)``: of the blocks in the four corners of a window."""
    inside: dict[int, Tensor] = field(default_factory=dict)
    """``(2, 2, rows, cols, block² / 4, near²)`` for some rows of blocks, by the first: of near
    coarse pixels as they are inside of windows; not to be used where the area ends."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    """Held while those inside are made."""


@dataclass
class _Kept:
    """A cell that is kept, once it is made."""

    cell: _Cell | None = None
    lock: threading.Lock = field(default_factory=threading.Lock)
    """Held while it is made."""


@dataclass(frozen=True, eq=False)
class _Level:
    """One step that windows share."""

    geometry: StepGeometry
    """Of a window."""
    weights: StepWeights
    area: Tensor
    """``(3, H, W)``."""
    origin: Place
    stride: int
    across: int
    """Cells along a window."""
    keep: bool
    """Whether windows come one after another, so that a cell's kernels are needed again."""
    known: dict[Place, _Kept] = field(default_factory=dict)
    """Cells that are kept, by their places."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    """Held while those are looked up."""

    @functools.cached_property
    def blocks(self) -> Blocks:
        """Blocks of a cell."""
        side = self.geometry.blocks.height // self.across
        return Blocks(side, side, self.weights.radius)

    def _cell(self, place: Place) -> _Cell:
        if not self.keep:
            return self._made(place)
        with self.lock:
            kept = self.known.setdefault(place, _Kept())
        with kept.lock:
            if kept.cell is None:
                kept.cell = self._made(place)
            return kept.cell

    def _made(self, place: Place) -> _Cell:
        blocks, weights = self.blocks, self.weights
        radius = weights.radius
        pixels = self._pixels(place)
        margined = weights.features(pixels)
        own = (slice(None), slice(radius, -radius), slice(radius, -radius))
        centres = blocks.quartered(margined[None][own])[0]
        guidance = with_one(pixels)
        guided = blocks.quartered(guidance[None][own])[0]
        edges = _edge_weights(weights).matrices(margined, guidance)
        corners = self._corners(margined, centres, guided)
        return _Cell(margined, centres, guided, edges, corners)

    def _pixels(self, place: Place) -> Tensor:
        """Guidance of a cell and of what lies around it; zeros where the area ends."""
        side = self.blocks.height + 2 * self.weights.radius
        scale = self.stride // self.blocks.height
        before = self.weights.radius * scale
        cut, margins = [], []
        for first, size in zip(
            (self.origin[k] + place[k] * self.stride - before for k in (0, 1)),
            self.area.shape[1:],
            strict=True,
        ):
            last = first + side * scale
            cut.append(slice(max(first, 0), min(last, size)))
            margins.append((max(-first, 0), max(last - size, 0)))
        part = F.pad(self.area[:, *cut], (*margins[1], *margins[0]))
        if scale > 1:
            part = F.adaptive_avg_pool2d(part, (side, side))
        return part.permute(1, 2, 0).contiguous()

    def forget_before(self, place: Place) -> None:
        """Drop what windows from this one on do not cover."""
        with self.lock:
            for known in [
                p for p in self.known if p[0] < place[0] or (p[0] == place[0] and p[1] < place[1])
            ]:
                del self.known[known]

    def pixels(
        self, place: Place, windows: Sequence[Place], coarse: Sequence[Tensor]
    ) -> Iterator[Tensor]:
        """Upsample a cell for windows that cover it.

        Parameters
        ----------
        place
            Of the cell.
        windows, coarse
            Places of the windows, and their coarse pixels ``(h, w, C)``.

        Yields
        ------
        torch.Tensor
            Some rows of blocks of the cell, ``(rows, cols, block², windows, C)``.
        """
        cell = self._cell(place)
        within = [(place[0] - row, place[1] - col) for row, col in windows]
        around = self._around(within, coarse, self.blocks.height)
        borders = self._borders(cell, within, around)
        together = list(self.blocks.some_rows())
        # Zeros stay where they are: the same places of it are filled again and again.
        store = self.geometry.empty(len(together[0]), self.blocks.cols)
        for rows in together:
            matrices = store[: len(rows)]
            self.geometry.spread(self._inside(cell, rows), matrices)
            below = around[rows.start : rows.stop].permute(0, 1, 4, 5, 2, 3)
            found = matrices @ below.flatten(4).flatten(2, 3)
            pixels = found.view(*found.shape[:2], BLOCK, BLOCK, len(windows), -1)
            for border in borders:
                border(pixels, rows)
            yield pixels.flatten(2, 3)

    def window(self, place: Place, x: Tensor) -> Tensor:
        """Upsample coarse pixels ``(1, h, w, C)`` of the window at a place."""
        all_blocks, blocks = self.geometry.blocks, self.blocks
        around = self._around([(0, 0)], [x[0]], all_blocks.height)[:, :, 0].permute(0, 1, 3, 4, 2)
        step = max(1, TOGETHER // all_blocks.cols)
        done: list[Tensor] = []
        for down in range(self.across):
            cells = [self._cell((place[0] + down, place[1] + k)) for k in range(self.across)]
            for start in range(0, blocks.rows, step):
                rows = range(start, min(start + step, blocks.rows))
                matrices = self._matrices(
                    cells,
                    rows,
                    top=down == 0 and rows.start == 0,
                    bottom=down == self.across - 1 and rows.stop == blocks.rows,
                )
                first = down * blocks.rows + start
                done.append(matrices @ around[first : first + len(rows)].flatten(2, 3))
        return all_blocks.pixels(torch.cat(done)[None])

    def _matrices(self, cells: Sequence[_Cell], rows: range, *, top: bool, bottom: bool) -> Tensor:
        """Weights of coarse pixels for some rows of blocks of a window, from the cells they cross.

        The rows may be the window's first (``top``) or last ones.
        """
        cols, radius = self.blocks.cols, self.weights.radius
        matrices = self.geometry.empty(len(rows), self.across * cols)
        pixels = matrices.view(*matrices.shape[:2], BLOCK, BLOCK, -1)
        # From the right: the cells on the left are being made for the window before this one.
        for k, cell in reversed(list(enumerate(cells))):
            own = slice(k * cols, (k + 1) * cols)
            self.geometry.spread(self._inside(cell, rows), matrices[:, own])
            if top:
                pixels[0, own, :radius] = cell.edges[0]
            if bottom:
                pixels[-1, own, BLOCK - radius :] = cell.edges[1]
        some = slice(rows.start, rows.stop)
        pixels[:, 0, :, :radius] = cells[0].edges[2, some].transpose(1, 2)
        pixels[:, -1, :, BLOCK - radius :] = cells[-1].edges[3, some].transpose(1, 2)
        for row in [0] * top + [-1] * bottom:
            matrices[row, 0], matrices[row, -1] = (
                cells[0].corners[row, 0],
                cells[-1].corners[row, -1],
            )
        return matrices

    def _around(self, within: Sequence[Place], coarse: Sequence[Tensor], side: int) -> Tensor:
        """Coarse pixels of every block of a square, ``(rows, cols, windows, C, span, span)``.

        Beyond a window they are as at its border: bicubic resizing sees them so.

        Parameters
        ----------
        within
            How many squares down and right it lies in each window.
        coarse
            Coarse pixels of the windows, ``(h, w, C)``.
        side
            Of the square, in fine pixels.
        """
        step, side = BLOCK // 2, side // 2
        before, after = self.geometry.rows.margins(coarse[0].shape[0])
        wide = before + side + after
        parts = []
        for (down, right), x in zip(within, coarse, strict=True):
            first = (down * side - before, right * side - before)
            places = _clamped(first, wide, (x.shape[0], x.shape[1]), x.device)
            parts.append(x.flatten(0, 1).index_select(0, places).view(wide, wide, -1))
        span = self.geometry.rows.span
        return torch.stack(parts, 2).unfold(0, span, step).unfold(1, span, step)

    def _inside(self, cell: _Cell, rows: range) -> Tensor:
        if not self.keep:
            return self._made_inside(cell, rows)
        with cell.lock:
            if rows.start not in cell.inside:
                cell.inside[rows.start] = self._made_inside(cell, rows)
            return cell.inside[rows.start]

    def _made_inside(self, cell: _Cell, rows: range) -> Tensor:
        around = self.blocks.neighbourhoods(cell.margined[None])[0]
        some = slice(rows.start, rows.stop)
        kernels = self.weights.kernels(
            self.blocks, cell.centres[some], around[some], cell.guidance[some]
        )
        return kernels.near()

    def _corners(self, margined: Tensor, centres: Tensor, guidance: Tensor) -> Tensor:
        """``(2, 2, block², span²)``: their margins are mirrored both ways."""
        radius = self.weights.radius
        first = torch.arange(-radius, BLOCK + radius, device=margined.device).abs() + radius
        ends = torch.stack([first, len(margined) - 1 - first.flip(0)])
        around = margined[ends[:, None, :, None], ends[None, :, None, :]]
        centres, guidance = (x[[0, -1]][:, [0, -1]] for x in (centres, guidance))
        kernels = self.weights.kernels(self.blocks, centres, around, guidance)
        bicubic = self.geometry.rows.weights[[0, -1]]
        return kernels.matrices(self.geometry, bicubic[:, None], bicubic)

    def _borders(self, cell: _Cell, within: Sequence[Place], around: Tensor) -> list[_Border]:
        """Pixels along the borders of windows, which go over those made as inside of them."""
        ends, found = {-1: 0, 1: self.across - 1}, []
        for dim, (end, place) in itertools.product((0, 1), ends.items()):
            chosen = [k for k, cells in enumerate(within) if cells[dim] == place]
            for windows in _slices(chosen):
                found.append(_edge(cell.edges, around, windows, dim, end))
        for (down, above), (right, beside) in itertools.product(ends.items(), ends.items()):
            for window in [k for k, cells in enumerate(within) if cells == (above, beside)]:
                found.append(_corner(cell.corners, around, window, down, right))
        return found


@functools.lru_cache(maxsize=64)
def _clamped(first: Place, wide: int, size: tuple[int, int], device: torch.device) -> Tensor:
    """Numbers of the pixels of a square in an image; beyond it, of the nearest ones in it."""
    rows, cols = (
        torch.arange(start, start + wide, device=device).clamp(0, count - 1)
        for start, count in zip(first, size, strict=True)
    )
    return (rows[:, None] * size[1] + cols).flatten()


_Border = Callable[[Tensor, range], None]
"""Puts pixels where they belong in those of some rows of blocks."""


def _slices(chosen: Sequence[int]) -> list[slice]:
    """Turn numbers into a slice if they are evenly spaced, and into one each otherwise."""
    steps = {after - before for before, after in itertools.pairwise(chosen)}
    if len(steps) > 1:
        return [slice(k, k + 1) for k in chosen]
    return [slice(chosen[0], chosen[-1] + 1, max(steps, default=1))] if chosen else []


def _edge(edges: Tensor, around: Tensor, windows: slice, dim: int, end: int) -> _Border:
    """Pixels along one side of some windows.

    Parameters
    ----------
    edges
        Of the cell, see `EdgeWeights.matrices`.
    around
        ``(rows, cols, windows, C, span, span)``: coarse pixels of the cell's blocks.
    windows
        Which of them.
    dim, end
        0 for their top (end -1) and bottom (1), 1 for their left and right.
    """
    matrices = edges[2 * dim + (end > 0)]  # (blocks, radius, block, span²)
    outermost = 0 if end < 0 else -1
    below = around.select(dim, outermost)[:, windows].permute(0, 3, 4, 1, 2)
    strip = matrices.flatten(1, 2) @ below.reshape(len(below), matrices.shape[-1], -1)
    strip = strip.view(*matrices.shape[:-1], *below.shape[3:])
    radius = strip.shape[1]
    away = slice(None, radius) if end < 0 else slice(BLOCK - radius, None)

    def put(pixels: Tensor, rows: range) -> None:
        if dim == 1:
            some = strip[rows.start : rows.stop].transpose(1, 2)
            pixels[:, outermost, :, away, windows] = some
        elif rows.start == 0 if end < 0 else rows.stop == len(around):
            pixels[outermost, :, away, :, windows] = strip

    return put


def _corner(corners: Tensor, around: Tensor, window: int, down: int, right: int) -> _Border:
    """Pixels of the block in one corner of a window; see `_edge`."""
    row, col = (0 if end < 0 else -1 for end in (down, right))
    below = around[row, col, window].permute(1, 2, 0)
    block = (corners[row, col] @ below.flatten(0, 1)).view(BLOCK, BLOCK, -1)

    def put(pixels: Tensor, rows: range) -> None:
        if rows.start == 0 if down < 0 else rows.stop == len(around):
            pixels[row, col, :, :, window] = block

    return put
