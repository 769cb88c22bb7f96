"""From a window's tokens to its logits, and from averaged logits to labels.

Everything here is in pixels-first order, ``(..., Q)`` last, because the products over queries and
the softmax run along that axis.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from geoseg.model.products import full_width
from geoseg.model.upsampling import FeatureUpsampler, FeatureUpsampling, Upsampler
from geoseg.model.vision import DenseFeatures

_EPS = 1e-12


@full_width()
def window_logits(
    features: DenseFeatures,
    text: Tensor,
    *,
    upsampler: Upsampler | None,
    guidance: Tensor,
    cls_bias: float,
    exact: bool = True,
    operator: FeatureUpsampling | None = None,
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
    exact
        Whether learned upsamplers normalise exactly; otherwise norms may be nearly exact where
        that is certain to change no logit by more than 5e-4 and is faster.
    operator
        Of a learned upsampler for these windows, if it is there already.

    Returns
    -------
    torch.Tensor
        ``(B, H, W, Q)`` float32.
    """
    if isinstance(upsampler, FeatureUpsampler):
        if operator is None:
            operator = upsampler.operator(guidance, features.grid)
        logits = _upsample_features(features, text, upsampler, operator, exact=exact)
    else:
        logits = _upsample_cosines(features, text, upsampler, guidance)
    if cls_bias:
        bias = F.normalize(features.cls, dim=-1) @ text.T
        logits.sub_(cls_bias * bias[:, None, None, :])
    return logits


