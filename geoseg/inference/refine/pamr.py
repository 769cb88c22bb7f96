"""PAMR: neighbours of a like colour share their logits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from geoseg.errors import OptionError

_OFFSETS = [(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1)]
_SPREAD_SHARE = 0.1
_EPS = 1e-8


@dataclass(frozen=True)
class Pamr:
    """Pixel-adaptive mask refinement.

    A pixel's logits become the mean of its neighbours', weighted by how near their colours are
    in units of the spread around it, again and again. Neighbours lie in rings of eight, at
    several distances. Beyond the edge of the scene the edge is repeated; nodata takes no part.

    Araslanov and Roth, "Single-Stage Semantic Segmentation from Image Labels", CVPR 2020.

    Raises
    ------
    OptionError
        If a value is below 1.
    """

    iterations: int = 10
    dilations: tuple[int, ...] = (1, 2, 4)
    """Distances of the rings in pixels; papers take 8 and 16 for photographs."""

    def __post_init__(self) -> None:
        if self.iterations < 1 or min(self.dilations, default=0) < 1:
            raise OptionError(
                f"pamr has {self.iterations} iterations and dilations "
                f"{'+'.join(map(str, self.dilations))}; give 1 or more of each"
            )

    @property
    def reach(self) -> int:
        """Every iteration sees as far as the widest ring."""
        return self.iterations * max(self.dilations)

    def __call__(self, logits: Tensor, rgb: Tensor, valid: Tensor) -> Tensor:
        """Refine ``(H, W, C)`` logits under ``(3, H, W)`` pixels."""
        weights = self.weights(rgb, valid)
        alone = weights.sum(0) == 0  # without a neighbour that has data a pixel stays as it is
        planes = logits.permute(2, 0, 1)
        for _ in range(self.iterations):
            total = torch.zeros_like(planes, memory_format=torch.contiguous_format)
            for weight, values in zip(weights, self._neighbours(planes), strict=True):
                total.addcmul_(weight, values)
            planes = torch.where(alone, planes, total)
        return planes.permute(1, 2, 0)

    def weights(self, rgb: Tensor, valid: Tensor) -> Tensor:
        """Weights of all neighbours, ``(8 D, H, W)``; they sum to one, or are zero."""
        near = self._spread(rgb, valid)
        scores = []
        for values, known in zip(self._neighbours(rgb), self._neighbours(valid[None]), strict=True):
            likeness = -((values - rgb).abs() / near).mean(0)
            scores.append(likeness.masked_fill(~known[0], -torch.inf))
        return torch.stack(scores).softmax(0).nan_to_num_(0.0)

    def _spread(self, rgb: Tensor, valid: Tensor) -> Tensor:
        """Tenth of the standard deviation around each pixel, ``(3, H, W)``."""
        samples = list(self._neighbours(rgb, centre=True))
        known = list(self._neighbours(valid[None], centre=True))
        pairs = list(zip(samples, known, strict=True))
        count = sum(k.to(rgb.dtype) for k in known)
        assert isinstance(count, Tensor)
        mean = sum(s * k for s, k in pairs) / count.clamp_min(1)
        squares = sum((s - mean).square() * k for s, k in pairs)
        return _EPS + _SPREAD_SHARE * (squares / (count - 1).clamp_min(1)).sqrt()

    def _neighbours(self, x: Tensor, *, centre: bool = False) -> Iterator[Tensor]:
        """``(C, H, W)`` as seen at every offset of every ring; without the centre, unless asked."""
        height, width = x.shape[1:]
        far = max(self.dilations)
        padded = _padded(x, far)
        for dilation in self.dilations:
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
