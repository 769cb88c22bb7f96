"""From a window's tokens to its logits, and from averaged logits to labels.

Everything here is in pixels-first order, ``(..., Q)`` last, because the products over queries and
the softmax run along that axis.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from geoseg.model.jbu import LearnedJbu
from geoseg.model.upsampling import Upsampler
from geoseg.model.vision import DenseFeatures

_EPS = 1e-12


def window_logits(
    features: DenseFeatures,
    text: Tensor,
    *,
    upsampler: Upsampler | None,
    guidance: Tensor,
    cls_bias: float,
) -> Tensor:
    """Cosine logits of a batch of windows, minus the CLS bias (SegEarth-OV; Li et al., CVPR 2025).

    Parameters
    ----------
    features
        Tokens of the windows.
    text
        ``(Q, D)`` unit text embeddings.
    upsampler
        None resizes logits bilinearly.
    guidance
        ``(B, 3, H, W)`` normalised windows, the ones that were encoded.
    cls_bias
        λ ≥ 0: the window's unit CLS token times each query, times λ, is subtracted everywhere.

    Returns
    -------
    torch.Tensor
        ``(B, H, W, Q)`` float32.
    """
    if upsampler is None or upsampler.mixes == "logits":
        logits = _upsample_cosines(features, text, upsampler, guidance)
    else:
        assert isinstance(upsampler, LearnedJbu)
        logits = _upsample_features(features, text, upsampler, guidance)
    if cls_bias:
        bias = F.normalize(features.cls, dim=-1) @ text.T
        logits = logits - cls_bias * bias[:, None, None, :]
    return logits


def _as_grid(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """``(B, N, C)`` to ``(B, C, h, w)``."""
    return tokens.transpose(1, 2).reshape(len(tokens), tokens.shape[2], *grid)


def _upsample_cosines(
    features: DenseFeatures, text: Tensor, upsampler: Upsampler | None, guidance: Tensor
) -> Tensor:
    cosines = _as_grid(F.normalize(features.patches, dim=-1) @ text.T, features.grid)
    if upsampler is None:
        size = (guidance.shape[2], guidance.shape[3])
        resized = F.interpolate(cosines, size=size, mode="bilinear", align_corners=False)
        return resized.permute(0, 2, 3, 1)
    return upsampler.operator(guidance, features.grid)(cosines)


def _upsample_features(
    features: DenseFeatures, text: Tensor, upsampler: LearnedJbu, guidance: Tensor
) -> Tensor:
    """Cosines of upsampled features, without upsampling the features.

    The operator ``U`` is linear and the same for all channels, so with the folded tokens
    ``A = C Vᵀ`` (V orthonormal) the pixel features are ``z = u C Vᵀ + c``. Upsampling the r
    columns of ``C`` gives the numerators ``(u C)(T V)ᵀ + T c`` and the norms
    ``‖u C‖² + 2 (u C)(Vᵀ c) + ‖c‖²`` exactly; r is at most the number of patches.
    """
    folded, constant = upsampler.fold(features.patches)
    coordinates, basis = _coordinates(folded)
    pixels = upsampler.operator(guidance, features.grid)(_as_grid(coordinates, features.grid))
    flat = pixels.flatten(1, 2)  # (B, P, r)
    numerators = flat @ (text @ basis).transpose(1, 2) + text @ constant
    shift = constant @ basis  # (B, r)
    squared = (flat * (flat + 2 * shift[:, None])).sum(-1) + constant @ constant
    cosines = numerators * squared.clamp_min(_EPS).rsqrt()[..., None]
    return cosines.view(*pixels.shape[:3], -1)


def _coordinates(folded: Tensor) -> tuple[Tensor, Tensor]:
    """Split ``(B, N, D)`` into coordinates ``(B, N, r)`` and an orthonormal basis ``(B, D, r)``."""
    patches, channels = folded.shape[1:]
    if patches >= channels:
        return folded, torch.eye(channels, device=folded.device).expand(len(folded), -1, -1)
    basis, triangle = torch.linalg.qr(folded.transpose(1, 2))
    return triangle.transpose(1, 2), basis


@dataclass(frozen=True)
class Decision:
    """How averaged logits become classes."""

    query_classes: Tensor
    """``(Q,)`` int64: class of each query."""
    classes: int
    logit_scale: float
    thresholds: Tensor | None
    """``(K,)`` least probability for a class to hold; None for no threshold."""
    background: int
    """Class of pixels below the threshold."""
    offsets: Tensor | None = None
    """``(Q,)`` added to the logits before the scale, or None."""

    def scores(self, logits: Tensor) -> Tensor:
        """Class scores ``(..., K)`` in [0, 1]: softmax over queries, then each class's best."""
        if self.offsets is not None:
            logits = logits + self.offsets
        probabilities = (self.logit_scale * logits).softmax(-1)
        if len(self.query_classes) == self.classes:
            return probabilities
        index = self.query_classes.expand(probabilities.shape)
        scores = probabilities.new_zeros(*probabilities.shape[:-1], self.classes)
        return scores.scatter_reduce(-1, index, probabilities, "amax")

    def labels(self, scores: Tensor) -> tuple[Tensor, Tensor]:
        """Class index and winning score of each pixel, the first class on ties."""
        best, labels = scores.max(-1)
        if self.thresholds is not None:
            labels = labels.where(best >= self.thresholds[labels], self.background)
        return labels, best


def resize_logits(logits: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize ``(H, W, Q)`` logits bilinearly (half-pixel centres) to another size."""
    planes = logits.permute(2, 0, 1)[None]
    resized = F.interpolate(planes, size=size, mode="bilinear", align_corners=False)
    return resized[0].permute(1, 2, 0)
