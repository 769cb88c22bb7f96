"""The full tier in fewer channels: tokens along the leading directions of their scene.

A token is kept as its products with ``r`` directions and the length of what those miss. So its own
length stays known, and a query's cosine with it is wrong by no more than the missed share of the
token times the part of the query that lies outside of the directions.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from geoseg.errors import TileError
from geoseg.runtime.matmul import full_width
from geoseg.types import FloatArray

STEPS = 2**15 - 1
"""Largest whole number of steps."""
_LEAST_SCALE, _TINY = 0.01, 1e-12
"""Scale of a channel, at least, as a share of the largest one's: rare tokens may go beyond it."""
_ROUNDING = 1e-5
"""Of float32 in a cosine, at most."""


def leading_directions(units: Iterable[Tensor], size: int, r: int) -> Tensor:
    """Leading directions ``(D, r)`` of unit tokens ``(…, D)``, not centred."""
    moment = torch.zeros(size, size, dtype=torch.float64)
    for unit in units:
        flat = unit.cpu().double().reshape(-1, size)
        moment += flat.T @ flat
    _, vectors = torch.linalg.eigh(moment)
    leading: Tensor = vectors[:, -r:].flip(1).float().contiguous()
    return leading


def in_steps(values: Tensor) -> tuple[Tensor, Tensor]:
    """Values ``(…, C)`` as whole numbers of steps of their own, and the steps ``(…,)``.

    As small as float16, and ten times nearer.

    Raises
    ------
    TileError
        If a value is not finite.
    """
    largest = values.abs().amax(-1)
    if not bool(largest.isfinite().all()):
        raise TileError(
            "features of a window are not finite, so the model's weights, its precision or the "
            "scene's pixels are out of bounds; try --precision fp32"
        )
    steps = (largest.float() / STEPS).clamp_min(torch.finfo(torch.float32).tiny)
    return (values.float() / steps[..., None]).round_().to(torch.int16), steps


@dataclass(frozen=True, eq=False)
class Channels:
    """The directions along which a store keeps its tokens.

    A token's code are ``r + 1`` numbers: what it has along each direction, and the length of what
    lies along none. It is as long as the token.
    """

    basis: Tensor
    """``(D, r)``, orthonormal."""
    scale: Tensor
    """``(r + 1,)``: codes are divided by it before they become steps, which all have alike."""

    @classmethod
    def of(cls, basis: FloatArray, scale: FloatArray) -> Channels:
        """Channels from arrays, in memory that is aligned as PyTorch's: products come out alike."""
        return cls(torch.from_numpy(basis).clone(), torch.from_numpy(scale).clone())

    @classmethod
    def fitted(cls, tokens: Tensor, r: int) -> Channels:
        """Fit ``r`` directions to some tokens ``(n, D)``."""
        basis = leading_directions([F.normalize(tokens, dim=-1)], tokens.shape[-1], r)
        basis = basis.to(tokens.device)
        largest = F.normalize(cls(basis, basis.new_ones(r + 1)).codes(tokens), dim=-1).abs().amax(0)
        return cls(basis, largest.clamp_min(max(_LEAST_SCALE * float(largest.max()), _TINY)))

    def to(self, device: torch.device) -> Channels:
        """The same on another device."""
        return Channels(self.basis.to(device), self.scale.to(device))

    @full_width()
    def codes(self, tokens: Tensor) -> Tensor:
        """Codes ``(…, r + 1)`` of tokens ``(…, D)``."""
        inside = tokens @ self.basis
        missed = (tokens - inside @ self.basis.T).norm(dim=-1, keepdim=True)
        return torch.cat([inside, missed], dim=-1)

    def kept(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What a store keeps of tokens ``(…, N, D)``.

        Returns
        -------
        tuple
            Numbers ``(…, N, r + 1)`` int16, steps ``(…, N)``, and ``(…, 2)``: the largest share
            of a token that is missed, and the largest error of a unit code by rounding.
        """
        codes = self.codes(tokens)
        numbers, steps = in_steps(codes / self.scale)
        unit = F.normalize(codes, dim=-1)
        rounded = F.normalize(numbers * steps[..., None] * self.scale, dim=-1)
        worst = torch.stack([unit[..., -1], (rounded - unit).norm(dim=-1)], dim=-1).amax(-2)
        return numbers, steps, worst

    def rows(self, text: Tensor | None = None) -> Tensor:
        """``(r + 1, D)``, whose product with codes are tokens.

        What is missed of tokens is put back along the direction outside of the basis that queries
        ``(Q, D)`` see least of, mostly nothing; without queries it is left out.
        """
        size, r = self.basis.shape
        rest = self.basis.new_zeros(size)
        if text is not None and r < size:
            outside = torch.linalg.qr(self.basis.double(), mode="complete").Q[:, r:]
            seen = text.double() @ outside
            _, vectors = torch.linalg.eigh(seen.T @ seen)
            rest = (outside @ vectors[:, 0]).to(rest)
        return torch.cat([self.basis.T, rest[None]])

    def error(self, text: Tensor, worst: FloatArray, probes: FloatArray) -> tuple[float, float]:
        """How far a token's cosine may be from the exact one, and the most that it is found to be.

        Parameters
        ----------
        text
            ``(Q, D)``, of unit length.
        worst
            ``(…, 2)`` of windows, see `kept`; NaN where there is none.
        probes
            Exact tokens ``(P, D)``.
        """
        text, rows = text.to(self.basis.device), self.rows(text.to(self.basis.device))
        known = worst[np.isfinite(worst).all(-1)]
        missed, rounding = known.max(0).tolist() if len(known) else (0.0, 0.0)
        outside = (text - text @ self.basis @ self.basis.T).norm(dim=-1)
        seen = (text @ rows[-1]).abs()
        bound = missed * float((outside + seen).max()) + rounding + _ROUNDING
        exact = torch.from_numpy(probes).to(text.device)
        numbers, steps, _ = self.kept(exact)
        codes = numbers * steps[..., None] * self.scale
        told = F.normalize(codes, dim=-1) @ (rows @ text.T)
        return bound, float((F.normalize(exact, dim=-1) @ text.T - told).abs().max())

    def energy(self, probes: FloatArray) -> float:
        """Share kept of what tells tokens ``(P, D)`` apart: of their unit vectors' variance."""
        unit = F.normalize(torch.from_numpy(probes).double(), dim=-1)
        basis = self.basis.cpu().double()
        missed = (unit - unit @ basis @ basis.T).square().sum()
        return 1 - float(missed / (unit - unit.mean(0)).square().sum().clamp_min(_TINY))
