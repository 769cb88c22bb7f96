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
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 8
"""Side of the blocks: large enough for full matrix products, and 37 % of an 11 x 11 band useful."""
TOGETHER = 56
"""Blocks at a time: enough for few calls, few enough for the cache."""


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

    def some_rows(self) -> Iterator[range]:
        """Rows of blocks a few at a time: as many blocks as work together in the cache."""
        step = max(1, TOGETHER // self.cols)
        return (range(row, min(row + step, self.rows)) for row in range(0, self.rows, step))

    def centres(self, x: Tensor) -> Tensor:
        """``(B, H, W, C)`` to ``(B, rows, cols, block², C)``; zeros fill the last blocks."""
        x = self._filled(x)
        batch, channels = x.shape[0], x.shape[-1]
        x = x.view(batch, self.rows, BLOCK, self.cols, BLOCK, channels).transpose(2, 3)
        return x.reshape(batch, self.rows, self.cols, BLOCK * BLOCK, channels)

    def quartered(self, x: Tensor) -> Tensor:
        """``(B, H, W, C)`` to ``(B, rows, cols, 2, 2, block² / 4, C)``; zeros as in `centres`.

        Pixels of a block by whether their row and their column are even or odd. Those of a quarter
        have the same bicubic weights, each two pixels on moved by a coarse pixel.
        """
        half = BLOCK // 2
        x = self._filled(x)
        x = x.view(len(x), self.rows, half, 2, self.cols, half, 2, -1)
        return x.permute(0, 1, 4, 3, 6, 2, 5, 7).flatten(5, 6)

    def _filled(self, x: Tensor) -> Tensor:
        """``(B, H, W, C)`` with zeros up to whole blocks; itself if they are whole."""
        below, beside = self.rows * BLOCK - self.height, self.cols * BLOCK - self.width
        return F.pad(x, (0, 0, 0, beside, 0, below)) if below or beside else x

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
        """View of all blocks with their margins, ``(B, rows, cols, reach, reach, C)``."""
        blocks = margined.unfold(1, self.reach, BLOCK).unfold(2, self.reach, BLOCK)
        return blocks.permute(0, 1, 2, 4, 5, 3)

    def band(self, products: Tensor) -> Tensor:
        """Entries of ``(..., block², reach²)`` that pair a pixel with its own neighbours.

        Pixel ``(y, x)`` of a block and tap ``(dy, dx)`` meet at neighbour ``(y + dy, x + dx)``,
        so the band is a strided view ``(2, 2, ..., block / 2, block / 2, taps, taps)`` of the same
        memory. Pixels are as in `quartered`.
        """
        half, reach = BLOCK // 2, self.reach
        *lead, pixel, _ = products.stride()
        quarter = half**2 * pixel
        return products.as_strided(
            (2, 2, *products.shape[:-2], half, half, self.taps, self.taps),
            (
                *(2 * quarter + reach, quarter + 1, *lead),
                *(half * pixel + 2 * reach, pixel + 2, reach, 1),
            ),
        )

    def band_by_row(self, products: Tensor) -> Tensor:
        """The same of ``(..., reach, block², reach)``, rows of neighbours first.

        Pixels of the block are row by row there.
        """
        half = BLOCK // 2
        *lead, row, pixel, _ = products.stride()
        down = BLOCK * pixel + row  # to the next row of pixels and of neighbours
        return products.as_strided(
            (2, 2, *products.shape[:-3], half, half, self.taps, self.taps),
            (down, pixel + 1, *lead, 2 * down, 2 * (pixel + 1), row, 1),
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

    @functools.cached_property
    def inside(self) -> range:
        """Blocks that see no end of the image, if it doubles along this axis."""
        radius = (self.weights.shape[1] - BLOCK) // 2
        pattern = axis(8 * BLOCK, 4 * BLOCK, radius, self.weights.device).weights[4]
        if self.weights.shape[1:] != pattern.shape:
            return range(0)
        found = (self.weights == pattern).all(2).all(1).nonzero().flatten().tolist()
        return range(found[0], found[-1] + 1) if found else range(0)

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
        if step and starts == list(range(starts[0], starts[0] + step * len(starts), step)):
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

    def matrices(self, kernels: Tensor, rows: Tensor, cols: Tensor) -> Tensor:
        """Turn weights of fine neighbours into weights of coarse pixels.

        Parameters
        ----------
        kernels
            ``(2, 2, ..., block² / 4, taps²)``, pixels as in `Blocks.quartered`.
        rows, cols
            Bicubic weights of the same blocks, ``(..., reach, span)``, or ones that broadcast.

        Returns
        -------
        torch.Tensor
            ``(..., block², span²)``.
        """
        blocks, lead = self.blocks, kernels.shape[2:-2]
        reach, half = blocks.reach, BLOCK // 2
        banded = kernels.new_zeros(*lead, reach, BLOCK**2, reach)
        by_tap = kernels.view(*kernels.shape[:-2], half, half, blocks.taps, blocks.taps)
        blocks.band_by_row(banded).copy_(by_tap)
        across = torch.unflatten(banded.flatten(-3, -2) @ cols, -2, (reach, -1))
        both = torch.unflatten(rows.mT @ across.flatten(-2), -1, (BLOCK**2, -1))
        return both.transpose(-3, -2).flatten(-2)

    def spread(self, near: Tensor, matrices: Tensor) -> None:
        """Put weights of near coarse pixels into the matrices of blocks well inside.

        Parameters
        ----------
        near
            ``(2, 2, ..., block² / 4, near²)``, pixels as in `Blocks.quartered`.
        matrices
            Where they go, ``(..., block², span²)``; all else in it stays, zeros say.
        """
        lead, half = near.shape[2:-2], BLOCK // 2
        side = math.isqrt(near.shape[-1])
        span = side + half - 1
        row, col = BLOCK * span**2, span**2  # to the next row and column of pixels
        matrices.as_strided(
            (2, 2, *lead, half, half, side, side),
            (row, col, *matrices.stride()[:-2], 2 * row + span, 2 * col + 1, span, 1),
        ).copy_(near.view(2, 2, *lead, half, half, side, side))

    def empty(self, *lead: int) -> Tensor:
        """Matrices of so many blocks, ``(..., block², span²)``, all zeros."""
        span = self.rows.span * self.cols.span
        return self.rows.weights.new_zeros(*lead, BLOCK**2, span)

    def apply(
        self,
        matrices: Iterable[Tensor],
        x: Tensor,
        finish: Callable[[Tensor], Tensor] | None = None,
    ) -> Tensor:
        """Upsample coarse pixels ``(B, h, w, C)`` to fine ones ``(B, H, W, C')``.

        Parameters
        ----------
        matrices
            Of some rows of blocks at a time, ``(B, rows, cols, block², span²)``.
        finish
            Works on the fine pixels of those rows, ``(B, rows, cols, block², C)``, while they are
            in the cache; only what it returns, ``(B, rows, cols, block², C')``, is kept.
        """
        batch, channels = x.shape[0], x.shape[-1]
        blocks = self.blocks
        margins = (*self.cols.margins(x.shape[2]), *self.rows.margins(x.shape[1]))
        x = F.pad(x, (0, 0, *margins))
        cut = self.cols.cut(self.rows.cut(x, 1), 2)  # (B, rows, cols, C, span, span)
        done, row = [], 0
        for some in matrices:
            rows = some.shape[1]
            around = cut[:, row : row + rows].permute(0, 1, 2, 4, 5, 3)
            pixels = some @ around.reshape(batch, rows, blocks.cols, -1, channels)
            done.append(pixels if finish is None else finish(pixels))
            row += rows
        return blocks.pixels(torch.cat(done, dim=1))
