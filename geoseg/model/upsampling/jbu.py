"""Parameter-free joint bilateral upsampling of logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import torch
import torch.nn.functional as F
from torch import Tensor

from geoseg.methods import Within
from geoseg.model.upsampling.base import Fit


@dataclass(frozen=True)
class BilateralUpsampling:
    """The operator of one batch of windows: convex weights over the tokens around a pixel."""

    weights: Tensor
    """``(B, N, patch pixels, taps²)``; rows sum to one."""
    grid: tuple[int, int]
    radius: int
    patch: tuple[int, int]

    def __call__(self, x: Tensor) -> Tensor:
        """Upsample ``(B, C, h, w)`` to channels-last pixels ``(B, H, W, C)``."""
        batch, channels = x.shape[:2]
        around = _token_neighbours(x, self.radius)
        cells = (self.weights @ around).view(batch, *self.grid, *self.patch, channels)
        height, width = self.grid[0] * self.patch[0], self.grid[1] * self.patch[1]
        return cells.transpose(2, 3).reshape(batch, height, width, channels)


def _token_neighbours(x: Tensor, radius: int) -> Tensor:
    """``(B, C, h, w)`` to the tokens around each token, ``(B, N, taps², C)``; zeros outside."""
    taps = 2 * radius + 1
    batch, channels = x.shape[:2]
    columns = F.unfold(x, taps, padding=radius).view(batch, channels, taps * taps, -1)
    return columns.permute(0, 3, 2, 1)


@dataclass(frozen=True)
class Jbu:
    """Parameter-free joint bilateral upsampling: needs no file, cannot overshoot.

    A pixel takes the logits of the 5 x 5 tokens around it, weighted by distance and by how close
    each token's mean colour is to the pixel's. The weights are convex, so logits are upsampled
    as they are.

    Kopf et al., "Joint Bilateral Upsampling", SIGGRAPH 2007.
    """

    radius: Annotated[int, Within(1, 8)] = 2
    """Reach in tokens."""
    sigma_space: Annotated[float, Within(0.01, 1000)] = 0.7
    """Width of the distance weight, in tokens."""
    sigma_color: Annotated[float, Within(0.001, 1000)] = 0.15
    """Width of the colour weight, for RGB in [0, 1]."""

    def build(self, fit: Fit) -> JbuUpsampler:
        """Make the upsampler; it needs no weights."""
        return JbuUpsampler(self, fit.std, fit.device)


class JbuUpsampler:
    """`Jbu` for one model.

    Parameters
    ----------
    method
        Reach and widths.
    std
        Per-channel standard deviation of the model's normalisation: guidance times ``std`` is
        colour in [0, 1] up to a constant.
    device
        Where windows will be.
    """

    min_grid = 1

    def __init__(self, method: Jbu, std: Sequence[float], device: torch.device) -> None:
        self._std = torch.tensor(std, dtype=torch.float32, device=device).view(1, 3, 1, 1)
        self._radius = method.radius
        self._sigma_space = method.sigma_space
        self._sigma_color = method.sigma_color

    def operator(self, guidance: Tensor, grid: tuple[int, int]) -> BilateralUpsampling:
        """Make the operator from normalised windows ``(B, 3, H, W)`` and the patch grid."""
        batch, _, height, width = guidance.shape
        patch = (height // grid[0], width // grid[1])
        colors = guidance.float() * self._std
        tokens = _token_neighbours(F.adaptive_avg_pool2d(colors, grid), self._radius)
        pixels = colors.view(batch, 3, grid[0], patch[0], grid[1], patch[1])
        pixels = pixels.permute(0, 2, 4, 3, 5, 1).reshape(batch, grid[0] * grid[1], -1, 3)
        # |p - q|² = |p|² - 2 p·q + |q|²; |p|² is common to all taps and cancels in the softmax.
        color = 2 * (pixels @ tokens.transpose(-1, -2)) - (tokens**2).sum(-1)[:, :, None]
        scores = color / (2 * self._sigma_color**2) + self._distance(patch, guidance.device)
        scores = scores.masked_fill(~self._inside(grid, guidance.device), -torch.inf)
        return BilateralUpsampling(scores.softmax(-1), grid, self._radius, patch)

    def _distance(self, patch: tuple[int, int], device: torch.device) -> Tensor:
        """Log-weights ``(patch pixels, taps²)`` for the distance from pixel to token, in tokens."""
        taps = torch.arange(-self._radius, self._radius + 1, device=device)
        rows = (torch.arange(patch[0], device=device) + 0.5) / patch[0] - 0.5
        cols = (torch.arange(patch[1], device=device) + 0.5) / patch[1] - 0.5
        down = (rows[:, None] - taps) ** 2
        across = (cols[:, None] - taps) ** 2
        squared = down[:, None, :, None] + across[None, :, None, :]
        return -squared.reshape(patch[0] * patch[1], -1) / (2 * self._sigma_space**2)

    def _inside(self, grid: tuple[int, int], device: torch.device) -> Tensor:
        ones = torch.ones(1, 1, *grid, device=device)
        return _token_neighbours(ones, self._radius)[..., 0][:, :, None, :] > 0
