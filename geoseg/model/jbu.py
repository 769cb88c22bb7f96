"""Joint bilateral upsampling of projected channels, learned and parameter-free.

For one window the guidance image fixes a linear operator ``U`` from the patch grid to pixels, the
same for every channel. An upsampler therefore first makes the operator from the guidance, and
applies it to as few channels as the logits need (see `geoseg.inference.head`).

The learned steps gather ``(2r+1)²`` neighbours per pixel. Neighbourhoods are never unfolded per
pixel: pixels are taken in square blocks, the neighbours of a block are one small matrix, and both
the range weights and the gather become batched matrix products whose banded entries are read and
written through strided views.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from geoseg.errors import WeightsError
from geoseg.model.checkpoint import StateDict

_BLOCK = 8
"""Side of the pixel blocks; 8 keeps the products large and 37 % of an 11 x 11 band useful."""


# --------------------------------------------------------------------------------------------
# Blocks of pixels and their neighbourhoods


@dataclass(frozen=True)
class _Blocks:
    """Geometry of one resolution: pixels in blocks, each with a margin of ``radius``."""

    height: int
    width: int
    radius: int

    @property
    def rows(self) -> int:
        return -(-self.height // _BLOCK)

    @property
    def cols(self) -> int:
        return -(-self.width // _BLOCK)

    @property
    def reach(self) -> int:
        """Side of a block with its margin."""
        return _BLOCK + 2 * self.radius

    def centres(self, x: Tensor) -> Tensor:
        """``(B, H, W, C)`` to ``(B, rows, cols, block², C)``; zeros fill the last blocks."""
        x = F.pad(
            x, (0, 0, 0, self.cols * _BLOCK - self.width, 0, self.rows * _BLOCK - self.height)
        )
        batch, channels = x.shape[0], x.shape[-1]
        x = x.view(batch, self.rows, _BLOCK, self.cols, _BLOCK, channels).transpose(2, 3)
        return x.reshape(batch, self.rows, self.cols, _BLOCK * _BLOCK, channels)

    def pixels(self, x: Tensor) -> Tensor:
        """Inverse of `centres`."""
        batch, channels = x.shape[0], x.shape[-1]
        x = x.view(batch, self.rows, self.cols, _BLOCK, _BLOCK, channels).transpose(2, 3)
        x = x.reshape(batch, self.rows * _BLOCK, self.cols * _BLOCK, channels)
        return x[:, : self.height, : self.width]

    def mirrored(self, x: Tensor) -> Tensor:
        """``(B, C, H, W)`` with mirrored margins, channels last, filled up to whole blocks."""
        x = F.pad(x, (self.radius,) * 4, mode="reflect")
        x = F.pad(x, (0, self.cols * _BLOCK - self.width, 0, self.rows * _BLOCK - self.height))
        return x.permute(0, 2, 3, 1).contiguous()

    def neighbourhoods(self, mirrored: Tensor, row: int) -> Tensor:
        """Neighbours of one row of blocks, ``(B, cols, reach², C)``."""
        strip = mirrored[:, row * _BLOCK : row * _BLOCK + self.reach]
        view = strip.unfold(2, self.reach, _BLOCK)  # (B, reach, cols, C, reach)
        batch, channels = strip.shape[0], strip.shape[-1]
        return view.permute(0, 2, 1, 4, 3).reshape(batch, self.cols, self.reach**2, channels)

    def band(self, products: Tensor) -> Tensor:
        """Entries of ``(..., block², reach²)`` that pair a pixel with its own neighbours.

        Pixel ``(y, x)`` of a block and tap ``(dy, dx)`` meet at neighbour ``(y + dy, x + dx)``,
        so the band is a strided view ``(..., block, block, taps, taps)`` of the same memory.
        """
        taps, reach = 2 * self.radius + 1, self.reach
        lead = products.shape[:-2]
        strides = (_BLOCK * reach**2 + reach, reach**2 + 1, reach, 1)
        return products.as_strided(
            (*lead, _BLOCK, _BLOCK, taps, taps), (*products.stride()[:-2], *strides)
        )


# --------------------------------------------------------------------------------------------
# Learned steps


@dataclass(frozen=True)
class _StepWeights:
    """Weights of one learned ×2 step (methods: JBULearnedRange)."""

    range_first: tuple[Tensor, Tensor]
    range_second: tuple[Tensor, Tensor]
    fixup_first: tuple[Tensor, Tensor]
    fixup_second: tuple[Tensor, Tensor]
    temperature: Tensor
    sigma: Tensor

    @property
    def radius(self) -> int:
        return (math.isqrt(self.fixup_second[0].shape[0]) - 1) // 2

    def to(self, device: torch.device) -> _StepWeights:
        def move(pair: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
            return pair[0].to(device), pair[1].to(device)

        return _StepWeights(
            move(self.range_first),
            move(self.range_second),
            move(self.fixup_first),
            move(self.fixup_second),
            self.temperature.to(device),
            self.sigma.to(device),
        )

    def features(self, guidance: Tensor) -> Tensor:
        """Range features ``(B, H, W, 32)`` of guidance ``(B, 3, H, W)``."""
        pixels = guidance.permute(0, 2, 3, 1)
        return F.linear(F.gelu(F.linear(pixels, *self.range_first)), *self.range_second)

    def row_kernel(self, scores: Tensor, pixels: Tensor) -> Tensor:
        """Neighbour weights ``(B, cols, block², taps²)`` of one row of blocks.

        Parameters
        ----------
        scores
            Products of range features, overwritten.
        pixels
            Guidance of the same pixels, ``(B, cols, block², 3)``.
        """
        taps = 2 * self.radius + 1
        weights = scores.mul_(self.temperature.exp().clamp(1e-4, 1e4)).softmax(-1)
        weights *= self._spatial(taps).to(weights.dtype)
        weights /= weights.sum(-1, keepdim=True).clamp_min(1e-7)
        hidden = F.gelu(F.linear(torch.cat([weights, pixels], dim=-1), *self.fixup_first))
        return weights.add_(F.linear(hidden, *self.fixup_second), alpha=0.1)

    def _spatial(self, taps: int) -> Tensor:
        axis = torch.linspace(-1, 1, taps, device=self.sigma.device)
        squared = axis[:, None] ** 2 + axis**2
        return torch.exp(-squared / (2 * self.sigma**2)).flatten()


@dataclass(frozen=True)
class _Step:
    """One ×2 step with its guidance: bicubic, mirror, gather.

    The kernel is made row of blocks by row of blocks while it is used, so that it stays in the
    cache and is never held whole.
    """

    blocks: _Blocks
    weights: _StepWeights
    guidance: Tensor
    """``(B, 3, H, W)`` at this step's resolution."""

    def __call__(self, x: Tensor) -> Tensor:
        blocks = self.blocks
        x = F.interpolate(
            x, size=(blocks.height, blocks.width), mode="bicubic", align_corners=False
        )
        mirrored = blocks.mirrored(x)
        batch, channels = x.shape[:2]
        taps = 2 * blocks.radius + 1
        out = x.new_empty(batch, blocks.rows, blocks.cols, _BLOCK**2, channels)
        matrix = x.new_zeros(batch, blocks.cols, _BLOCK**2, blocks.reach**2)
        band = blocks.band(matrix)
        for row, kernel in enumerate(self.kernel_rows()):
            band.copy_(kernel.view(batch, blocks.cols, _BLOCK, _BLOCK, taps, taps))
            torch.matmul(matrix, blocks.neighbourhoods(mirrored, row), out=out[:, row])
        return blocks.pixels(out).permute(0, 3, 1, 2)

    def kernel_rows(self) -> Iterator[Tensor]:
        """Neighbour weights of each row of blocks, ``(B, cols, block², taps²)``."""
        blocks = self.blocks
        features = self.weights.features(self.guidance)
        centres = blocks.centres(features)
        pixels = blocks.centres(self.guidance.permute(0, 2, 3, 1))
        mirrored = blocks.mirrored(features.permute(0, 3, 1, 2))
        for row in range(blocks.rows):
            around = blocks.neighbourhoods(mirrored, row)
            band = blocks.band(centres[:, row] @ around.transpose(-1, -2))
            scores = band.reshape(*band.shape[:2], _BLOCK**2, -1)
            yield self.weights.row_kernel(scores, pixels[:, row])

    def kernel(self) -> Tensor:
        """Neighbour weights of every pixel, ``(B, H, W, taps²)``: for looking at."""
        return self.blocks.pixels(torch.stack(list(self.kernel_rows()), dim=1))


