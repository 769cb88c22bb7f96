"""A learned upsampling step on a GPU: everything between guidance and fine pixels in one kernel.

Step by step, PyTorch would write and read a window's neighbour scores, shares, hidden units and
matrices, each of them hundreds of numbers a pixel. Here only range features, resized coarse pixels
and what comes out go to memory. The fix-up's two layers are products of float16 numbers, summed in
float32 (they make a small correction of the shares, which are float32); the sums over neighbours
keep float32's precision.

A program takes blocks of pixels, one after another. What it computes for a block stays in registers
and in two small stores of its own, which the GPU's caches hold; kernels never go to memory::

    range features --products--> store --own neighbours--> softmax --fix-up--> weights
    weights --to their neighbours' places--> store --products with fine pixels--> block

The stores turn "pixel and tap" into "pixel and neighbour" and back, so that both sums over
neighbours are matrix products: a block's pixels share their neighbours.

Imported only where there is a GPU: see `geoseg.model.upsampling.learned.FUSED`.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from geoseg.model.upsampling.blocks import BLOCK, StepGeometry
from geoseg.model.upsampling.learned_step import PlainStep, StepWeights
from geoseg.model.upsampling.resize import resize_matrix

log = logging.getLogger(__name__)

_SOME, _SOME_CHANNELS, _SOME_UNITS = 32, 32, 16
"""Neighbours, channels at most and hidden units of one product: what registers hold."""
_WARPS, _PROGRAMS = 4, 2
"""Warps of a program, and programs of a multiprocessor: together they fill its registers."""
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
    """One step of the operator of a batch of windows; as `PlainStep`, in one kernel."""

    weights: StepWeights
    guidance: Tensor
    """``(B, H, W, 3)`` at this step's resolution."""

    def apply(self, x: Tensor, finish: Callable[[Tensor], Tensor] | None = None) -> Tensor:
        """Upsample ``(B, h, w, C)`` to ``(B, H, W, C)``; ``finish`` maps ``(B, ..., C)``."""
        with torch.autocast(x.device.type, enabled=False), _current(x.device):
            pixels = self._pixels(x.float())
        return pixels if finish is None else finish(pixels)

    def _pixels(self, x: Tensor) -> Tensor:
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
        programs = min(blocks, _PROGRAMS * _multiprocessors(device))
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
            num_warps=_WARPS,
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
    if _capability(device) < (8, 0):
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
    plain = PlainStep(geometry, weights, guidance).apply(x)
    found = FusedStep(weights.to(device), guidance.to(device)).apply(x.to(device))
    return float((found.cpu() - plain).abs().max())


