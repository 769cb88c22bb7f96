"""How much of what the device can do does geoseg use?

One row for each upsampler: the rate of large matrix products in the encoder's precision, the
share of it that the encoder reaches, and pixels a second of the whole run from file to labels,
with the share of its time in which the device was computing. On a GPU a second table sets the
fused kernel of the learned upsamplers against the same steps in plain PyTorch.

Weights are random in ViT-B/16's shape, windows of 224 lie every 112 pixels. It runs on a GPU if
there is one; figures of a CPU are those of its cores together.
"""

from __future__ import annotations

import dataclasses
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import _common
import torch
from bench_speed import WORDS, best_of, random_model, upsampler_file
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

import geoseg
from geoseg.model.checkpoint import read_state_dict
from geoseg.model.loading import Model
from geoseg.model.spec import bundled_folder
from geoseg.model.upsampling.blocks import StepGeometry
from geoseg.model.upsampling.fused import FusedStep, takes
from geoseg.model.upsampling.learned import LearnedJbu, LearnedUpsampling
from geoseg.model.upsampling.learned_step import PlainStep
from geoseg.runtime.matmul import full_width
from geoseg.testing import write_scene

_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def main() -> None:
    options = _common.parser(__doc__)
    options.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options.add_argument("--side", type=int, help="pixels of the scene's side [GPU 8192, CPU 1120]")
    options.add_argument("--batch", type=int, help="windows at once [as geoseg chooses]")
    options.add_argument("--upsampler", nargs="+", default=["none", "jbu", "simfeatup"])
    given = options.parse_args()
    device = torch.device(given.device)
    side = given.side or (448 if given.quick else 8192 if device.type == "cuda" else 1120)
    model = random_model()
    model = dataclasses.replace(model, clip=model.clip.to(device), device=device)
    with tempfile.TemporaryDirectory() as folder:
        rows = [measure(model, Path(folder), side, name, given.batch) for name in given.upsampler]
    _common.table(rows)
    if not given.no_save:
        _common.save(f"throughput_{device.type}", rows, side=side)
    with torch.no_grad():
        has_kernel = takes((224, 224), 5, device)
    if has_kernel:
        rows = [fused(device, given.batch or 32, channels) for channels in (40, 64, 208)]
        _common.table(rows)
        if not given.no_save:
            _common.save("throughput_fused", rows)


def measure(
    model: Model, folder: Path, side: int, upsampler: str, batch: int | None
) -> dict[str, Any]:
    weights = upsampler_file(folder, model.embedding_size) if upsampler == "simfeatup" else None
    options = geoseg.Options(
        upsampler=upsampler,
        upsampler_weights=None if weights is None else str(weights),
        templates="none",
        batch_size=batch,
    )
    segmenter = geoseg.Segmenter(model, WORDS, options)
    matrices = matrix_rate(_DTYPES[segmenter.precision], model.device)
    encoder, windows_per_second = encoder_rate(segmenter)
    seconds, busy = whole_run(model, options, folder, side, upsampler)
    return {
        "upsampler": upsampler,
        "precision": segmenter.precision,
        "batch": segmenter.batch_size,
        "matrices Tflop/s": matrices / 1e12,
        "encoder / matrices": encoder / matrices,
        "windows/s": windows_per_second,
        "whole run Mpx/s": side * side / seconds / 1e6,
        "device busy": busy,
    }


def matrix_rate(dtype: torch.dtype, device: torch.device) -> float:
    """Operations a second of a product large enough for the device."""
    side = 8192 if device.type == "cuda" else 2048
    left, right = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    with full_width():
        return 2 * side**3 / _best(lambda: left @ right, device, runs=10)


def encoder_rate(segmenter: geoseg.Segmenter) -> tuple[float, float]:
    """Operations a second of the encoder at its batch size, and windows a second."""
    device, batch = segmenter.device, segmenter.batch_size
    windows = torch.randn(batch, 3, segmenter.options.window, segmenter.options.window)
    windows = windows.to(device)
    with FlopCounterMode(display=False) as counter:
        segmenter.encoder(windows)
    seconds = _best(lambda: segmenter.encoder(windows), device, runs=20)
    return counter.get_total_flops() / seconds, batch / seconds


def whole_run(
    model: Model, options: geoseg.Options, folder: Path, side: int, name: str
) -> tuple[float, float]:
    """Seconds of inference, reading and writing, and the share in which the device computed."""
    scene = write_scene(folder / f"{side}.tif", side, side)

    def run(out: str) -> float:
        done = geoseg.segment_to_files(
            scene,
            WORDS,
            folder / out,
            model=model,
            options=options,
            products=geoseg.Products(polygons="none", preview=False),
        )
        return float(done.report["seconds"]["segment"])

    if model.device.type == "cuda":
        run(f"{name} warm")
        with profile(activities=[ProfilerActivity.CUDA]) as profiler:
            profiled = run(f"{name} profiled")
        computing = sum(event.self_device_time_total for event in profiler.key_averages()) / 1e6
        return run(name), computing / profiled
    start, before = time.perf_counter(), time.process_time()
    seconds = run(name)
    computing, wall = time.process_time() - before, time.perf_counter() - start
    return seconds, computing / (wall * torch.get_num_threads())


@torch.no_grad()
def fused(device: torch.device, batch: int, channels: int, side: int = 224) -> dict[str, Any]:
    """Upsample a batch of windows by the fused kernel and by the same steps in plain PyTorch."""
    file = bundled_folder() / "simfeatup.pt"
    upsampler = LearnedJbu(read_state_dict(file), source=str(file)).to(device)
    size, grid = (side, side), (side // 16, side // 16)
    x = torch.randn(batch, channels, *grid, device=device)
    kernel = upsampler.operator(torch.randn(batch, 3, *size, device=device), grid)
    ladder = upsampler.ladder(size, grid)
    steps = []
    for step, coarse, fine in zip(kernel.steps, ladder[:-1], ladder[1:], strict=True):
        assert isinstance(step, FusedStep)
        geometry = StepGeometry.of(fine, coarse, step.weights.radius, device)
        steps.append(PlainStep(geometry, step.weights, step.guidance))
    plain = LearnedUpsampling(tuple(steps))
    difference = (kernel(x) - plain(x)).abs().max()

    def until_done(operator: LearnedUpsampling) -> None:
        operator(x)
        if device.type == "cuda":
            torch.cuda.synchronize(device)

    best = best_of(10, {"kernel": lambda: until_done(kernel), "plain": lambda: until_done(plain)})
    return {
        "channels": channels,
        "plain steps, windows/s": batch / best["plain"],
        "fused kernel, windows/s": batch / best["kernel"],
        "ratio": best["plain"] / best["kernel"],
        "largest difference": float(difference),
    }


def _best(work: Callable[[], Any], device: torch.device, runs: int) -> float:
    def once() -> float:
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    return min(once() for _ in range(runs))


if __name__ == "__main__":
    main()