@dataclass(frozen=True)
class LearnedUpsampling:
    """The operator of one batch of windows; linear, the same for every channel."""

    steps: tuple[_Step, ...]

    def __call__(self, x: Tensor) -> Tensor:
        """Upsample ``(B, C, h, w)`` to channels-last pixels ``(B, H, W, C)``."""
        for step in self.steps:
            x = step(x)
        return x.permute(0, 2, 3, 1)


class LearnedJbu:
    """SimFeatUp's JBU-One and FeatUp's JBU-Stack.

    Four ×2 steps, each weighing neighbours by learned range features of the guidance; JBU-One
    shares one set of weights, JBU-Stack has four. A final 1 x 1 convolution acts on channels only
    and so is folded into the tokens (see `fold`). For patch sizes other than 16 the ladder has
    ``ceil(log2(patch))`` steps and its last step lands on the window's size.

    Fu et al., "FeatUp", ICLR 2024; Li et al., "SegEarth-OV", CVPR 2025.

    Parameters
    ----------
    state
        Tensors under the published names, with or without the ``upsampler.`` prefix.
    source
        File name for messages.

    Raises
    ------
    WeightsError
        If the tensors are not those of a JBU-One or JBU-Stack upsampler.
    """

    def __init__(self, state: StateDict, *, source: str) -> None:
        prefix = "upsampler."
        if any(name.startswith(prefix) for name in state):
            state = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        state = {name: value.float() for name, value in state.items()}
        names = ["up"] if "up.range_temp" in state else [f"up{i}" for i in range(1, 5)]
        try:
            self._steps = tuple(_read_step(state, name) for name in names)
            self._conv = _matrix(state, "fixup_proj.1")
        except (KeyError, ValueError, IndexError) as error:
            raise WeightsError(
                f"{source} does not hold SimFeatUp (JBU-One) or FeatUp (JBU-Stack) weights: "
                f"{error} is missing or has another shape"
            ) from error
        self.kind = "simfeatup" if names == ["up"] else "featup"
        self.channels = int(self._conv[0].shape[0])
        self.source = source

    @property
    def min_grid(self) -> int:
        """Fewest patches a side: mirroring needs ``2 * patches > radius``."""
        return self._steps[0].radius // 2 + 1

    def to(self, device: torch.device) -> LearnedJbu:
        """Move the weights; returns itself."""
        self._steps = tuple(step.to(device) for step in self._steps)
        self._conv = (self._conv[0].to(device), self._conv[1].to(device))
        return self

    def operator(self, guidance: Tensor, grid: tuple[int, int]) -> LearnedUpsampling:
        """Make the operator from normalised windows ``(B, 3, H, W)`` and the patch grid."""
        size = (guidance.shape[2], guidance.shape[3])
        patch = max(size[0] / grid[0], size[1] / grid[1])
        count = max(math.ceil(math.log2(patch)), 1)
        steps = []
        for i in range(count):
            factor = 2 ** (i + 1)
            height, width = size if i == count - 1 else (grid[0] * factor, grid[1] * factor)
            weights = self._steps[min(i, len(self._steps) - 1)]
            pooled = F.adaptive_avg_pool2d(guidance, (height, width))
            steps.append(_Step(_Blocks(height, width, weights.radius), weights, pooled))
        return LearnedUpsampling(tuple(steps))

    def fold(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Apply the final convolution to tokens ``(B, N, D)`` instead of pixels.

        Returns
        -------
        tuple
            ``A = X (I + 0.1 Wᵀ)`` and the constant ``c = 0.1 b``, to be added after upsampling:
            the operator's rows do not sum to one, so ``c`` may not go through it.
        """
        weight, bias = self._conv
        return tokens + 0.1 * (tokens @ weight.T), 0.1 * bias


def _read_step(state: StateDict, name: str) -> _StepWeights:
    return _StepWeights(
        _matrix(state, f"{name}.range_proj.0"),
        _matrix(state, f"{name}.range_proj.3"),
        _matrix(state, f"{name}.fixup_proj.0"),
        _matrix(state, f"{name}.fixup_proj.3"),
        state[f"{name}.range_temp"],
        state[f"{name}.sigma_spatial"],
    )


def _matrix(state: StateDict, name: str) -> tuple[Tensor, Tensor]:
    """Weights of a 1 x 1 convolution as a matrix, and its bias."""
    weight = state[f"{name}.weight"]
    if weight.ndim != 4 or weight.shape[2:] != (1, 1):
        raise ValueError(f"{name}.weight")
    return weight[:, :, 0, 0].contiguous(), state[f"{name}.bias"]


# --------------------------------------------------------------------------------------------
# Parameter-free


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


class Jbu:
    """Parameter-free joint bilateral upsampling: needs no file, cannot overshoot.

    A pixel takes the logits of the 5 x 5 tokens around it, weighted by distance and by how close
    each token's mean colour is to the pixel's. The weights are convex, so logits are upsampled
    as they are.

    Kopf et al., "Joint Bilateral Upsampling", SIGGRAPH 2007.

    Parameters
    ----------
    std
        Per-channel standard deviation of the model's normalisation: guidance times ``std`` is
        colour in [0, 1] up to a constant.
    radius
        Reach in tokens.
    sigma_space
        Width of the distance weight, in tokens.
    sigma_color
        Width of the colour weight, for RGB in [0, 1].
    """

    min_grid = 1

    def __init__(
        self,
        std: Sequence[float],
        *,
        radius: int = 2,
        sigma_space: float = 0.7,
        sigma_color: float = 0.15,
    ) -> None:
        self._std = torch.tensor(std, dtype=torch.float32).view(1, 3, 1, 1)
        self._radius = radius
        self._sigma_space = sigma_space
        self._sigma_color = sigma_color

    def to(self, device: torch.device) -> Jbu:
        """Move the constants; returns itself."""
        self._std = self._std.to(device)
        return self

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
