"""Learned joint bilateral upsampling: SimFeatUp's JBU-One and FeatUp's JBU-Stack.

For one window the guidance image fixes a linear operator ``U`` from the patch grid to pixels, the
same for every channel. The operator is made from the guidance and applied to as few channels as
the logits need (see `geoseg.inference.head`).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from geoseg.errors import WeightsError
from geoseg.model.blocks import BLOCK, Blocks, StepGeometry, doubling
from geoseg.model.checkpoint import StateDict
from geoseg.model.edges import EdgeWeights


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
        """Range features ``(..., 32)`` of guidance ``(..., 3)``."""
        return F.linear(F.gelu(F.linear(pixels, *self.range_first)), *self.range_second)

    def kernels(self, blocks: Blocks, centres: Tensor, around: Tensor, guidance: Tensor) -> Kernels:
        """Weights of the neighbours of each pixel of some blocks.

        Parameters
        ----------
        centres
            Range features of the blocks times the scale, ``(..., 2, 2, block² / 4, 32)`` as from
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

    @property
    def scale(self) -> Tensor:
        """Factor of the products of range features, before the softmax."""
        return self.temperature.exp().clamp(1e-4, 1e4)

    @functools.cached_property
    def log_spatial(self) -> Tensor:
        """``(taps²,)``: logarithm of the spatial Gaussian, up to a constant."""
        axis = torch.linspace(-1, 1, 2 * self.radius + 1, device=self.sigma.device)
        squared = axis[:, None] ** 2 + axis**2
        return (-squared / (2 * self.sigma**2)).flatten()

    @functools.cached_property
    def edges(self) -> EdgeWeights:
        """The same weights, for pixels along the border of a window."""
        return EdgeWeights(self)

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
class WindowStep:
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
        both = not torch.is_grad_enabled() and len(inside) >= _MANY
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
        centres = blocks.quartered(weights.scale * features)
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


_MANY = 6
"""Blocks inside from which on they are worth calls of their own."""


@dataclass(frozen=True)
class LearnedUpsampling:
    """The operator of one batch of windows; linear, the same for every channel."""

    steps: tuple[WindowStep, ...]

    def __call__(self, x: Tensor, finish: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Upsample ``(B, C, h, w)`` to channels-last pixels ``(B, H, W, C)``.

        ``finish`` maps some pixels at a time, ``(B, ..., C)`` to ``(B, ..., C')``.
        """
        x = x.permute(0, 2, 3, 1)
        for step in self.steps[:-1]:
            x = step.apply(x)
        return self.steps[-1].apply(x, finish)


class LearnedJbu:
    """SimFeatUp's JBU-One and FeatUp's JBU-Stack.

    Four ×2 steps, each weighing neighbours by learned range features of the guidance; JBU-One
    shares one set of weights, JBU-Stack has four. A final 1 x 1 convolution acts on channels only
    and so is folded into the tokens (see `fold`). For patch sizes other than 16 the ladder has
    ``ceil(log2(patch))`` steps and its last step lands on the window's size.

    Fu et al., "FeatUp", ICLR 2024; Li et al., "SegEarth-OV", CVPR 2025.

    Parameters
    ----------
    state
        Tensors under the published names, with or without the ``upsampler.`` prefix.
    source
        File name for messages.

    Raises
    ------
    WeightsError
        If the tensors are not those of a JBU-One or JBU-Stack upsampler.
    """

    def __init__(self, state: StateDict, *, source: str) -> None:
        prefix = "upsampler."
        if any(name.startswith(prefix) for name in state):
            state = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        state = {name: value.float() for name, value in state.items()}
        names = ["up"] if "up.range_temp" in state else [f"up{i}" for i in range(1, 5)]
        try:
            self._weights = tuple(_read_step(state, name) for name in names)
            self._conv = _matrix(state, "fixup_proj.1")
        except (KeyError, ValueError, IndexError) as error:
            raise WeightsError(
                f"{source} does not hold SimFeatUp (JBU-One) or FeatUp (JBU-Stack) weights: "
                f"{error} is missing or has another shape"
            ) from error
        self.kind = "simfeatup" if names == ["up"] else "featup"
        self.channels = int(self._conv[0].shape[0])
        self.source = source

    @property
    def min_grid(self) -> int:
        """Fewest patches a side: mirroring needs ``2 * patches > radius``."""
        return self._weights[0].radius // 2 + 1

    def to(self, device: torch.device) -> LearnedJbu:
        """Move the weights; returns itself."""
        self._weights = tuple(weights.to(device) for weights in self._weights)
        self._conv = (self._conv[0].to(device), self._conv[1].to(device))
        return self

    def weights(self, step: int) -> StepWeights:
        """Weights of a step, counted from the coarsest."""
        return self._weights[min(step, len(self._weights) - 1)]

    @staticmethod
    def ladder(size: tuple[int, int], grid: tuple[int, int]) -> list[tuple[int, int]]:
        """Sizes of the patch grid and after every step, coarsest first."""
        patch = max(size[0] / grid[0], size[1] / grid[1])
        count = max(math.ceil(math.log2(patch)), 1)
        return [(grid[0] * 2**i, grid[1] * 2**i) for i in range(count)] + [size]

    def operator(self, guidance: Tensor, grid: tuple[int, int]) -> LearnedUpsampling:
        """Make the operator from normalised windows ``(B, 3, H, W)`` and the patch grid."""
        sizes = self.ladder((guidance.shape[2], guidance.shape[3]), grid)
        return LearnedUpsampling(
            tuple(self.step(i, guidance, *sizes[i : i + 2]) for i in range(len(sizes) - 1))
        )

    def step(
        self, index: int, guidance: Tensor, coarse: tuple[int, int], fine: tuple[int, int]
    ) -> WindowStep:
        """Make one step of the operator, from one size of the ladder to the next."""
        weights = self.weights(index)
        geometry = StepGeometry.of(fine, coarse, weights.radius, guidance.device)
        pooled = F.adaptive_avg_pool2d(guidance, fine).permute(0, 2, 3, 1).contiguous()
        return WindowStep(geometry, weights, pooled)

    def fold(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Apply the final convolution to tokens ``(B, N, D)`` instead of pixels.

        Returns
        -------
        tuple
            ``A = X (I + 0.1 Wᵀ)`` and the constant ``c = 0.1 b``, to be added after upsampling:
            the operator's rows do not sum to one, so ``c`` may not go through it.
        """
        weight, bias = self._conv
        return tokens + 0.1 * F.linear(tokens, weight), 0.1 * bias


def _read_step(state: StateDict, name: str) -> StepWeights:
    return StepWeights(
        _matrix(state, f"{name}.range_proj.0"),
        _matrix(state, f"{name}.range_proj.3"),
        _matrix(state, f"{name}.fixup_proj.0"),
        _matrix(state, f"{name}.fixup_proj.3"),
        state[f"{name}.range_temp"],
        state[f"{name}.sigma_spatial"],
    )


def _matrix(state: StateDict, name: str) -> tuple[Tensor, Tensor]:
    """Weights of a 1 x 1 convolution as a matrix, and its bias."""
    weight = state[f"{name}.weight"]
    if weight.ndim != 4 or weight.shape[2:] != (1, 1):
        raise ValueError(f"{name}.weight")
    return weight[:, :, 0, 0].contiguous(), state[f"{name}.bias"]
