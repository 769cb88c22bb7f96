"""What the head needs of an upsampler, and how one is built."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor


class Upsampling(Protocol):
    """A linear map from the patch grid to the window's pixels, fixed by its guidance."""

    def __call__(self, x: Tensor) -> Tensor:
        """Upsample ``(B, C, h, w)`` to ``(B, H, W, C)``."""


class Upsampler(Protocol):
    """Makes the linear map from guidance; used as it is, cosine logits go through the map."""

    @property
    def min_grid(self) -> int:
        """Fewest patches a window needs on each side."""

    def operator(self, guidance: Tensor, grid: tuple[int, int]) -> Upsampling:
        """Make the map from normalised windows ``(B, 3, H, W)`` and the patch grid."""


class FeatureUpsampling(Protocol):
    """An `Upsampling` whose pixels can be worked on while they are in the cache."""

    def __call__(self, x: Tensor, finish: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Upsample; ``finish`` maps some pixels at a time, ``(B, ..., C)`` to ``(B, ..., C')``."""


@runtime_checkable
class FeatureUpsampler(Protocol):
    """An upsampler of features, which are normalised after it, with a last step on channels."""

    @property
    def min_grid(self) -> int:
        """Fewest patches a window needs on each side."""

    def operator(self, guidance: Tensor, grid: tuple[int, int]) -> FeatureUpsampling:
        """Make the map from normalised windows ``(B, 3, H, W)`` and the patch grid."""

    def fold(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Apply the last step to tokens ``(B, N, D)``; return them and what to add to pixels."""


@dataclass(frozen=True)
class Fit:
    """What an upsampler is built for."""

    embedding: int
    """Length D of the model's embedding, which learned weights must match."""
    std: Sequence[float]
    """Per-channel standard deviation of the model's normalisation."""
    device: torch.device
    weights: str | None = None
    """Checkpoint of a learned upsampler, in the published format."""


class UpsamplerMethod(Protocol):
    """A line in `geoseg.methods.UPSAMPLERS`; a frozen dataclass."""

    def build(self, fit: Fit) -> Upsampler | None:
        """Make the upsampler; None resizes logits bilinearly.

        Raises
        ------
        OptionError
            If it needs weights and there are none.
        WeightsError
            If they do not fit the method or the model.
        """


@dataclass(frozen=True)
class Bilinear:
    """Logits are resized bilinearly."""

    def build(self, fit: Fit) -> None:
        """Nothing is needed."""
