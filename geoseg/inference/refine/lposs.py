"""LPOSS+, the pixel part: labels spread among pixels of like colour."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

import torch
from torch import Tensor

from geoseg.errors import OptionError
from geoseg.inference.refine.chebyshev import solved
from geoseg.methods import Within

_COLUMNS_AT_A_TIME = 512
"""Columns that are refined at once, besides what is reached around them: weights are large."""
_FARTHEST = 400
"""Pixels; weights are kept of all pairs around so many more on each side."""
_TO_XYZ = (
    (0.412453, 0.357580, 0.180423),
    (0.212671, 0.715160, 0.072169),
    (0.019334, 0.119193, 0.950227),
)
_WHITE = (0.95047, 1.0, 1.08883)


@dataclass(frozen=True)
class Lposs:
    """Label propagation among the pixels around each pixel, weighted by likeness in Lab.

    Stojnić et al., "LPOSS: Label Propagation Over Patches and Pixels", CVPR 2025, its second part.
    With ``S``, the weights of pixels of a square, scaled to a symmetric matrix, logits become
    ``(I - alpha S)⁻¹`` of themselves, here divided by what that makes of a plane of ones: a mean
    over like pixels, with the labels of the original. The system is solved in fixed steps, where
    the released program stops conjugate gradients after ten, far from its solution.

    Raises
    ------
    OptionError
        If the side is even, or it and the steps together reach too far for the memory.
    """

    alpha: Annotated[float, Within(0, 0.999)] = 0.95
    """How far labels spread; 0 leaves them."""
    tau: Annotated[float, Within(0.001, 100)] = 0.01
    """Distance in Lab / (100, 128, 128) at which a weight falls to 1/e."""
    side: Annotated[int, Within(3, 21)] = 13
    """Of the square, in pixels; odd."""
    steps: Annotated[int, Within(1, 100)] = 25

    def __post_init__(self) -> None:
        if self.side % 2 == 0:
            raise OptionError(f"refiner lposs: side is {self.side}; give an odd number of pixels")
        if self.reach > _FARTHEST:
            raise OptionError(
                f"refiner lposs: a side of {self.side} in {self.steps} steps reaches {self.reach} "
                f"pixels; give less of one, for {_FARTHEST} or less"
            )

    @property
    def reach(self) -> int:
        """Every step goes half a square, and a pixel's scale another half."""
        return (self.steps + 1) * (self.side // 2) if self.alpha else 0

    def __call__(self, logits: Tensor, rgb: Tensor, valid: Tensor) -> Tensor:
        """Refine ``(H, W, C)`` logits under ``(3, H, W)`` pixels."""
        if not self.alpha:
            return logits
        width, out = logits.shape[1], torch.empty_like(logits)
        for first in range(0, width, _COLUMNS_AT_A_TIME):
            stop = min(first + _COLUMNS_AT_A_TIME, width)
            left, right = max(first - self.reach, 0), min(stop + self.reach, width)
            some = logits[:, left:right]
            planes = torch.cat([some, torch.ones_like(some[..., :1])], -1).permute(2, 0, 1)
            found = self.spread(planes, rgb[:, :, left:right], valid[:, left:right])
            mean = (found[:-1] / found[-1]).permute(1, 2, 0)
            out[:, first:stop] = mean[:, first - left : stop - left]
        return torch.where(valid[..., None], out, logits)

    def spread(self, planes: Tensor, rgb: Tensor, valid: Tensor) -> Tensor:
        """``(I - alpha S)⁻¹`` of planes ``(C, H, W)``."""
        start = torch.where(valid, planes, 0).contiguous()
        weights = list(self.weights(rgb, valid))

        def step(x: Tensor) -> Tensor:
            total = start.clone()
            for weight, here, there in weights:
                total[here].addcmul_(weight, x[there], value=self.alpha)
                total[there].addcmul_(weight, x[here], value=self.alpha)
            return total

        return solved(step, start, self.alpha, self.steps)

    def weights(
        self, rgb: Tensor, valid: Tensor
    ) -> Iterator[tuple[Tensor, tuple[slice, ...], tuple[slice, ...]]]:
        """Of pairs of pixels, once each: entries of ``S``, and where both ends of them lie."""
        colours, half = lab(rgb), self.side // 2
        height, width = valid.shape
        pairs = []
        degree = torch.zeros_like(colours[0])
        for down in range(half + 1):
            for right in range(-half if down else 1, half + 1):
                if down >= height or abs(right) >= width:
                    continue
                rows, cols = slice(0, height - down), slice(max(-right, 0), width - max(right, 0))
                below = slice(down, None), slice(max(right, 0), width + min(right, 0))
                here, there = (slice(None), rows, cols), (slice(None), *below)
                apart = (colours[here] - colours[there]).square().sum(0).sqrt()
                both = valid[rows, cols] & valid[below]
                weight = torch.exp(-apart / self.tau) * both
                degree[rows, cols] += weight
                degree[below] += weight
                pairs.append((weight, here, there))
        scale = degree.rsqrt().masked_fill_(degree == 0, 1)
        for weight, here, there in pairs:
            yield weight * scale[here[1:]] * scale[there[1:]], here, there


def lab(rgb: Tensor) -> Tensor:
    """Lab / (100, 128, 128) of sRGB ``(3, H, W)`` in [0, 1]."""
    low = rgb <= 0.04045
    linear = torch.where(low, rgb / 12.92, ((rgb.clamp_min(0.04045) + 0.055) / 1.055) ** 2.4)
    matrix = torch.tensor(_TO_XYZ, device=rgb.device)
    white = torch.tensor(_WHITE, device=rgb.device)
    # Sums of three, not a product of matrices: the same bits wherever an array begins.
    xyz = (matrix[:, :, None, None] * linear).sum(1) / white[:, None, None]
    dark = xyz <= 0.008856
    bent = torch.where(dark, 7.787 * xyz + 4 / 29, xyz.clamp_min(0.008856) ** (1 / 3))
    x, y, z = bent
    return torch.stack([(116 * y - 16) / 100, 500 * (x - y) / 128, 200 * (y - z) / 128])
