"""From a window's tokens to its logits, and from averaged logits to labels.

Everything here is in pixels-first order, ``(..., Q)`` last, because the products over queries and
the softmax run along that axis.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
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

    Returns
    -------
    torch.Tensor
        ``(B, H, W, Q)`` float32.
    """
    if isinstance(upsampler, FeatureUpsampler):
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
    """Cosines ``(B, H, W, Q)`` with the norms of all channels."""
    columns = _exact_columns(folded, constant, text)
    cosines = _Cosines.of(columns.shape[-1], constant, text)
    return operator(_as_grid(columns, grid), lambda pixels: cosines(pixels)[0])


def _exact_columns(folded: Tensor, constant: Tensor, text: Tensor) -> Tensor:
    """What of the tokens ``(B, N, D)`` goes through the operator, ``(B, N, Q + 1 + r)``.

    Products with the queries and with the constant, and r = min(N, D) channels ``C`` with
    ``C Cᵀ = A Aᵀ``, so that pixels have the norms they would have with all.
    """
    products = (folded @ text.T, 2 * (folded @ constant)[..., None])
    patches, channels = folded.shape[1:]
    if patches >= channels:
        return torch.cat([*products, folded], dim=-1)
    wide = folded.double()
    return torch.cat([*products, _root(wide @ wide.transpose(1, 2)).float()], dim=-1)


def _root(gram: Tensor) -> Tensor:
    """Lower triangle ``L`` of ``L Lᵀ``, ``(B, N, N)`` float64, which may lack some ranks.

    No error is looked for, because a GPU would have to wait for that; a little on the diagonal
    keeps what lacks ranks from failing.
    """
    diagonal = gram.diagonal(dim1=-2, dim2=-1)
    little = (_LITTLE * diagonal.mean(-1, keepdim=True)).clamp_min(torch.finfo(gram.dtype).tiny)
    root: Tensor = torch.linalg.cholesky_ex(gram + torch.diag_embed(little.expand_as(diagonal))).L
    return root


def _leading_basis(folded: Tensor, constant: Tensor, text: Tensor) -> Tensor | None:
    """Orthonormal ``(B, D, k + 1)`` that holds nearly all energy of the tokens, and ``c``.

    None if that takes so many channels that exact norms cost no more.
    """
    others = len(text) + 2 + _PROBES  # c and its product, see `_leading_columns`
    if folded.device.type == "cuda":
        leading = _sketched_directions(folded, others)
    else:
        leading = _fewest_directions(folded, constant, text, others)
    if leading is None:
        return None
    rest = constant - (leading @ (leading.transpose(1, 2) @ constant)[..., None])[..., 0]
    return torch.cat([leading, F.normalize(rest, dim=-1)[..., None]], dim=-1)


def _sketched_directions(folded: Tensor, others: int) -> Tensor | None:
    """Orthonormal ``(B, D, k)``: what random combinations of the tokens span.

    The combinations are drawn towards the strong directions once, so that they leave out little
    more than as many principal directions would. Those need a decomposition of every window by
    itself, for which a GPU has to wait; here it is products and a few small triangles. Whether so
    many were enough is seen from the pixels in the end.
    """
    if others + _SKETCHED > _WORTHWHILE * min(folded.shape[1:]):
        return None
    wide = folded.double()
    mixed = _orthonormal(_mixing(folded.shape[1], folded.device) @ wide)
    drawn = _orthonormal((mixed @ wide.transpose(1, 2)) @ wide)
    return drawn.transpose(1, 2).float()


def _orthonormal(rows: Tensor) -> Tensor:
    """Orthonormal rows that span what rows ``(B, k, D)`` float64 do."""
    for _ in range(2):  # the second time mends what rounding left of the first
        root = _root(rows @ rows.transpose(1, 2))
        rows = torch.linalg.solve_triangular(root, rows, upper=False)
    return rows


@functools.lru_cache(maxsize=8)
def _mixing(tokens: int, device: torch.device) -> Tensor:
    """Fixed random combinations ``(k, N)`` of so many tokens, float64."""
    generator = torch.Generator().manual_seed(_SEED)
    mixing = torch.randn(tokens, _SKETCHED, dtype=torch.float64, generator=generator)
    return mixing.T.to(device)


