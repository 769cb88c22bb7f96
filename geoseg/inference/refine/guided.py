"""Guided filter: logits become a local linear function of the image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from geoseg.methods import Within

_PAIRS = ((0, 0), (0, 1), (0, 2), (1, 1), (1, 2), (2, 2))


@dataclass(frozen=True)
class Guided:
    """He et al., "Guided Image Filtering", TPAMI 2013, with a colour guide.

    In each window of ``(2 radius + 1)²`` pixels logits are fitted by ``a · rgb + b``; a pixel's
    logit is the mean of what all windows around it say. Windows end where the scene does, and
    nodata takes no part.
    """

    radius: Annotated[int, Within(1, 256)] = 4
    """In pixels."""
    eps: Annotated[float, Within(1e-5, 1000)] = 0.01
    """Variance of colour, in [0, 1], below which the image is taken for flat."""

    @property
    def reach(self) -> int:
        """Windows of windows."""
        return 2 * self.radius

    def __call__(self, logits: Tensor, rgb: Tensor, valid: Tensor) -> Tensor:
        """Filter ``(H, W, C)`` logits under ``(3, H, W)`` pixels."""
        known = valid.to(rgb.dtype)
        count = self._sum(known[None])[0].clamp_min(1)
        guide = (rgb - 0.5) * known  # around zero, so that covariances lose no digits
        mean = self._sum(guide) / count
        moments = torch.stack([guide[i] * guide[j] for i, j in _PAIRS])
        variance = self._sum(moments) / count
        inverse = _inverse(
            [variance[n] - mean[i] * mean[j] for n, (i, j) in enumerate(_PAIRS)], self.eps
        )
        out = torch.empty_like(logits)
        for channel in range(logits.shape[-1]):
            one = torch.where(valid, logits[..., channel], 0)
            stacked = torch.cat([one[None], guide * one])
            average = self._sum(stacked) / count
            covariance = average[1:] - mean * average[0]
            slope = torch.stack([self._slope(inverse, covariance, i) for i in range(3)])
            offset = average[0] - (slope * mean).sum(0)
            planes = torch.cat([slope, offset[None]]) * known
            *slopes, level = self._sum(planes) / count
            out[..., channel] = sum((a * g for a, g in zip(slopes, guide, strict=True)), level)
        return torch.where(valid[..., None], out, logits)

    @staticmethod
    def _slope(inverse: list[Tensor], covariance: Tensor, i: int) -> Tensor:
        first, second, third = (inverse[_at(i, j)] * covariance[j] for j in range(3))
        return first + second + third

    def _sum(self, planes: Tensor) -> Tensor:
        """Sums over windows, clipped at the border; the same bits wherever an array begins."""
        for dim in (1, 2):
            planes = _windowed(planes, self.radius, dim)
        return planes


def _windowed(x: Tensor, radius: int, dim: int) -> Tensor:
    """Sums of ``2 radius + 1`` neighbours along a dimension: sums of two, of four and so on."""
    size = x.shape[dim]
    shape = list(x.shape)
    shape[dim] = radius
    edge = x.new_zeros(shape)
    power, width = torch.cat([edge, x, edge], dim), 1
    left, start = 2 * radius + 1, 0
    total: Tensor | None = None
    while True:
        if left & 1:
            part = power.narrow(dim, start, size)
            total = part if total is None else total + part
            start += width
        left >>= 1
        if not left:
            break
        power = power.narrow(dim, 0, power.shape[dim] - width) + power.narrow(
            dim, width, power.shape[dim] - width
        )
        width *= 2
    assert total is not None
    return total


def _at(i: int, j: int) -> int:
    return _PAIRS.index((min(i, j), max(i, j)))


def _inverse(entries: list[Tensor], eps: float) -> list[Tensor]:
    """Of symmetric 3 x 3 matrices with eps on their diagonal, by their entries as `_PAIRS`."""
    a, b, c, d, e, f = entries
    a, d, f = a + eps, d + eps, f + eps
    cofactors = [d * f - e * e, c * e - b * f, b * e - c * d, a * f - c * c, b * c - a * e]
    cofactors.append(a * d - b * b)
    determinant = a * cofactors[0] + b * cofactors[1] + c * cofactors[2]
    return [each / determinant for each in cofactors]
