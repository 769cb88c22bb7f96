"""The table of upsamplers, and what the head needs of one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor

from geoseg.errors import OptionError, WeightsError
from geoseg.model.checkpoint import read_state_dict
from geoseg.model.jbu import Jbu
from geoseg.model.learned_jbu import LearnedJbu

UPSAMPLERS = ("none", "jbu", "simfeatup", "featup")
"""``none`` is bilinear on logits; ``jbu`` needs no file; the other two need weights."""


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


def build_upsampler(
    name: str,
    *,
    weights: str | Path | None,
    embedding: int,
    std: Sequence[float],
    device: torch.device,
) -> Upsampler | None:
    """Turn a name and a weights file into an upsampler.

    Parameters
    ----------
    name
        One of `UPSAMPLERS`.
    weights
        Checkpoint for ``simfeatup`` and ``featup``, in the published format.
    embedding
        The model's embedding size D, which learned weights must match.
    std
        The model's normalisation, for ``jbu``.

    Returns
    -------
    Upsampler or None
        None for ``none``: logits are resized bilinearly.

    Raises
    ------
    OptionError
        If the name is unknown or its weights are not given.
    WeightsError
        If the file does not fit the name or the model.
    """
    if name not in UPSAMPLERS:
        raise OptionError(f"upsampler {name!r} is not known; choose from {', '.join(UPSAMPLERS)}")
    if name == "none":
        return None
    if name == "jbu":
        return Jbu(std).to(device)
    if weights is None:
        raise OptionError(
            f"upsampler {name} needs its weights: give --upsampler-weights FILE, "
            "or use jbu, which needs none"
        )
    learned = LearnedJbu(read_state_dict(weights), source=str(weights))
    if learned.kind != name:
        raise WeightsError(
            f"{weights} holds {learned.kind} weights; use --upsampler {learned.kind}"
        )
    if learned.channels != embedding:
        raise WeightsError(
            f"{weights} was made for {learned.channels} channels, but the model has {embedding}; "
            "upsampler weights belong to one model"
        )
    return learned.to(device)