@triton.jit
def upsample_blocks(
    features,
    guidance,
    fine,
    out,
    first,
    first_guided,
    second,
    second_bias,
    log_spatial,
    stores,
    blocks,
    rows,
    cols,
    SIDE: tl.constexpr,
    TAPS: tl.constexpr,
    ALL_TAPS: tl.constexpr,
    RANGE: tl.constexpr,
    CHANNELS: tl.constexpr,
    SOME: tl.constexpr,
    SOME_CHANNELS: tl.constexpr,
    SOME_UNITS: tl.constexpr,
):
    """Upsample all blocks; see `geoseg.model.upsampling.fused.FusedStep`.

    Parameters
    ----------
    features
        ``(B, SIDE rows + TAPS - 1, SIDE cols + TAPS - 1, RANGE)``: with mirrored margins.
    guidance
        ``(B, SIDE rows, SIDE cols, 4)``, the fourth channel ones.
    fine
        ``(B, SIDE rows + TAPS - 1, SIDE cols + TAPS - 1, CHANNELS)``: bicubically resized, with
        mirrored margins.
    out
        ``(B, SIDE rows, SIDE cols, CHANNELS)``.
    first, second
        ``(ALL_TAPS, ALL_TAPS)`` float16: layers of the fix-up, inputs first, zeros beyond TAPS².
    first_guided
        ``(4, ALL_TAPS)``.
    second_bias, log_spatial
        ``(ALL_TAPS,)``; the latter minus infinity beyond TAPS².
    stores
        ``(programs, 2, SIDE², ALL)`` zeros, with ALL neighbours filled up to a multiple of SOME:
        scores, and weights at their neighbours' places.
    blocks
        B times rows times cols.
    """
    REACH: tl.constexpr = SIDE + TAPS - 1
    NEIGHBOURS: tl.constexpr = REACH * REACH
    ALL: tl.constexpr = (NEIGHBOURS + SOME - 1) // SOME * SOME
    PIXELS: tl.constexpr = SIDE * SIDE

    pixel = tl.arange(0, PIXELS)
    tap = tl.arange(0, ALL_TAPS)
    is_tap = (tap < TAPS * TAPS)[None, :]
    place = (pixel // SIDE)[:, None] * REACH + (pixel % SIDE)[:, None]
    place += (tap // TAPS * REACH + tap % TAPS)[None, :]
    scores = stores + tl.program_id(0) * 2 * PIXELS * ALL
    banded = scores + pixel[:, None] * ALL + place  # where a pixel's own neighbours are
    SPREAD: tl.constexpr = PIXELS * ALL  # from scores to weights
    unit = tl.arange(0, RANGE)
    some = tl.arange(0, SOME)
    tall = rows * SIDE + TAPS - 1
    wide = cols * SIDE + TAPS - 1
    RADIUS: tl.constexpr = TAPS // 2

    for block in range(tl.program_id(0), blocks, tl.num_programs(0)):
        image = block // (rows * cols)
        top = block // cols % rows * SIDE
        left = block % cols * SIDE
        corner = ((image * tall + top) * wide + left).to(tl.int64)
        inside = corner + (pixel // SIDE + RADIUS) * wide + pixel % SIDE + RADIUS
        centres = tl.load(features + inside[:, None] * RANGE + unit[None, :])
        for start in range(0, ALL, SOME):
            neighbour = start + some
            there = corner + neighbour // REACH * wide + neighbour % REACH
            around = tl.load(
                features + there[None, :] * RANGE + unit[:, None],
                mask=(neighbour < NEIGHBOURS)[None, :],
                other=0.0,
            )
            products = tl.dot(centres, around, input_precision="tf32x3")
            tl.store(scores + pixel[:, None] * ALL + neighbour[None, :], products)
        tl.debug_barrier()

        score = tl.load(banded, mask=is_tap, other=0.0) + tl.load(log_spatial + tap)
        shares = tl.exp(score - tl.max(score, axis=1)[:, None])
        shares = shares / tl.sum(shares, axis=1)[:, None]

        here = ((image * rows * SIDE + top) * cols * SIDE + left).to(tl.int64)
        here += pixel // SIDE * cols * SIDE + pixel % SIDE
        weights = shares
        for begin in range(0, ALL_TAPS, SOME_UNITS):
            units = begin + tl.arange(0, SOME_UNITS)
            layer = tl.load(first + tap[:, None] * ALL_TAPS + units[None, :])
            hidden = tl.dot(shares.to(tl.float16), layer)
            for channel in tl.static_range(4):
                guided = tl.load(guidance + here * 4 + channel)
                share = tl.load(first_guided + channel * ALL_TAPS + units)
                hidden += guided[:, None] * share[None, :]
            hidden = 0.5 * hidden * (1 + tl.erf(hidden * 0.7071067811865476))
            layer = tl.load(second + units[:, None] * ALL_TAPS + tap[None, :])
            weights = tl.dot(hidden.to(tl.float16), layer, weights)
        weights += tl.load(second_bias + tap)[None, :]
        tl.store(banded + SPREAD, weights, mask=is_tap)
        tl.debug_barrier()

        for begin in range(0, CHANNELS, SOME_CHANNELS):
            channels = begin + tl.arange(0, SOME_CHANNELS)
            found = tl.zeros((PIXELS, SOME_CHANNELS), tl.float32)
            for start in range(0, ALL, SOME):
                neighbour = start + some
                there = corner + neighbour // REACH * wide + neighbour % REACH
                of_each = tl.load(scores + SPREAD + pixel[:, None] * ALL + neighbour[None, :])
                pixels = tl.load(
                    fine + there[:, None] * CHANNELS + channels[None, :],
                    mask=(neighbour < NEIGHBOURS)[:, None] & (channels < CHANNELS)[None, :],
                    other=0.0,
                )
                found = tl.dot(of_each, pixels, found, input_precision="tf32x3")
            tl.store(
                out + here[:, None] * CHANNELS + channels[None, :],
                found,
                mask=(channels < CHANNELS)[None, :],
            )
