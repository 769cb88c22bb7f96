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
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

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

    def cut(self, x: Tensor, dim: int) -> Tensor:
        """Coarse pixels of every block along a dimension: ``(..., blocks, ..., span)``.

        A view where blocks follow each other at even distances, as they do in a doubling.
        """
        margins = [0, 0] * (x.ndim - 1 - dim)
        before = max(-self.first[0], 0)
        after = max(self.first[-1] + self.span - x.shape[dim], 0)
        x = F.pad(x, (*margins, before, after))
        starts = [first + before for first in self.first]
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
            ``(..., block², taps²)``.
        rows, cols
            Bicubic weights of the same blocks, ``(..., reach, span)``, or ones that broadcast.

        Returns
        -------
        torch.Tensor
            ``(..., block², span²)``.
        """
        blocks, lead = self.blocks, kernels.shape[:-2]
        reach, taps = blocks.reach, blocks.taps
        banded = kernels.new_zeros(*lead, BLOCK**2, reach**2)
        blocks.band(banded).copy_(kernels.view(*lead, BLOCK, BLOCK, taps, taps))
        across = banded.view(*lead, BLOCK**2 * reach, reach) @ cols
        down = rows.transpose(-1, -2)[..., None, :, :]
        return (down @ across.view(*lead, BLOCK**2, reach, -1)).flatten(-2)

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
        cut = self.cols.cut(self.rows.cut(x, 1), 2)  # (B, rows, cols, C, span, span)
        done = []
        for row, pieces in enumerate(matrices):
            around = cut[:, row].permute(0, 1, 3, 4, 2).reshape(batch, blocks.cols, -1, channels)
            pixels = _products(pieces, around)
            done.append(pixels if finish is None else finish(pixels))
        return blocks.pixels(torch.stack(done, dim=1))


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
