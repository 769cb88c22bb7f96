"""Resizing of one axis as a matrix, half-pixel centres, as PyTorch resizes."""

from __future__ import annotations

import functools
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor


@functools.lru_cache(maxsize=64)
def resize_matrix(
    coarse: int, fine: int, how: Literal["linear", "bicubic"], device: torch.device
) -> Tensor:
    """``(fine, coarse)`` float32: what resizing one axis makes of each pixel alone."""
    alone = torch.eye(coarse, device=device)[None]
    if how == "linear":
        return F.interpolate(alone, size=fine, mode="linear", align_corners=False)[0].T.contiguous()
    resized = F.interpolate(alone[None], size=(fine, coarse), mode="bicubic", align_corners=False)
    return resized[0, 0]