def _as_grid(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """``(B, N, C)`` to ``(B, C, h, w)``."""
    return tokens.transpose(1, 2).reshape(len(tokens), tokens.shape[2], *grid)


def _upsample_cosines(
    features: DenseFeatures, text: Tensor, upsampler: Upsampler | None, guidance: Tensor
) -> Tensor:
    cosines = F.normalize(features.patches, dim=-1) @ text.T
    if upsampler is None:
        return _bilinear(cosines, features.grid, (guidance.shape[2], guidance.shape[3]))
    return upsampler.operator(guidance, features.grid)(_as_grid(cosines, features.grid))


def _bilinear(tokens: Tensor, grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """Resize ``(B, N, C)`` to pixels ``(B, H, W, C)``, half-pixel centres.

    As two matrix products, columns first: several times as fast as ``interpolate``, and what comes
    out is in the order wanted.
    """
    batch, _, channels = tokens.shape
    down, across = (_bilinear_weights(n, m, tokens.device) for n, m in zip(grid, size, strict=True))
    wide = across @ tokens.view(batch, *grid, channels)
    return (down @ wide.view(batch, grid[0], -1)).view(batch, *size, channels)


@functools.lru_cache(maxsize=8)
def _bilinear_weights(coarse: int, fine: int, device: torch.device) -> Tensor:
    """``(fine, coarse)``: what resizing one axis makes of each pixel alone."""
    pixels = torch.eye(coarse, device=device)[None]
    return F.interpolate(pixels, size=fine, mode="linear", align_corners=False)[0].T.contiguous()


def _upsample_features(
    features: DenseFeatures,
    text: Tensor,
    upsampler: FeatureUpsampler,
    operator: FeatureUpsampling,
    *,
    exact: bool,
) -> Tensor:
    """Cosines of upsampled features, without upsampling the features.

    The operator ``U`` is linear and the same for all channels, so pixel features are
    ``z = u A + c`` with the folded tokens ``A``, and their products with the queries are
    ``u (A Tᵀ) + T c``: only as many channels as there are queries go through ``U``. What is left
    are the norms ``‖z‖``, exactly or nearly.
    """
    folded, constant = upsampler.fold(features.patches)
    if not exact:
        leading = _leading_basis(folded, constant, text)
        if leading is not None:
            cosines = _with_leading_norms(operator, features.grid, folded, constant, text, leading)
            if cosines is not None:
                return cosines
    return _with_exact_norms(operator, features.grid, folded, constant, text)


def _with_exact_norms(
    operator: FeatureUpsampling,
    grid: tuple[int, int],
    folded: Tensor,
    constant: Tensor,
    text: Tensor,
) -> Tensor:
    """Cosines ``(B, H, W, Q)`` with the norms of all of ``A = C Vᵀ`` (V orthonormal).

    Upsampling the r columns of ``C`` gives numerators ``(u C)(T V)ᵀ + T c`` and norms
    ``‖u C‖² + 2 (u C)(Vᵀ c) + ‖c‖²``; r is at most the number of patches.
    """
    coordinates, basis = _coordinates(folded)
    queries = (text @ basis).transpose(1, 2)  # (B, r, Q)
    shift = 2 * (constant @ basis)[:, None]  # (B, 1, r)

    def cosines(pixels: Tensor) -> Tensor:
        # (B, ..., r): each window of a batch has queries and a shift of its own.
        own = (len(pixels), *(1,) * (pixels.ndim - 3))
        shifted = pixels + shift.view(*own, *shift.shape[1:])
        squared = (pixels * shifted).sum(-1, keepdim=True) + constant @ constant
        numerators = pixels @ queries.view(*own, *queries.shape[1:]) + text @ constant
        return numerators * squared.clamp_min(_EPS).rsqrt()

    return operator(_as_grid(coordinates, grid), cosines)


def _coordinates(folded: Tensor) -> tuple[Tensor, Tensor]:
    """Split ``(B, N, D)`` into coordinates ``(B, N, r)`` and an orthonormal basis ``(B, D, r)``."""
    patches, channels = folded.shape[1:]
    if patches >= channels:
        return folded, torch.eye(channels, device=folded.device).expand(len(folded), -1, -1)
    basis, triangle = torch.linalg.qr(folded.transpose(1, 2))
    return triangle.transpose(1, 2), basis


def _leading_basis(folded: Tensor, constant: Tensor, text: Tensor) -> Tensor | None:
    """Orthonormal ``(B, D, k + 1)`` that holds nearly all energy of the tokens, and ``c``.

    As many directions as keep the error of every token's own cosines below a share of the
    tolerance; pixels are about as good as tokens. None if that takes so many channels that exact
    norms cost no more.
    """
    directions, energy = _principal(folded)
    pixels = folded + constant
    largest = (F.normalize(pixels, dim=-1) @ text.T).abs().amax(-1)
    doubt = 0.5 * _CHANCE * largest / pixels.square().sum(-1).clamp_min(_EPS)
    without = (doubt[..., None] * energy.cumsum(-1)).amax(1)  # (B, r), if so many are left out
    rank = energy.shape[-1]
    kept = int((without > _TOLERANCE / _UNEVENNESS).sum(-1).max())
    others = len(text) + 2 + _PROBES  # c and its product, see `_with_leading_norms`
    channels = -(-(max(kept, 1) + others) // _CHANNELS) * _CHANNELS
    kept = min(channels - others, rank)
    if channels > _WORTHWHILE * rank:
        return None
    leading = directions(kept)
    rest = constant - (leading @ (leading.transpose(1, 2) @ constant)[..., None])[..., 0]
    return torch.cat([leading, F.normalize(rest, dim=-1)[..., None]], dim=-1)


def _principal(folded: Tensor) -> tuple[Callable[[int], Tensor], Tensor]:
    """Principal directions of tokens ``(B, N, D)`` and every token's energy along each.

    Returns
    -------
    tuple
        A function that gives the k strongest directions, ``(B, D, k)``, and the energies,
        ``(B, N, r)`` with r = min(N, D), weakest direction first.
    """
    patches, channels = folded.shape[1:]
    if channels <= patches:
        _, vectors = torch.linalg.eigh(folded.transpose(1, 2) @ folded)
        return lambda k: vectors[..., -k:], (folded @ vectors).square()
    values, vectors = torch.linalg.eigh(folded @ folded.transpose(1, 2))
    energy = vectors.square() * values.clamp_min(0)[:, None]
    return lambda k: F.normalize(folded.transpose(1, 2) @ vectors[..., -k:], dim=1), energy


def _with_leading_norms(
    operator: FeatureUpsampling,
    grid: tuple[int, int],
    folded: Tensor,
    constant: Tensor,
    text: Tensor,
    basis: Tensor,
) -> Tensor | None:
    """Cosines with exact numerators and norms from the leading directions plus random probes.

    With ``E`` the tokens' remainder outside the basis, ``‖z‖² = ‖u C + Vᵀ c‖² + ‖u E‖²``. The last
    term is estimated without bias by a few random projections of ``E``. It is small, so a
    cosine's error is a fraction of ``|cos| ‖u E‖² / 2 ‖z‖²``; None is returned if, with a margin
    for chance, that could exceed the tolerance anywhere in a window.
    """
    coordinates = folded @ basis
    remainder = folded - coordinates @ basis.transpose(1, 2)
    probes = remainder @ _probes(folded.shape[-1], folded.device)
    shift = 2 * coordinates @ (constant @ basis)[..., None]
    columns = torch.cat([folded @ text.T, shift, coordinates, probes], dim=-1)
    queries, first_probe = len(text), columns.shape[-1] - _PROBES
    # Sums of squares: of everything after the shift, and of the probes alone.
    sums = torch.zeros(2, columns.shape[-1], device=folded.device)
    sums[0, queries + 1 :] = 1
    sums[1, first_probe:] = 1
    doubts = []

    def cosines(pixels: Tensor) -> Tensor:
        squares = F.linear(pixels.square(), sums)
        squared = squares[..., :1] + pixels[..., queries : queries + 1] + constant @ constant
        squared = squared.clamp_min(_EPS)
        cosines: Tensor = (pixels[..., :queries] + text @ constant) * squared.rsqrt()
        largest = cosines.abs().amax(-1, keepdim=True)
        doubts.append((largest * squares[..., 1:] / squared).max())
        return cosines

    found = operator(_as_grid(columns, grid), cosines)
    worst = 0.5 * _CHANCE * float(torch.stack(doubts).max())
    return found if worst <= _TOLERANCE else None


_CHANNELS = 8
"""Channels go through the operator in multiples of this: other matrix products are slower."""
_PROBES = 8
_WORTHWHILE = 0.7
"""Share of the exact path's channels above which it is taken instead."""
_CHANCE = 1.5
"""Margin on the estimated remainder: the estimate is a mean of eight squares."""
_UNEVENNESS = 2.0
"""How much worse than the worst token a pixel may be without giving up."""
_TOLERANCE = 5e-4
"""Largest error of a logit; 0.025 after the usual scale of 50."""


@functools.cache
def _probes(channels: int, device: torch.device) -> Tensor:
    """Fixed random directions ``(D, m)`` whose squared projections sum to a norm on average."""
    generator = torch.Generator().manual_seed(20250611)
    probes: Tensor = torch.randn(channels, _PROBES, generator=generator) / _PROBES**0.5
    return probes.to(device)


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
        # Over the first dimension a softmax is several times as fast as over a short last one.
        probabilities = (self.logit_scale * logits).movedim(-1, 0).softmax(0).movedim(0, -1)
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
