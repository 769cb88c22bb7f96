"""PAMR's kernels: how alike neighbouring pixels are, and means over them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

_OFFSETS = [(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1)]
_SPREAD_SHARE = 0.1
_EPS = 1e-8


def weights_of_neighbours(rgb: Tensor, valid: Tensor, dilations: Sequence[int]) -> Tensor:
    """Weights of the neighbours in rings of eight, ``(8 D, H, W)``; they sum to one, or are zero.

    Parameters
    ----------
    rgb
        ``(C, H, W)``; beyond the edge it is repeated.
    valid
        ``(H, W)`` bool; a neighbour that is not has no weight.
    dilations
        Distances of the rings in pixels.
    """
    near = _spread(rgb, valid, dilations)
    scores = []
    pairs = zip(_neighbours(rgb, dilations), _neighbours(valid[None], dilations), strict=True)
    for values, known in pairs:
        likeness = -((values - rgb).abs() / near).mean(0)
        scores.append(likeness.masked_fill(~known[0], -torch.inf))
    return torch.stack(scores).softmax(0).nan_to_num_(0.0)


def averaged(planes: Tensor, weights: Tensor, dilations: Sequence[int], iterations: int) -> Tensor:
    """Means of planes ``(C, H, W)`` over their neighbours, again and again.

    A pixel without a neighbour that has weight stays as it is.
    """
    alone = weights.sum(0) == 0
    for _ in range(iterations):
        total = torch.zeros_like(planes, memory_format=torch.contiguous_format)
        for weight, values in zip(weights, _neighbours(planes, dilations), strict=True):
            total.addcmul_(weight, values)
        planes = torch.where(alone, planes, total)
    return planes


def _spread(rgb: Tensor, valid: Tensor, dilations: Sequence[int]) -> Tensor:
    """Tenth of the standard deviation around each pixel, ``(C, H, W)``."""
    samples = list(_neighbours(rgb, dilations, centre=True))
    known = list(_neighbours(valid[None], dilations, centre=True))
    pairs = list(zip(samples, known, strict=True))
    count = sum(k.to(rgb.dtype) for k in known)
    assert isinstance(count, Tensor)
    mean = sum(s * k for s, k in pairs) / count.clamp_min(1)
    squares = sum((s - mean).square() * k for s, k in pairs)
    return _EPS + _SPREAD_SHARE * (squares / (count - 1).clamp_min(1)).sqrt()


def _neighbours(x: Tensor, dilations: Sequence[int], *, centre: bool = False) -> Iterator[Tensor]:
    """``(C, H, W)`` as seen at every offset of every ring; without the centre, unless asked."""
    height, width = x.shape[1:]
    far = max(dilations)
    padded = _padded(x, far)
    for dilation in dilations:
        for down, right in _OFFSETS:
            if centre or down or right:
                row, col = far + dilation * down, far + dilation * right
                yield padded[:, row : row + height, col : col + width]


def _padded(x: Tensor, far: int) -> Tensor:
    """``(C, H, W)`` with its edge repeated, also farther than it is long."""
    rows, cols = (
        torch.arange(-far, size + far, device=x.device).clamp(0, size - 1) for size in x.shape[1:]
    )
    return x[:, rows][:, :, cols]
