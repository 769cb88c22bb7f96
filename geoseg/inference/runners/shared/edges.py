"""Kernels of the pixels along a window's border, where neighbours are mirrored.

Only pixels nearer to the border than the radius have mirrored neighbours. They are taken in strips
along the four sides of a square, all turned so that the border is above them::

         mirrored  ........................      radius lines of neighbours
    -- border ---  ------------------------
           strip   pppppppp|pppppppp|ppppp..     radius lines of pixels, a block's width at a time
                   ........................      radius lines of neighbours

All else is as for pixels inside of a window: scores, softmax and fix-up, then mirroring and bicubic
resizing as one small matrix, which here depends on how far from the border a pixel is.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from numpy.lib.stride_tricks import sliding_window_view
from torch import Tensor

from geoseg.model.upsampling.blocks import BLOCK, axis, doubling

if TYPE_CHECKING:
    from geoseg.model.upsampling.learned_step import StepWeights


def turned(x: npt.NDArray[Any], depth: int) -> npt.NDArray[Any]:
    """Cut the outermost rows of a square's four sides out, ``(4, depth, side)``, border first."""
    return np.stack([part for y in (x, x.T) for part in (y[:depth], y[::-1][:depth])])


@dataclass(frozen=True)
class _Strips:
    """Where the pixels of strips and their neighbours are in a square with margins.

    All are numbers of its pixels, row by row.
    """

    around: Tensor
    """``(4, blocks, 3 radius * reach)``: neighbours of a block's pixels, the border mirrored."""
    centres: Tensor
    """``(4, blocks, radius * block)``: even and odd places along the border, in every row."""

    @classmethod
    @functools.lru_cache(maxsize=16)
    def of(cls, side: int, radius: int, device: torch.device) -> _Strips:
        """For a square of whole blocks."""
        wide = side + 2 * radius
        numbers = turned(np.arange(wide**2).reshape(wide, wide), 3 * radius)[:, radius:]
        mirrored = np.concatenate([numbers[:, radius:0:-1], numbers], axis=1)
        around = sliding_window_view(mirrored, BLOCK + 2 * radius, axis=2)[:, :, ::BLOCK]
        centres = numbers[:, :radius, radius:-radius].reshape(4, radius, -1, BLOCK // 2, 2)
        tables = (around.transpose(0, 2, 1, 3), centres.transpose(0, 2, 1, 4, 3))
        return cls(
            *(torch.from_numpy(x.reshape(4, side // BLOCK, -1).copy()).to(device) for x in tables)
        )


class EdgeWeights:
    """What turns guidance along a border into weights of coarse pixels.

    Parameters
    ----------
    weights
        Weights of the step.
    """

    def __init__(self, weights: StepWeights) -> None:
        self._weights = weights
        radius, device = weights.radius, weights.sigma.device
        taps = 2 * radius + 1
        # The tap of the step that is each tap of a turned strip.
        numbers = np.arange(taps**2).reshape(taps, taps)
        order = torch.from_numpy(turned(numbers, taps).reshape(4, -1)).to(device)
        weight = weights.fixup_joint
        guided = torch.arange(taps**2, weight.shape[1], device=device).expand(4, -1)
        self._first = weight[:, torch.cat([order, guided], 1)].permute(1, 2, 0).contiguous()
        weight, bias = weights.fixup_second
        self._second = 0.1 * weight[order].mT
        self._second_bias = 0.1 * bias[order][:, None]
        inner = axis(8 * BLOCK, 4 * BLOCK, radius, device).weights
        along = doubling(radius, device)
        self._span, self._near = inner.shape[2], along.shape[2]
        resizing, self._first_seen = [], []
        for end in (inner[0], inner[-1].flip(0)):
            away = torch.stack([end[y : y + taps] for y in range(radius)])
            seen = (away != 0).any(1).any(0).nonzero().flatten().tolist()
            away = away[..., seen[0] : seen[-1] + 1]
            self._first_seen.append(seen[0])
            resizing.append(torch.einsum("yps,qan->yqpasn", away, along).flatten(4).flatten(2, 3))
        self._seen = away.shape[2]
        # (4, radius, 2, taps², seen * near): of pixels at even and odd places along the border.
        self._resizing = torch.stack(2 * resizing)

    def matrices(self, margined: Tensor, guidance: Tensor) -> Tensor:
        """Weights of the coarse pixels of each block that a strip passes through.

        Parameters
        ----------
        margined
            ``(side + 2 radius, side + 2 radius, 32)`` range features of a square of whole blocks
            and of what lies around it.
        guidance
            ``(side + 2 radius, side + 2 radius, 4)`` from `with_one`.

        Returns
        -------
        torch.Tensor
            ``(4, blocks, radius, block, span²)``: for every side and block of it, lines of pixels
            along it. Sides are top, bottom, left and right; lines and coarse pixels are in the
            image's order, not turned.
        """
        radius = self._weights.radius
        strips = _Strips.of(len(margined) - 2 * radius, radius, margined.device)
        shares = self._shares(margined, strips)
        sides, _, _, blocks, half = shares.shape[:5]
        along = _taken(guidance, strips.centres).view(sides, blocks, radius, 2, half, -1)
        both = torch.cat([shares, along.permute(0, 2, 3, 1, 4, 5)], dim=-1)
        hidden = F.gelu(both.flatten(1, 4) @ self._first)
        values = torch.baddbmm(self._second_bias, hidden, self._second).add_(shares.flatten(1, 4))
        near = values.view(sides, radius, 2, blocks * half, -1) @ self._resizing
        return self._spread(near.view(*shares.shape[:5], self._seen, self._near))

    def _shares(self, margined: Tensor, strips: _Strips) -> Tensor:
        """Softmax over neighbours, ``(4, radius, 2, blocks, block / 2, taps²)``."""
        radius, half = self._weights.radius, BLOCK // 2
        taps, reach, tall = 2 * radius + 1, BLOCK + 2 * radius, 3 * radius
        products = _taken(margined, strips.centres) @ _taken(margined, strips.around).mT
        # Pixel (y, x) and tap (dy, dx) meet at neighbour (y + dy, x + dx) of tall x reach.
        pixel = tall * reach
        band = products.as_strided(
            (*products.shape[:2], radius, 2, half, taps, taps),
            (
                *products.stride()[:2],
                *(BLOCK * pixel + reach, half * pixel + 1, pixel + 2, reach, 1),
            ),
        )
        scores = band.permute(0, 2, 3, 1, 4, 5, 6).flatten(5)
        return scores.add_(self._weights.log_spatial).softmax(-1)

    def _spread(self, near: Tensor) -> Tensor:
        """``(4, radius, 2, blocks, block / 2, seen, near)`` to matrices, see above."""
        sides, radius, _, blocks = near.shape[:4]
        span = self._span
        matrices = near.new_zeros(sides, blocks, radius, BLOCK, span**2)
        _, block, line, pixel, _ = matrices.stride()
        for side, (weights, of_side) in enumerate(zip(near, matrices, strict=True)):
            away, along = (span, 1) if side < 2 else (1, span)
            of_side.as_strided(
                weights.shape,
                (line, pixel, block, 2 * pixel + along, away, along),
                of_side.storage_offset() + self._first_seen[side % 2] * away,
            ).copy_(weights.flip(0) if side % 2 else weights)
        return matrices


def _taken(x: Tensor, places: Tensor) -> Tensor:
    """Pixels of ``(side, side, C)`` by their numbers, ``(..., C)``."""
    return x.flatten(0, 1).index_select(0, places.flatten()).view(*places.shape, -1)
