"""One learned joint bilateral step: its weights, and the kernels they make of guidance.

Fu et al., "FeatUp", ICLR 2024 (methods: JBULearnedRange).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from geoseg.model.upsampling.blocks import BLOCK, Blocks, StepGeometry, doubling


@dataclass(frozen=True)
class StepWeights:
    """Weights of one learned ×2 step (methods: JBULearnedRange)."""

    range_first: tuple[Tensor, Tensor]
    range_second: tuple[Tensor, Tensor]
    fixup_first: tuple[Tensor, Tensor]
    fixup_second: tuple[Tensor, Tensor]
    temperature: Tensor
    sigma: Tensor

    @property
    def radius(self) -> int:
        """Reach of the neighbourhood."""
        return (math.isqrt(self.fixup_second[0].shape[0]) - 1) // 2

    def to(self, device: torch.device) -> StepWeights:
        """Return a copy on another device."""

        def move(pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            return pair[0].to(device), pair[1].to(device)

        return StepWeights(
            move(self.range_first),
            move(self.range_second),
            move(self.fixup_first),
            move(self.fixup_second),
            self.temperature.to(device),
            self.sigma.to(device),
        )

    def features(self, pixels: Tensor) -> Tensor:
        """Range features ``(..., 32)`` of guidance ``(..., 3)``.

        The product of two pixels' is the score before the softmax: each has half of the scale.
        """
        return F.linear(F.gelu(F.linear(pixels, *self.range_first)), *self._range_scaled)

    @functools.cached_property
    def _range_scaled(self) -> tuple[Tensor, Tensor]:
        half = self.temperature.exp().clamp(1e-4, 1e4).sqrt()
        return half * self.range_second[0], half * self.range_second[1]

    def kernels(self, blocks: Blocks, centres: Tensor, around: Tensor, guidance: Tensor) -> Kernels:
        """Weights of the neighbours of each pixel of some blocks.

        Parameters
        ----------
        centres
            Range features of the blocks, ``(..., 2, 2, block² / 4, 32)`` as from
            `Blocks.quartered`.
        around
            Range features with margins, ``(..., reach, reach, 32)``.
        guidance
            ``(..., 2, 2, block² / 4, 4)`` from `with_one`.
        """
        band = blocks.band(centres.flatten(-4, -2) @ around.flatten(-3, -2).mT)
        scores = band.reshape(*band.shape[:-4], BLOCK**2 // 4, -1)
        # Softmax, times the spatial Gaussian, renormalised: one softmax with its logarithm added.
        shares = scores.add_(self.log_spatial).softmax(-1)
        both = torch.cat([shares, guidance.movedim((-4, -3), (0, 1))], dim=-1)
        hidden = F.gelu(both @ self.fixup_joint.mT)
        return Kernels(self, shares, hidden)

    @functools.cached_property
    def fixup_joint(self) -> Tensor:
        """The fix-up's first layer with its bias as weights of a one, ``(taps², taps² + 4)``."""
        weight, bias = self.fixup_first
        return torch.cat([weight, bias[:, None]], dim=1)

    @functools.cached_property
    def log_spatial(self) -> Tensor:
        """``(taps²,)``: logarithm of the spatial Gaussian, up to a constant."""
        axis = torch.linspace(-1, 1, 2 * self.radius + 1, device=self.sigma.device)
        squared = axis[:, None] ** 2 + axis**2
        return (-squared / (2 * self.sigma**2)).flatten()

    @functools.cached_property
    def near(self) -> Tensor:
        """The fix-up's second layer and bicubic resizing in one, for blocks well inside an image.

        ``(2, 2, 2 taps², near²)``: what turns shares and hidden units of a pixel into weights of
        near coarse pixels, for each quarter of the pixels (see `Blocks.quartered`).
        """
        bicubic = doubling(self.radius, self.sigma.device)
        joint = torch.einsum("pay,qbx->pqyxab", bicubic, bicubic).flatten(4).flatten(2, 3)
        weight, bias = self.fixup_second
        constant = 0.1 * (joint @ bias)  # in the weights of the shares, whose sum is one
        return torch.cat([joint + constant[..., None], 0.1 * (joint @ weight)], -1).mT.contiguous()


def with_one(guidance: Tensor) -> Tensor:
    """Guidance ``(..., 3)`` with a fourth channel of ones, for the bias of the fix-up."""
    return F.pad(guidance, (0, 1), value=1.0)


