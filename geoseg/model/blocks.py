"""Geometry of one learned upsampling step: blocks of fine pixels over coarse ones.

A step resizes bicubically, mirrors a margin and gathers ``(2r+1)²`` neighbours of every pixel.
None of that is done pixel by pixel here. Pixels are taken in square blocks; what a block gathers
is a small banded matrix over its fine neighbourhood, and the bicubic weights turn that into a
matrix over the few coarse pixels below::

    coarse (12 x 12) --bicubic, mirror--> fine (18 x 18) --kernels--> block (8 x 8)
             \\______________________ one 64 x 144 matrix _______________/

so that the fine image is never made, and upsampling a block is one matrix product for all channels.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from geoseg.model.products import linear

BLOCK = 8
"""Side of the blocks: large enough for full matrix products, and 37 % of an 11 x 11 band useful."""


@dataclass(frozen=True)
class Blocks:
    """Pixels of one resolution in blocks, each with a margin of ``radius``."""

    height: int
    width: int
    radius: int

    @property
    def rows(self) -> int:
        """Rows of blocks; the last may be only partly filled."""
        return -(-self.height // BLOCK)

    @property
    def cols(self) -> int:
        """Columns of blocks."""
        return -(-self.width // BLOCK)

    @property
    def taps(self) -> int:
        """Side of a neighbourhood."""
        return 2 * self.radius + 1

    @property
    def reach(self) -> int:
        """Side of a block with its margin."""
        return BLOCK + 2 * self.radius

    def centres(self, x: Tensor) -> Tensor:
        """``(B, H, W, C)`` to ``(B, rows, cols, block², C)``; zeros fill the last blocks."""
        x = F.pad(x, (0, 0, 0, self.cols * BLOCK - self.width, 0, self.rows * BLOCK - self.height))
        batch, channels = x.shape[0], x.shape[-1]
        x = x.view(batch, self.rows, BLOCK, self.cols, BLOCK, channels).transpose(2, 3)
        return x.reshape(batch, self.rows, self.cols, BLOCK * BLOCK, channels)

    def pixels(self, x: Tensor) -> Tensor:
        """Inverse of `centres`."""
        batch, channels = x.shape[0], x.shape[-1]
        x = x.view(batch, self.rows, self.cols, BLOCK, BLOCK, channels).transpose(2, 3)
        x = x.reshape(batch, self.rows * BLOCK, self.cols * BLOCK, channels)
        return x[:, : self.height, : self.width]

    def mirrored(self, x: Tensor) -> Tensor:
        """``(B, H, W, C)`` with mirrored margins, filled up to whole blocks."""
        x = F.pad(x.permute(0, 3, 1, 2), (self.radius,) * 4, mode="reflect")
        x = F.pad(x, (0, self.cols * BLOCK - self.width, 0, self.rows * BLOCK - self.height))
        return x.permute(0, 2, 3, 1).contiguous()

    def neighbourhoods(self, margined: Tensor) -> Tensor:
        """View of all blocks with their margins, ``(B, rows, cols, C, reach, reach)``."""
        return margined.unfold(1, self.reach, BLOCK).unfold(2, self.reach, BLOCK)

    def band(self, products: Tensor) -> Tensor:
        """Entries of ``(..., block², reach²)`` that pair a pixel with its own neighbours.

        Pixel ``(y, x)`` of a block and tap ``(dy, dx)`` meet at neighbour ``(y + dy, x + dx)``,
        so the band is a strided view ``(..., block, block, taps, taps)`` of the same memory.
        """
        reach = self.reach
        lead = products.shape[:-2]
        strides = (BLOCK * reach**2 + reach, reach**2 + 1, reach, 1)
        return products.as_strided(
            (*lead, BLOCK, BLOCK, self.taps, self.taps), (*products.stride()[:-2], *strides)
        )


@dataclass(frozen=True, eq=False)
class Axis:
    """Which coarse pixels the fine neighbourhoods along one axis are made of."""

    first: tuple[int, ...]
    """First coarse pixel of each block; may lie before the image."""
    weights: Tensor
    """``(blocks, reach, span)`` float32: bicubic weights, mirrored at the ends; 0 outside."""

    @property
    def span(self) -> int:
        """Coarse pixels of a block."""
        return int(self.weights.shape[-1])

    def margins(self, coarse: int) -> tuple[int, int]:
        """Coarse pixels that blocks reach beyond the image, before and after."""
        return max(-self.first[0], 0), max(self.first[-1] + self.span - coarse, 0)

    def cut(self, x: Tensor, dim: int) -> Tensor:
        """Coarse pixels of every block along a dimension: ``(..., blocks, ..., span)``.

        ``x`` has its margins. A view where blocks follow each other at even distances, as they do
        in a doubling.
        """
        starts = [first + max(-self.first[0], 0) for first in self.first]
        step = starts[1] - starts[0] if len(starts) > 1 else 1
        if starts == list(range(starts[0], starts[0] + step * len(starts), step)):
            return x.narrow(dim, starts[0], x.shape[dim] - starts[0]).unfold(dim, self.span, step)
        return torch.stack([x.narrow(dim, s, self.span).movedim(dim, -1) for s in starts], dim)


@functools.lru_cache(maxsize=64)
def axis(fine: int, coarse: int, radius: int, device: torch.device) -> Axis:
    """Bicubic interpolation (half-pixel centres, a = -0.75) of blocks with mirrored margins."""
    blocks, reach = -(-fine // BLOCK), BLOCK + 2 * radius
    positions = BLOCK * np.arange(blocks)[:, None] - radius + np.arange(reach)
    exists = positions < fine + radius
    mirrored = np.abs(positions)
    mirrored = np.where(mirrored > fine - 1, 2 * (fine - 1) - mirrored, mirrored)
    exists &= mirrored >= 0
    source = (mirrored + 0.5) * (coarse / fine) - 0.5
    taps = np.floor(source)[..., None] + np.arange(-1, 3)
    shares = _cubic(np.abs(source[..., None] - taps)) * exists[..., None]
    taps = np.clip(taps, 0, coarse - 1).astype(np.int64)
    first = np.floor((positions[:, 0] + 0.5) * (coarse / fine) - 0.5).astype(np.int64) - 1
    span = int((taps.max(axis=(1, 2)) - first).max()) + 1
    weights = np.zeros((blocks, reach, span))
    place = taps - first[:, None, None]
    at = np.arange(blocks)[:, None, None], np.arange(reach)[None, :, None], place
    np.add.at(weights, at, shares)
    return Axis(tuple(first.tolist()), torch.from_numpy(weights.astype(np.float32)).to(device))


@functools.lru_cache(maxsize=8)
def doubling(radius: int, device: torch.device) -> Tensor:
    """Bicubic weights of a neighbourhood well inside an image that doubles, ``(2, taps, near)``.

    Of a pixel at an even and at an odd place; two pixels on, they are the same one coarse pixel on.
    """
    inside, taps = axis(8 * BLOCK, 4 * BLOCK, radius, device).weights[4], 2 * radius + 1
    near = inside.shape[1] - (BLOCK // 2 - 1)
    return torch.stack([inside[place : place + taps, :near] for place in (0, 1)])


def _cubic(distance: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Keys' kernel with a = -0.75, as PyTorch's bicubic resizing uses it."""
    a = -0.75
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = a * (((distance - 5) * distance + 8) * distance - 4)
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))


