"""Learned joint bilateral upsampling: SimFeatUp's JBU-One and FeatUp's JBU-Stack.

For one window the guidance image fixes a linear operator ``U`` from the patch grid to pixels, the
same for every channel. The operator is made from the guidance and applied to as few channels as
the logits need (see `geoseg.inference.head`).
"""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from geoseg.errors import OptionError, WeightsError
from geoseg.model.checkpoint import StateDict, read_state_dict
from geoseg.model.upsampling.base import Fit
from geoseg.model.upsampling.blocks import StepGeometry
from geoseg.model.upsampling.learned_step import PlainStep, StepWeights

FUSED = True
"""Whether a GPU may take a step in one kernel, see `geoseg.model.upsampling.fused`: the one switch.

Without it, or without Triton, the plain steps run there as on a CPU."""


class Step(Protocol):
    """One doubling of the operator, whatever computes it."""

    def apply(self, x: Tensor, finish: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Upsample ``(B, h, w, C)`` to ``(B, H, W, C)``."""


@dataclass(frozen=True)
class LearnedUpsampling:
    """The operator of one batch of windows; linear, the same for every channel."""

    steps: tuple[Step, ...]

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
    ) -> Step:
        """Make one step of the operator, from one size of the ladder to the next."""
        weights = self.weights(index)
        pooled = F.adaptive_avg_pool2d(guidance, fine).permute(0, 2, 3, 1).contiguous()
        if FUSED and guidance.device.type == "cuda" and importlib.util.find_spec("triton"):
            from geoseg.model.upsampling import fused

            if fused.takes(fine, weights.radius, guidance.device):
                return fused.FusedStep(weights, pooled)
        geometry = StepGeometry.of(fine, coarse, weights.radius, guidance.device)
        return PlainStep(geometry, weights, pooled)

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


@dataclass(frozen=True)
class SimFeatUp:
    """SegEarth-OV's upsampler, one set of weights for all steps (JBU-One)."""

    def build(self, fit: Fit) -> LearnedJbu:
        """Read the weights."""
        return _fitting("simfeatup", fit)


@dataclass(frozen=True)
class FeatUp:
    """FeatUp's upsampler, a set of weights a step (JBU-Stack)."""

    def build(self, fit: Fit) -> LearnedJbu:
        """Read the weights."""
        return _fitting("featup", fit)


def _fitting(name: str, fit: Fit) -> LearnedJbu:
    weights = fit.weights
    if weights is None:
        raise OptionError(
            f"upsampler {name} needs its weights: give --upsampler-weights FILE, "
            "or use jbu, which needs none"
        )
    learned = LearnedJbu(read_state_dict(weights), source=weights)
    if learned.kind != name:
        raise WeightsError(
            f"{weights} holds {learned.kind} weights; use --upsampler {learned.kind}"
        )
    if learned.channels != fit.embedding:
        raise WeightsError(
            f"{weights} was made for {learned.channels} channels, but the model has "
            f"{fit.embedding}; upsampler weights belong to one model"
        )
    return learned.to(fit.device)


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