@dataclass(frozen=True, eq=False)
class Kernels:
    """Neighbour weights of some blocks, before the fix-up's second layer.

    Pixels are in quarters, see `Blocks.quartered`.
    """

    weights: StepWeights
    shares: Tensor
    """``(2, 2, ..., block² / 4, taps²)``: softmax over the neighbours."""
    hidden: Tensor
    """``(2, 2, ..., block² / 4, taps²)``: the fix-up's hidden units."""

    def __getitem__(self, cols: slice) -> Kernels:
        """Return those of some of the blocks, ``(2, 2, ..., cols, block² / 4, taps²)``."""
        chosen = (..., cols, slice(None), slice(None))
        return Kernels(self.weights, self.shares[chosen], self.hidden[chosen])

    def values(self) -> Tensor:
        """Return the weights themselves, of the same shape as the shares."""
        return self.shares.add(F.linear(self.hidden, *self.weights.fixup_second), alpha=0.1)

    def matrices(self, geometry: StepGeometry, rows: Tensor, cols: Tensor) -> Tensor:
        """Weights of coarse pixels, ``(..., block², span²)``; see `StepGeometry.matrices`."""
        return geometry.matrices(self.values(), rows, cols)

    def near(self) -> Tensor:
        """Weights of near coarse pixels for blocks well inside; see `StepGeometry.spread`."""
        both = torch.cat([self.shares, self.hidden], dim=-1)
        flat = both.flatten(2, -2) @ self.weights.near
        return flat.view(*both.shape[:-1], flat.shape[-1])


@dataclass(frozen=True, eq=False)
class PlainStep:
    """A step whose kernels are made for its own windows.

    They are made for some rows of blocks at a time while they are used, so that they stay in the
    cache and are never held whole.
    """

    geometry: StepGeometry
    weights: StepWeights
    guidance: Tensor
    """``(B, H, W, 3)`` at this step's resolution."""

    def apply(self, x: Tensor, finish: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Upsample ``(B, h, w, C)`` to ``(B, H, W, C)``; see `StepGeometry.apply`."""
        return self.geometry.apply(self.matrices(), x, finish)

    def matrices(self) -> Iterator[Tensor]:
        """Weights of coarse pixels; see `StepGeometry.apply`."""
        geometry = self.geometry
        inside_rows, inside = geometry.rows.inside, geometry.cols.inside
        # Trained through, one way is enough; with few blocks inside, one is faster.
        both = not torch.is_grad_enabled() and len(inside) >= _BLOCKS_WORTH_A_CALL
        left, right = slice(0, inside.start), slice(inside.stop, None)
        middle = slice(inside.start, inside.stop)
        across = geometry.cols.weights
        for rows, kernels in self._some_kernels():
            down = geometry.rows.weights[rows.start : rows.stop, None]
            if not both or rows.start not in inside_rows or rows[-1] not in inside_rows:
                yield kernels.matrices(geometry, down, across)
                continue
            matrices = geometry.empty(*kernels.shares.shape[2:-2])
            geometry.spread(kernels[middle].near(), matrices[:, :, middle])
            for side in (left, right):
                matrices[:, :, side] = kernels[side].matrices(geometry, down, across[side])
            yield matrices

    def _some_kernels(self) -> Iterator[tuple[range, Kernels]]:
        blocks, weights = self.geometry.blocks, self.weights
        features = weights.features(self.guidance)
        centres = blocks.quartered(features)
        guidance = blocks.quartered(with_one(self.guidance))
        around = blocks.neighbourhoods(blocks.mirrored(features))
        for rows in blocks.some_rows():
            some = (slice(None), slice(rows.start, rows.stop))
            yield rows, weights.kernels(blocks, centres[some], around[some], guidance[some])

    def kernels(self) -> Tensor:
        """Neighbour weights of every pixel, ``(B, H, W, taps²)``: for looking at."""
        rows = torch.cat([kernels.values() for _, kernels in self._some_kernels()], dim=3)
        half = BLOCK // 2  # (2, 2, B, rows, cols, block² / 4, taps²)
        ordered = torch.unflatten(rows, -2, (half, half)).permute(2, 3, 4, 5, 0, 6, 1, 7)
        return self.geometry.blocks.pixels(ordered.flatten(3, 6))


_BLOCKS_WORTH_A_CALL = 6
"""Blocks inside from which on they are worth calls of their own."""