@dataclass(frozen=True, eq=False)
class StepGeometry:
    """Everything about a step that no guidance changes."""

    blocks: Blocks
    rows: Axis
    cols: Axis

    @classmethod
    def of(
        cls, fine: tuple[int, int], coarse: tuple[int, int], radius: int, device: torch.device
    ) -> StepGeometry:
        """From one size to another."""
        return cls(
            Blocks(*fine, radius),
            axis(fine[0], coarse[0], radius, device),
            axis(fine[1], coarse[1], radius, device),
        )

    @functools.cached_property
    def inside(self) -> tuple[range, range]:
        """Rows and columns of blocks that see no end of the image, if the step doubles."""
        return _inside(self.rows, self.blocks.radius), _inside(self.cols, self.blocks.radius)

    def matrices(self, kernels: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
        """Turn weights of fine neighbours into weights of coarse pixels.

        Parameters
        ----------
        kernels
            ``(2, 2, ..., block² / 4, taps²)``, as `quartered` orders pixels.
        rows, cols
            Bicubic weights of the same blocks, ``(..., reach, span)``, or ones that broadcast.

        Returns
        -------
        torch.Tensor
            ``(..., block², span²)``.
        """
        blocks, lead = self.blocks, kernels.shape[2:-2]
        reach, half = blocks.reach, BLOCK // 2
        banded = kernels.new_zeros(*lead, BLOCK**2, reach**2)
        by_tap = kernels.view(*kernels.shape[:-2], half, half, blocks.taps, blocks.taps)
        quartered(blocks.band(banded), -4).copy_(by_tap)
        rows_of_taps = banded.view(*lead, BLOCK**2 * reach, reach)
        across = linear(rows_of_taps, cols.T) if cols.ndim == 2 else rows_of_taps @ cols
        down = rows.transpose(-1, -2)[..., None, :, :]
        return (down @ across.view(*lead, BLOCK**2, reach, -1)).flatten(-2)

    def spread(self, near: Sequence[Tensor]) -> Tensor:
        """Put weights of near coarse pixels into the matrices of blocks well inside.

        Parameters
        ----------
        near
            For each quarter of the pixels (see `quartered`) ``(..., block² / 4, near²)``.

        Returns
        -------
        torch.Tensor
            ``(..., block², span²)``.
        """
        lead, half = near[0].shape[:-2], BLOCK // 2
        side = math.isqrt(near[0].shape[-1])
        span = side + half - 1
        matrices = near[0].new_zeros(*lead, BLOCK**2, span**2)
        strides = (2 * BLOCK * span**2 + span, 2 * span**2 + 1, span, 1)
        for quarter, weights in enumerate(near):
            down, right = divmod(quarter, 2)
            matrices.as_strided(
                (*lead, half, half, side, side),
                (*matrices.stride()[:-2], *strides),
                (BLOCK * down + right) * span**2,
            ).copy_(weights.view(*lead, half, half, side, side))
        return matrices

    def apply(
        self,
        matrices: Iterable[Sequence[Tensor]],
        x: Tensor,
        finish: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Upsample coarse pixels ``(B, h, w, C)`` to fine ones ``(B, H, W, C')``.

        Parameters
        ----------
        matrices
            For each row of blocks some ``(B, cols, block², span²)`` that follow one another.
        finish
            Works on the fine pixels of one row of blocks, ``(B, cols, block², C)``, while they are
            in the cache; only what it returns, ``(B, cols, block², C')``, is kept.
        """
        batch, channels = x.shape[0], x.shape[-1]
        blocks = self.blocks
        margins = (*self.cols.margins(x.shape[2]), *self.rows.margins(x.shape[1]))
        x = F.pad(x, (0, 0, *margins))
        cut = self.cols.cut(self.rows.cut(x, 1), 2)  # (B, rows, cols, C, span, span)
        done = []
        for row, pieces in enumerate(matrices):
            around = cut[:, row].permute(0, 1, 3, 4, 2).reshape(batch, blocks.cols, -1, channels)
            pixels = _products(pieces, around)
            done.append(pixels if finish is None else finish(pixels))
        return blocks.pixels(torch.stack(done, dim=1))


def quartered(x: Tensor, rows: int) -> Tensor:
    """Order a block's pixels by whether their row and their column are even or odd.

    Dimensions ``rows`` and the one after it, a block's, become ``(2, 2, ..., 4, 4, ...)``. Pixels
    of a quarter have the same bicubic weights, each two pixels on moved by a coarse pixel.
    """
    half = BLOCK // 2
    rows %= x.ndim
    split = torch.unflatten(torch.unflatten(x, rows + 1, (half, 2)), rows, (half, 2))
    return split.movedim((rows + 1, rows + 3), (0, 1))


def _inside(axis_: Axis, radius: int) -> range:
    pattern = axis(8 * BLOCK, 4 * BLOCK, radius, axis_.weights.device).weights[4]
    if axis_.weights.shape[1:] != pattern.shape:
        return range(0)
    found = (axis_.weights == pattern).all(2).all(1).nonzero().flatten().tolist()
    return range(found[0], found[-1] + 1) if found else range(0)


def _products(pieces: Sequence[Tensor], around: Tensor) -> Tensor:
    """Multiply matrices of blocks with what lies around them."""
    if len(pieces) == 1:
        return pieces[0] @ around
    batch, cols, _, channels = around.shape
    pixels = around.new_empty(batch, cols, BLOCK**2, channels)
    at = 0
    for piece in pieces:
        part = slice(at, at + piece.shape[1])
        torch.matmul(piece, around[:, part], out=pixels[:, part])
        at = part.stop
    return pixels
