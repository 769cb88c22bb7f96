"""What happens to the logits of one window before windows are averaged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from geoseg.model.vision import DenseFeatures


class WindowStep(Protocol):
    """Works on the logits of windows, each by itself; a frozen dataclass.

    It may change the logits in place, and how many there are a pixel.
    """

    def __call__(
        self, logits: Tensor, cls: Tensor, features: DenseFeatures, guidance: Tensor
    ) -> Tensor:
        """Return other logits.

        Parameters
        ----------
        logits
            ``(B, H, W, Q)`` float32 cosines.
        cls
            ``(B, Q)``: cosines of the windows' CLS tokens.
        features
            What the logits were made of.
        guidance
            ``(B, 3, H, W)`` normalised windows.
        """


@dataclass(frozen=True)
class ClsBias:
    """Subtract the window's global logits (SegEarth-OV; Li et al., CVPR 2025): always the first."""

    weight: float
    """λ ≥ 0: logits become patch - λ · cls."""

    def __call__(
        self, logits: Tensor, cls: Tensor, features: DenseFeatures, guidance: Tensor
    ) -> Tensor:
        """Subtract it everywhere in the window."""
        return logits.sub_(self.weight * cls[:, None, None, :]) if self.weight else logits


@dataclass(frozen=True)
class AlsoCls:
    """Keep the window's global logits beside those of its pixels: ``(B, H, W, 2 Q)``.

    Averaging windows keeps ``patch - λ · cls``, so that one encoding serves every λ.
    """

    def __call__(
        self, logits: Tensor, cls: Tensor, features: DenseFeatures, guidance: Tensor
    ) -> Tensor:
        """Append them to every pixel."""
        return torch.cat([logits, cls[:, None, None, :].expand_as(logits)], dim=-1)
