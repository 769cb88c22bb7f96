"""PEARL's attention: keys are turned towards the queries before they are compared."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from geoseg.methods import Within
from geoseg.model.attention.last_block import LastBlocks
from geoseg.model.attention.trunk import Grid, attend

_EPS = 1e-6


@dataclass(frozen=True)
class Pearl(LastBlocks):
    """PEARL's Procrustes attention, 2026.

    In each head, keys are rotated so that they lie as near to the queries as a rotation can bring
    them; to the similarity of queries and turned keys comes some of that of centred keys among
    themselves.
    """

    own: Annotated[float, Within(0, 100)] = 0.08
    """Factor on the keys' similarity among themselves."""
    steps: Annotated[int, Within(0, 100)] = 0
    """0 takes the rotation itself; the released program takes 5 Newton-Schulz steps towards it,
    which do not reach it."""

    @property
    def needed(self) -> str:
        """Of the last block."""
        return "qkv"

    def _attend(self, qkv: dict[str, Tensor], grid: Grid) -> Tensor:
        q, k = qkv["q"].float(), qkv["k"].float()
        weights = q.norm(dim=-1, keepdim=True)
        weights[:, :, 0] = 0  # the CLS token has no say in the means
        weights = weights / (weights.sum(2, keepdim=True) + _EPS)
        centred = k - (weights * k).sum(2, keepdim=True)
        moment = centred.mT @ (q - (weights * q).sum(2, keepdim=True))
        turned = k @ (self._polar(moment) if self.steps else _rotation(moment))
        # One product: queries and centred keys side by side, as if heads were twice as wide.
        width = q.shape[-1]
        left = torch.cat([q, self.own * centred], -1) * 2**0.5
        right = torch.cat([turned, centred], -1)
        value = torch.nn.functional.pad(qkv["v"], (0, width))
        dtype = qkv["v"].dtype
        out = attend([(left.to(dtype), right.to(dtype))], value)
        return out[..., :width]

    def _polar(self, moment: Tensor) -> Tensor:
        """So many Newton-Schulz steps, as released."""
        gram = moment.mT @ moment
        size = torch.linalg.matrix_norm(gram, keepdim=True)
        unit = torch.eye(gram.shape[-1], device=gram.device)
        y, z = gram / size + _EPS * unit, unit.expand_as(gram)
        for _ in range(self.steps):
            t = 0.5 * (3 * unit - z @ y)
            y, z = y @ t, t @ z
        found: Tensor = moment @ z / size.sqrt()
        return found


def _rotation(moment: Tensor) -> Tensor:
    """The orthogonal matrix nearest to each of ``(..., d, d)``."""
    u, _, vh = torch.linalg.svd(moment)
    found: Tensor = u @ vh
    return found