def _fewest_directions(
    folded: Tensor, constant: Tensor, text: Tensor, others: int
) -> Tensor | None:
    """Orthonormal ``(B, D, k)`` with k as small as can be.

    As many principal directions as keep the error of every token's own cosines below a share of
    the tolerance; pixels are about as good as tokens.
    """
    directions, energy = _principal(folded)
    pixels = folded + constant
    largest = (F.normalize(pixels, dim=-1) @ text.T).abs().amax(-1)
    doubt = 0.5 * _CHANCE * largest / pixels.square().sum(-1).clamp_min(_EPS)
    without = (doubt[..., None] * energy.cumsum(-1)).amax(1)  # (B, r), if so many are left out
    rank = energy.shape[-1]
    kept = int((without > _TOLERANCE / _UNEVENNESS).sum(-1).max())
    channels = -(-(max(kept, 1) + others) // _CHANNELS) * _CHANNELS
    kept = min(channels - others, rank)
    if channels > _WORTHWHILE * rank:
        return None
    return directions(kept)


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
    """Cosines from the leading directions; None if that is not certain to be near enough."""
    columns = _leading_columns(folded, constant, text, basis)
    nearly = _Cosines.of(columns.shape[-1], constant, text, probes=_PROBES)
    doubts = []

    def cosines(pixels: Tensor) -> Tensor:
        found, doubt = nearly(pixels)
        doubts.append(doubt.max())
        return found

    found = operator(_as_grid(columns, grid), cosines)
    return found if float(torch.stack(doubts).max()) <= _TOLERANCE else None


def _leading_columns(folded: Tensor, constant: Tensor, text: Tensor, basis: Tensor) -> Tensor:
    """What of the tokens goes through the operator, ``(B, N, Q + 1 + probes + k)``.

    Products with the queries and with the constant, random projections of what is outside of the
    basis, and coordinates in it. Zeros may follow.
    """
    directions = _probes(folded.shape[-1], folded.device)
    coordinates = folded @ basis
    probes = folded @ directions - coordinates @ (basis.transpose(1, 2) @ directions)
    shift = 2 * coordinates @ (constant @ basis)[..., None]
    return torch.cat([folded @ text.T, shift, probes, coordinates], dim=-1)


@dataclass(frozen=True, eq=False)
class _Cosines:
    """Cosines of pixels from upsampled columns.

    Columns are products with the queries, one that makes ``2 (u A)ᵀ c``, probes if any, and
    channels ``C`` whose squares make ``‖u A‖²``, exactly or nearly. Nearly: with ``E`` the
    tokens' remainder outside a basis, ``‖u A‖² = ‖u C‖² + ‖u E‖²``, and the last term is estimated
    without bias by a few random projections of ``E``, the probes. It is small, so a cosine's error
    is a fraction of ``|cos| ‖u E‖² / 2 ‖z‖²``.
    """

    sums: Tensor
    """``(2, C)``: of all squares that make a norm, and of those of the probes alone."""
    numerator: Tensor
    """``(Q,)`` that the constant adds."""
    square: Tensor
    """Squared norm of the constant."""

    @classmethod
    def of(cls, channels: int, constant: Tensor, text: Tensor, *, probes: int = 0) -> _Cosines:
        """For pixels of so many channels; see `_leading_columns` and `_exact_columns`."""
        sums, first = torch.zeros(2, channels, device=text.device), len(text) + 1
        sums[0, first:] = 1
        sums[1, first : first + probes] = 1
        return cls(sums, text @ constant, constant @ constant)

    def __call__(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """``(..., C)`` to cosines ``(..., Q)`` and to what they may be wrong by, ``(..., 1)``.

        The latter is an estimate, with a margin for chance; zero without probes.
        """
        queries = len(self.numerator)
        squares = F.linear(pixels.square(), self.sums)
        squared = squares[..., :1] + pixels[..., queries : queries + 1] + self.square
        squared = squared.clamp_min(_EPS)
        cosines: Tensor = (pixels[..., :queries] + self.numerator) * squared.rsqrt()
        largest = cosines.abs().amax(-1, keepdim=True)
        return cosines, (0.5 * _CHANCE) * largest * squares[..., 1:] / squared


@dataclass(frozen=True, eq=False)
class BegunWindow:
    """A window before the last step of its upsampling; see `begin_window`."""

    nearly: Tensor | None
    """``(h, w, C)``: channels that give nearly exact norms, if there are few enough."""
    exactly: Callable[[], Tensor]
    """``(h, w, C)``: channels that give exact norms, made when they are asked for."""
    constant: Tensor
    """``(D,)``: what is added to every pixel's features."""
    bias: Tensor
    """``(Q,)``: subtracted from its cosines."""


@full_width()
def begin_window(
    features: DenseFeatures,
    text: Tensor,
    *,
    upsampler: FeatureUpsampler,
    upsample: Callable[[Tensor], Tensor],
    cls_bias: float,
    exact: bool,
) -> BegunWindow:
    """Upsample one window up to the last step, which `finish_cell` does for several at once.

    Parameters
    ----------
    features
        Tokens of one window.
    text, cls_bias, exact
        See `window_logits`.
    upsample
        All steps but the last, ``(1, C, *grid)`` to ``(h, w, C)``.
    """
    folded, constant = upsampler.fold(features.patches)

    @functools.cache
    def exactly() -> Tensor:
        return upsample(_as_grid(_exact_columns(folded, constant, text), features.grid))

    leading = None if exact else _leading_basis(folded, constant, text)
    nearly = None
    if leading is not None:
        columns = _leading_columns(folded, constant, text, leading)
        nearly = upsample(_as_grid(columns, features.grid))
    bias = cls_bias * (F.normalize(features.cls[0], dim=-1) @ text.T)
    return BegunWindow(nearly, exactly, constant, bias)


CellUpsampling = Callable[[Sequence[int], Sequence[Tensor]], Iterator[Tensor]]
"""The last step of some of a cell's windows: from their numbers and their channels ``(h, w, C)`` to
a few rows of blocks at a time, ``(rows, cols, block², windows, C)``."""


@full_width()
def finish_cell(
    windows: Sequence[BegunWindow],
    text: Tensor,
    upsample: CellUpsampling,
    weights: Tensor | None = None,
) -> Tensor:
    """Sum the logits of all windows that cover a cell.

    Where norms from the leading directions are not certain to be near enough for a window, it gets
    exact ones in this cell.

    Parameters
    ----------
    windows
        From `begin_window`.
    text
        ``(Q, D)`` unit text embeddings.
    upsample
        The last step.
    weights
        ``(rows, cols, block², windows)``: of each window's pixels; one by default.

    Returns
    -------
    torch.Tensor
        ``(rows, cols, block², Q)`` float32.
    """
    constant = windows[0].constant
    sums = []
    nearly = [k for k, window in enumerate(windows) if window.nearly is not None]
    while nearly:
        found, doubts = _nearly_summed(windows, nearly, text, constant, upsample, weights)
        certain = [k for k, doubt in zip(nearly, doubts, strict=True) if doubt <= _TOLERANCE]
        if certain == nearly:
            sums.append(found)
            break
        nearly = certain
    exactly = [k for k in range(len(windows)) if k not in nearly]
    if exactly:
        coarse = [windows[k].exactly() for k in exactly]
        cosines = _Cosines.of(coarse[0].shape[-1], constant, text)
        parts = [cosines(pixels)[0] for pixels in upsample(exactly, coarse)]
        sums.append(_summed(torch.cat(parts), None if weights is None else weights[..., exactly]))
    bias = torch.stack([window.bias for window in windows])
    shift = bias.sum(0) if weights is None else weights @ bias
    return sum(sums[1:], sums[0]).sub_(shift)


def _nearly_summed(
    windows: Sequence[BegunWindow],
    chosen: Sequence[int],
    text: Tensor,
    constant: Tensor,
    upsample: CellUpsampling,
    weights: Tensor | None,
) -> tuple[Tensor, list[float]]:
    """Sum of some windows' cosines over a cell, and what each may be wrong by."""
    coarse = [x for k in chosen if (x := windows[k].nearly) is not None]
    channels = max(x.shape[-1] for x in coarse)
    coarse = [
        F.pad(x, (0, channels - x.shape[-1])) if x.shape[-1] < channels else x for x in coarse
    ]
    cosines = _Cosines.of(channels, constant, text, probes=_PROBES)
    parts, doubts, first = [], [], 0
    for pixels in upsample(chosen, coarse):
        found, doubt = cosines(pixels)
        doubts.append(doubt.amax((0, 1, 2, 4)))
        some = None if weights is None else weights[first : first + len(found), ..., chosen]
        parts.append(_summed(found, some))
        first += len(found)
    return torch.cat(parts), torch.stack(doubts).amax(0).tolist()


def _summed(cosines: Tensor, weights: Tensor | None) -> Tensor:
    """Sum ``(..., windows, Q)`` over windows."""
    return (cosines if weights is None else cosines * weights[..., None]).sum(-2)


_CHANNELS = 8
"""Channels go through the operator in multiples of this: other matrix products are slower."""
_PROBES = 8
_SKETCHED = 48
"""Directions that windows on a GPU get, however many they need."""
_LITTLE = 1e-12
"""Added to a Gram matrix's diagonal, as a share of its mean."""
_SEED = 20250611
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
    generator = torch.Generator().manual_seed(_SEED)
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
