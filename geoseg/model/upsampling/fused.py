"""A learned upsampling step on a GPU: everything between guidance and fine pixels in one kernel.

Step by step, PyTorch would write and read a window's neighbour scores, shares, hidden units and
matrices, each of them hundreds of numbers a pixel. Here only range features, resized coarse pixels
and what comes out go to memory. The fix-up's two layers are products of float16 numbers, summed in
float32 (they make a small correction of the shares, which are float32); the sums over neighbours
keep float32's precision.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from geoseg.model.upsampling.blocks import BLOCK, StepGeometry
from geoseg.model.upsampling.learned_step import StepWeights, WindowStep
from geoseg.model.upsampling.resize import resize_matrix

log = logging.getLogger(__name__)

_SOME, _SOME_CHANNELS, _SOME_UNITS = 32, 64, 16
"""Neighbours, channels at most and hidden units of one product: what registers hold."""
_LARGEST = 2**20
"""Pixels of an image up to which all of its channels are held at once."""


class FusedWeights:
    """Weights of a step as the kernel takes them, filled up to a power of two taps.

    Parameters
    ----------
    weights
        Weights of the step.
    """

    def __init__(self, weights: StepWeights) -> None:
        taps = (2 * weights.radius + 1) ** 2
        self.all_taps = max(16, 1 << (taps - 1).bit_length())
        more = self.all_taps - taps
        first = F.pad(weights.fixup_joint, (0, 0, 0, more))
        self.first = F.pad(first[:, :taps], (0, more)).T.contiguous().half()
        self.first_guided = first[:, taps:].T.contiguous()
        weight, bias = weights.fixup_second
        self.second = F.pad(0.1 * weight, (0, more, 0, more)).T.contiguous().half()
        self.second_bias = F.pad(0.1 * bias, (0, more))
        self.log_spatial = F.pad(weights.log_spatial, (0, more), value=-torch.inf)


@functools.lru_cache(maxsize=8)
def _fused(weights: StepWeights) -> FusedWeights:
    return FusedWeights(weights)


@dataclass(frozen=True, eq=False)
class FusedStep:
    """One step of the operator of a batch of windows; as `WindowStep`, in one kernel."""

    weights: StepWeights
    guidance: Tensor
    """``(B, H, W, 3)`` at this step's resolution."""

    def apply(self, x: Tensor, finish: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Upsample ``(B, h, w, C)`` to ``(B, H, W, C)``; ``finish`` maps ``(B, ..., C)``."""
        with torch.autocast(x.device.type, enabled=False), _current(x.device):
            pixels = self._pixels(x.float())
        return pixels if finish is None else finish(pixels)

    def _pixels(self, x: Tensor) -> Tensor:
        from geoseg.model.upsampling.fused_kernel import upsample_blocks

        weights, device = _fused(self.weights), x.device
        batch, height, width = self.guidance.shape[:3]
        radius, channels = self.weights.radius, x.shape[-1]
        rows, cols = -(-height // BLOCK), -(-width // BLOCK)
        down, right = (
            _mirrored(size, count * BLOCK, radius, device)
            for size, count in ((height, rows), (width, cols))
        )
        features = self.weights.features(self.guidance)[:, down][:, :, right]
        guidance = F.pad(self.guidance, (0, 1), value=1.0)
        guidance = F.pad(guidance, (0, 0, 0, cols * BLOCK - width, 0, rows * BLOCK - height))
        fine = _resized(x, (height, width), down, right)
        out = x.new_empty(batch, rows * BLOCK, cols * BLOCK, channels)
        blocks = batch * rows * cols
        # One program fills a multiprocessor's registers.
        programs = min(blocks, _multiprocessors(device))
        neighbours = -(-((BLOCK + 2 * radius) ** 2) // _SOME) * _SOME
        upsample_blocks[(programs,)](
            features.contiguous(),
            guidance.contiguous(),
            fine,
            out,
            weights.first,
            weights.first_guided,
            weights.second,
            weights.second_bias,
            weights.log_spatial,
            x.new_zeros(programs, 2, BLOCK**2, neighbours),
            blocks,
            rows,
            cols,
            SIDE=BLOCK,
            TAPS=2 * radius + 1,
            ALL_TAPS=weights.all_taps,
            RANGE=features.shape[-1],
            CHANNELS=channels,
            SOME=_SOME,
            SOME_CHANNELS=min(_SOME_CHANNELS, max(16, 1 << (channels - 1).bit_length())),
            SOME_UNITS=_SOME_UNITS,
            num_warps=8,
            enable_fp_fusion=True,
        )
        return out[:, :height, :width]


def _current(device: torch.device) -> AbstractContextManager[object]:
    """Triton starts kernels on the current GPU, wherever the tensors are."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()


def _multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return 1
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


@functools.lru_cache(maxsize=64)
def _mirrored(size: int, filled: int, radius: int, device: torch.device) -> Tensor:
    """Pixels along an axis with mirrored margins; what fills it up is not used."""
    places = torch.arange(-radius, filled + radius).abs()
    places = torch.where(places > size - 1, 2 * (size - 1) - places, places)
    return places.clamp(0, size - 1).to(device)


def _resized(x: Tensor, size: tuple[int, int], down: Tensor, right: Tensor) -> Tensor:
    """Resize ``(B, h, w, C)`` bicubically and take rows and columns of it."""
    batch, height, width, channels = x.shape
    tall = resize_matrix(height, size[0], "bicubic", x.device)[down]
    wide = resize_matrix(width, size[1], "bicubic", x.device)[right]
    across = wide @ x.reshape(batch * height, width, channels)
    both = tall @ across.view(batch, height, -1)
    return both.view(batch, len(down), len(right), channels)


def takes(fine: tuple[int, int], radius: int, device: torch.device) -> bool:
    """Whether a step to this size is one for the kernel, on this device.

    Not where gradients are wanted: the kernel has none.
    """
    small = fine[0] * fine[1] <= _LARGEST
    return device.type == "cuda" and small and not torch.is_grad_enabled() and works(radius, device)


@functools.cache
def works(radius: int, device: torch.device) -> bool:
    """Whether the kernel runs on a GPU, and gives there what the plain steps give.

    It is tried once, on a step with several blocks for every program; where it does not work, a
    warning says so. Cards without tensor cores for float32 do not try.
    """
    if importlib.util.find_spec("triton") is None or _capability(device) < (8, 0):
        return False
    try:
        error = deviation(device, radius=radius, channels=131, fine=(200, 203))
    except torch.OutOfMemoryError:
        raise
    except Exception as failure:  # of a compiler, a driver or a card: whatever it is, go on without
        log.warning("the fused upsampling kernel does not run on this GPU: %s", failure)
        return False
    if not error <= _ALLOWED:
        log.warning("the fused upsampling kernel is wrong on this GPU by %.2g", error)
        return False
    return True


def _capability(device: torch.device) -> tuple[int, int]:
    return torch.cuda.get_device_capability(device)


_ALLOWED = 1e-3
"""Largest error of a pixel whose channels have unit variance."""


@torch.no_grad()
def deviation(
    device: torch.device,
    *,
    radius: int = 5,
    channels: int = 40,
    fine: tuple[int, int] = (20, 22),
) -> float:
    """Largest difference between the kernel and the plain steps on a small step of random weights.

    Parameters
    ----------
    device
        Where the kernel runs; the plain step runs on the CPU.
    radius, channels
        Reach of the neighbourhood, and channels that are upsampled.
    fine
        Size to which 10 x 11 coarse pixels are upsampled.
    """
    generator = torch.Generator().manual_seed(0)
    taps = (2 * radius + 1) ** 2

    def layer(out: int, into: int) -> tuple[Tensor, Tensor]:
        weight = torch.randn(out, into, generator=generator) / into**0.5
        return weight, 0.1 * torch.randn(out, generator=generator)

    weights = StepWeights(
        layer(32, 3),
        layer(32, 32),
        layer(taps, taps + 3),
        layer(taps, taps),
        torch.tensor(0.5),
        torch.tensor(1.0),
    )
    coarse = (10, 11)
    guidance = torch.randn(2, *fine, 3, generator=generator)
    x = torch.randn(2, *coarse, channels, generator=generator)
    geometry = StepGeometry.of(fine, coarse, radius, guidance.device)
    plain = WindowStep(geometry, weights, guidance).apply(x)
    found = FusedStep(weights.to(device), guidance.to(device)).apply(x.to(device))
    return float((found.cpu() - plain).abs().max())
