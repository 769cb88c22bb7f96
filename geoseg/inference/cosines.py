"""Cosines of upsampled features with the queries, without upsampling the features.

The operator ``U`` is linear and the same for all channels, so pixel features are ``z = u A + c``
with the folded tokens ``A``, and their products with the queries are ``u (A Tᵀ) + T c``: only as
many channels as there are queries go through ``U``. What is left are the norms ``‖z‖``: exactly,
or nearly from the leading directions of the tokens where that is certain to be near enough.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from geoseg.model.upsampling.base import FeatureUpsampler, FeatureUpsampling
from geoseg.model.vision import DenseFeatures

_EPS = 1e-12


def as_grid(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """``(B, N, C)`` to ``(B, C, h, w)``."""
    return tokens.transpose(1, 2).reshape(len(tokens), tokens.shape[2], *grid)


def upsampled_cosines(
    features: DenseFeatures,
    text: Tensor,
    upsampler: FeatureUpsampler,
    operator: FeatureUpsampling,
    *,
    exact: bool,
) -> Tensor:
    """Cosines ``(B, H, W, Q)`` of the pixels that an operator makes of tokens.

    Parameters
    ----------
    features
        Tokens of the windows.
    text
        ``(Q, D)`` unit text embeddings.
    upsampler, operator
        The upsampler, and what it made of the windows.
    exact
        Whether norms are exact; otherwise they may be nearly so where that is certain to change
        no logit by more than 5e-4 and is faster.
    """
    folded, constant = upsampler.fold(features.patches)
    if not exact:
        leading = leading_basis(folded, constant, text)
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
    columns = exact_columns(folded, constant, text)
    cosines = Cosines.of(columns.shape[-1], constant, text)
    return operator(as_grid(columns, grid), lambda pixels: cosines(pixels)[0])


def exact_columns(folded: Tensor, constant: Tensor, text: Tensor) -> Tensor:
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
    little = (_DIAGONAL_SHARE * diagonal.mean(-1, keepdim=True)).clamp_min(
        torch.finfo(gram.dtype).tiny
    )
    root: Tensor = torch.linalg.cholesky_ex(gram + torch.diag_embed(little.expand_as(diagonal))).L
    return root


def leading_basis(folded: Tensor, constant: Tensor, text: Tensor) -> Tensor | None:
    """Orthonormal ``(B, D, k + 1)`` that holds nearly all energy of the tokens, and ``c``.

    None if that takes so many channels that exact norms cost no more.
    """
    others = len(text) + 2 + PROBES  # c and its product, see `leading_columns`
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
    if others + _SKETCHED_DIRECTIONS > _WORTHWHILE_SHARE * min(folded.shape[1:]):
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
    mixing = torch.randn(tokens, _SKETCHED_DIRECTIONS, dtype=torch.float64, generator=generator)
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
    doubt = 0.5 * _DOUBT_MARGIN * largest / pixels.square().sum(-1).clamp_min(_EPS)
    without = (doubt[..., None] * energy.cumsum(-1)).amax(1)  # (B, r), if so many are left out
    rank = energy.shape[-1]
    kept = int((without > LOGIT_TOLERANCE / _UNEVENNESS).sum(-1).max())
    channels = -(-(max(kept, 1) + others) // _CHANNEL_MULTIPLE) * _CHANNEL_MULTIPLE
    kept = min(channels - others, rank)
    if channels > _WORTHWHILE_SHARE * rank:
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
    columns = leading_columns(folded, constant, text, basis)
    nearly = Cosines.of(columns.shape[-1], constant, text, probes=PROBES)
    doubts = []

    def cosines(pixels: Tensor) -> Tensor:
        found, doubt = nearly(pixels)
        doubts.append(doubt.max())
        return found

    found = operator(as_grid(columns, grid), cosines)
    return found if float(torch.stack(doubts).max()) <= LOGIT_TOLERANCE else None


def leading_columns(folded: Tensor, constant: Tensor, text: Tensor, basis: Tensor) -> Tensor:
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
class Cosines:
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
    def of(cls, channels: int, constant: Tensor, text: Tensor, *, probes: int = 0) -> Cosines:
        """For pixels of so many channels; see `leading_columns` and `exact_columns`."""
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
        return cosines, (0.5 * _DOUBT_MARGIN) * largest * squares[..., 1:] / squared


_CHANNEL_MULTIPLE = 8
"""Channels go through the operator in multiples of this: other matrix products are slower."""
PROBES = 8
_SKETCHED_DIRECTIONS = 48
"""Directions that windows on a GPU get, however many they need."""
_DIAGONAL_SHARE = 1e-12
"""Added to a Gram matrix's diagonal, as a share of its mean."""
_SEED = 20250611
_WORTHWHILE_SHARE = 0.7
"""Share of the exact path's channels above which it is taken instead."""
_DOUBT_MARGIN = 1.5
"""Margin on the estimated remainder: the estimate is a mean of eight squares."""
_UNEVENNESS = 2.0
"""How much worse than the worst token a pixel may be without giving up."""
LOGIT_TOLERANCE = 5e-4
"""Largest error of a logit; 0.025 after the usual scale of 50."""


@functools.cache
def _probes(channels: int, device: torch.device) -> Tensor:
    """Fixed random directions ``(D, m)`` whose squared projections sum to a norm on average."""
    generator = torch.Generator().manual_seed(_SEED)
    probes: Tensor = torch.randn(channels, PROBES, generator=generator) / PROBES**0.5
    return probes.to(device)
