"""Is geoseg right and fast on this GPU? One unattended run of under eight minutes.

It runs the tests that need a GPU, sets the encoder against the rate of large matrix products,
times tiles and whole files, sets the fused kernel of the learned upsamplers against the same steps
in plain PyTorch, compares labels with a CPU's, and tells idle time and peaks of memory. Weights
are random in ViT-B/16's shape where only time matters; windows of 224 lie every 112 pixels.

Sections run one after another in a process of their own. A measurement that fails costs its row; a
section that hangs or breaks the GPU's context ends with its process, and the next one gets a new
one. Each row is printed and written as soon as it is there. Nothing is asked of a network.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import json
import logging
import multiprocessing
import os
import re
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import _common
import numpy as np
import open_clip
import rasterio
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from geoseg import Options, Products, Segmenter, load_model, segment_to_files
from geoseg.inference.scorer import PRECISIONS
from geoseg.model.checkpoint import read_state_dict
from geoseg.model.loading import Model
from geoseg.model.spec import bundled_folder
from geoseg.model.upsampling import fused as kernel
from geoseg.model.upsampling.blocks import StepGeometry
from geoseg.model.upsampling.fused import FusedStep
from geoseg.model.upsampling.learned import LearnedJbu, LearnedUpsampling
from geoseg.model.upsampling.learned_step import PlainStep
from geoseg.testing import drawn_rgb, write_scene
from geoseg.tiling.tiles import TilePlan
from geoseg.types import FloatArray, LabelArray, PixelBlock

ROOT = Path(__file__).resolve().parents[1]
WORDS = "building; road; water; tree; grass; cropland; bare soil; car; pool; railway"
KINDS = ("jbu", "simfeatup", "none")
"""Upsamplers, the most used first."""
WINDOW, STRIDE = 224, 112
CLEAR_LOGITS = 1e-3
"""Pixels whose two best logits lie further apart have to have the same label everywhere."""
GRACE_S = 20
"""Seconds that a measurement may take beyond its section's time before its process is ended."""

Row = dict[str, Any]
Measurement = tuple[str, Callable[[], Row]]


@dataclass(frozen=True)
class Sizes:
    """How much is measured."""

    products: Sequence[int] = (4096, 8192, 16384)
    batches: Sequence[int] = (32, 64, 128, 256)
    tile: int = 2048
    scenes: tuple[int, int] = (6000, 12000)
    """Sides of two scenes; the second has four times the area."""
    sample: int = 448
    upsampled: int = WINDOW
    patch: int = 16
    upsampled_batch: int = 32
    channels: Sequence[int] = (40, 64, 208)
    runs: int = 10
    repeats: int = 3


QUICK = Sizes((256, 512), (1, 2), 112, (224, 448), 224, 24, 4, 1, (8,), 1, 1)


@dataclass(frozen=True, eq=False)
class Bench:
    """What every section works with, in the process that measures."""

    device: torch.device
    sizes: Sizes
    folder: Path
    deadline: float
    """Of the section, on the monotonic clock."""


# -- what is measured: model, tile, scene ---------------------------------------------------------


@functools.cache
def random_model(device: torch.device) -> Model:
    """ViT-B/16 with random weights."""
    torch.manual_seed(0)
    clip = open_clip.create_model("ViT-B-16", load_weights=False, pretrained_text=False)
    return Model(
        spec="random",
        clip=clip.eval().requires_grad_(False).to(device),
        tokenizer=open_clip.get_tokenizer("ViT-B-16"),
        mean=(0.48145466, 0.4578275, 0.40821073),
        std=(0.26862954, 0.26130258, 0.27577711),
        weights=Path("random"),
        fingerprint="random",
        weights_sha256="random",
        defaults={},
        device=device,
    )


@functools.cache
def upsampler_file(folder: Path, channels: int) -> Path:
    """Write the bundled kernel weights with a last convolution for another number of channels."""
    state = read_state_dict(bundled_folder() / "simfeatup.pt")
    name = next(k for k in state if k.endswith("fixup_proj.1.weight")).removesuffix("weight")
    torch.manual_seed(1)
    state[f"{name}weight"] = torch.randn(channels, channels, 1, 1) / channels**0.5
    state[f"{name}bias"] = 0.01 * torch.randn(channels)
    torch.save({"state_dict": state}, folder / "upsampler.pt")
    return folder / "upsampler.pt"


def options(device: torch.device, folder: Path, upsampler: str) -> Options:
    channels = random_model(device).embedding_size
    weights = str(upsampler_file(folder, channels)) if upsampler == "simfeatup" else None
    return Options(
        upsampler=upsampler,
        upsampler_weights=weights,
        templates="none",
        window=WINDOW,
        stride=STRIDE,
    )


def segmenter(bench: Bench, upsampler: str) -> Segmenter:
    chosen = options(bench.device, bench.folder, upsampler)
    return Segmenter(random_model(bench.device), WORDS, chosen)


def normalised(bench: Bench, batch: int) -> torch.Tensor:
    return torch.randn(batch, 3, WINDOW, WINDOW, device=bench.device)


@functools.cache
def scene(folder: Path, side: int) -> Path:
    file = folder / f"{side}.tif"
    return file if file.exists() else write_scene(file, side, side)


def sample_block(side: int) -> PixelBlock:
    """A square of a sample tile, repeated if it is too small."""
    with rasterio.open(ROOT / "sample_tiles" / "town_river.tif") as tile:
        rgb = tile.read([1, 2, 3]).astype(np.float32) / 255
    times = -(-side // min(rgb.shape[1:]))
    rgb = np.ascontiguousarray(np.tile(rgb, (1, times, times))[:, :side, :side])
    return PixelBlock(rgb, np.ones((side, side), dtype=bool))


# -- how it is measured ---------------------------------------------------------------------------


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(work: Callable[[], Any], bench: Bench, runs: int | None = None) -> float:
    """Shortest mean of some runs after one to warm up; the queue is emptied at their end only."""
    runs = min(runs or bench.sizes.runs, bench.sizes.runs)
    work()
    best = float("inf")
    for _ in range(bench.sizes.repeats):
        synchronise(bench.device)
        start = time.perf_counter()
        for _ in range(runs):
            work()
        synchronise(bench.device)
        best = min(best, (time.perf_counter() - start) / runs)
    return best


def busiest(work: Callable[[], Any], device: torch.device, most: int = 12) -> tuple[float, Row]:
    """Share of the time in which kernels ran, and those that took most of it, in per cent."""
    on_gpu = device.type == "cuda"
    work()
    synchronise(device)
    with profile(activities=[ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]) as found:
        start = time.perf_counter()
        work()
        synchronise(device)
        wall = time.perf_counter() - start
    field = "self_device_time_total" if on_gpu else "self_cpu_time_total"
    times = {event.key: getattr(event, field) / 1e6 for event in found.key_averages()}
    total = sum(times.values())
    first = sorted(times, key=lambda name: -times[name])[:most]
    return total / wall, {name[:100]: round(100 * times[name] / total, 1) for name in first}


class Sampler:
    """Reads a value again and again in a thread, and remembers in which stage it was.

    Parameters
    ----------
    read
        What is read; None is left out.
    every_s
        Seconds between two readings.
    """

    def __init__(self, read: Callable[[], float | None], every_s: float) -> None:
        self.stage = ""
        self.samples: list[tuple[str, float]] = []
        self._read, self._every_s = read, every_s
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Sampler:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            if (value := self._read()) is not None:
                self.samples.append((self.stage, value))
            if self._stop.wait(self._every_s):
                return

    def mean(self, stage: str) -> float | None:
        """Mean of a stage's readings, if there are any."""
        chosen = [value for at, value in self.samples if at == stage]
        return statistics.fmean(chosen) if chosen else None


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


@functools.cache
def busy_reader(device: torch.device) -> tuple[str, Callable[[], float | None]]:
    """What tells how busy the device is, as a share, and its name; the first that works."""
    if device.type != "cuda":
        return "processor time of the cores", _busy_cores()
    index = device.index or 0
    query = ["nvidia-smi", f"--id={index}", "--query-gpu=utilization.gpu"]

    def nvml() -> float:
        return torch.cuda.utilization(device) / 100

    def smi() -> float:
        out = subprocess.run(
            [*query, "--format=csv,noheader,nounits"], capture_output=True, text=True, check=True
        )
        return float(out.stdout.split()[0]) / 100

    for name, read in (("NVML", nvml), ("nvidia-smi", smi)):
        try:
            read()
        except Exception:  # whatever it lacks here, there is another
            continue
        return name, read
    return "neither NVML nor nvidia-smi, see the profiler's", lambda: None


def _busy_cores() -> Callable[[], float]:
    last = (time.perf_counter(), time.process_time())

    def read() -> float:
        nonlocal last
        before, last = last, (time.perf_counter(), time.process_time())
        wall, used = last[0] - before[0], last[1] - before[1]
        return used / (wall * torch.get_num_threads())

    return read


@functools.cache
def whole_run(
    device: torch.device, folder: Path, upsampler: str, side: int, everything: bool
) -> Row:
    """From a file to files: pixels a second, seconds a stage, idle share, peaks of memory."""
    source, out = scene(folder, side), folder / f"{upsampler}_{side}_{everything}"
    products = Products() if everything else Products(polygons="none", preview=False)
    by, busy_now = busy_reader(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    before = resident_mib()
    with Sampler(resident_mib, 0.02) as memory, Sampler(busy_now, 0.1) as busy:

        def stage(state: Any) -> None:
            busy.stage = state.stage

        start = time.perf_counter()
        run = segment_to_files(
            source,
            WORDS,
            out,
            model=random_model(device),
            options=options(device, folder, upsampler),
            products=products,
            overwrite=True,
            progress=stage,
        )
        total = time.perf_counter() - start
    computing = busy.mean("segment")
    return {
        "Mpx/s": side * side / total / 1e6,
        "s": total,
        "seconds": run.report["seconds"],
        "polygons": run.report.get("polygons"),
        "idle in segment": None if computing is None else 1 - computing,
        "idle by": by,
        "GPU peak MiB": _peak_mib(device),
        "host before MiB": before,
        "host peak MiB": max(value for _, value in memory.samples),
    }


def _peak_mib(device: torch.device) -> float | None:
    return torch.cuda.max_memory_allocated(device) / 2**20 if device.type == "cuda" else None


# -- the sections ---------------------------------------------------------------------------------


def tests(bench: Bench) -> Iterator[Measurement]:
    """The tests marked gpu pass."""
    files = [
        str(file.relative_to(ROOT))
        for file in sorted((ROOT / "tests").glob("test_*.py"))
        if "pytest.mark.gpu" in file.read_text(encoding="utf-8")
    ]

    def run() -> Row:
        command = [sys.executable, "-m", "pytest", "-m", "gpu", "-v", "--tb=short", "-p"]
        command += ["no:cacheprovider", *files]
        paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=os.environ
            | {"PYTHONPATH": os.pathsep.join(paths), "GEOSEG_TEST_DEVICE": str(bench.device)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        timer = threading.Timer(max(bench.deadline - time.monotonic(), 1), process.kill)
        timer.start()
        said, _ = process.communicate()
        in_time = timer.is_alive()
        timer.cancel()
        counts = {
            name: len(re.findall(rf"^\S+::.* {word}\b", said, re.MULTILINE))
            for name, word in (
                ("passed", "PASSED"),
                ("failed", "FAILED"),
                ("broken", "ERROR"),
                ("left out", "SKIPPED"),
            )
        }
        failures = re.findall(r"^(?:FAILED|ERROR) .*", said, re.MULTILINE)
        row = {**counts, "failures": failures}
        if not in_time:
            row["not finished"] = said.splitlines()[-1] if said else "nothing was said"
        if failures or process.returncode not in (0, 5):
            row["end of output"] = said[-4000:]
        return row

    yield "pytest -m gpu", run


def encoder(bench: Bench) -> Iterator[Measurement]:
    """The encoder reaches a good share of the rate of matrix products in its precision."""
    device = bench.device
    chosen = replace(options(device, bench.folder, "none"), precision="bf16")
    made = Segmenter(random_model(device), WORDS, chosen)
    dtype = PRECISIONS[made.precision]
    rates: list[float] = []
    speeds: dict[int, float] = {}

    def product(rows: int, inner: int, cols: int) -> Row:
        left = torch.randn(rows, inner, device=device).to(dtype)
        right = torch.randn(inner, cols, device=device).to(dtype)
        rate = 2 * rows * inner * cols / seconds_of(lambda: left @ right, bench)
        rates.append(rate)
        return {"TFLOP/s": rate / 1e12}

    def encoded(batch: int, encode: Callable[[torch.Tensor], Any]) -> Row:
        windows = normalised(bench, batch)
        speed = batch / seconds_of(lambda: encode(windows), bench)
        rate = speed * operations()
        return {
            "windows/s": speed,
            "TFLOP/s": rate / 1e12,
            "of matrix rate": rate / max(rates) if rates else None,
        }

    @functools.cache
    def operations() -> int:
        window = normalised(bench, 1)
        with FlopCounterMode(display=False) as counter:
            made.encoder(window)
        return int(counter.get_total_flops())

    def as_it_is(batch: int) -> Row:
        row = encoded(batch, made.encoder)
        speeds[batch] = row["windows/s"]
        return row

    def best_batch() -> int:
        return max(speeds, key=lambda batch: speeds[batch])

    def kernels() -> Row:
        windows = normalised(bench, best_batch())
        share, first = busiest(lambda: made.encoder(windows), device)
        return {"batch": best_batch(), "kernels' share of time": share, "per cent": first}

    for side in bench.sizes.products:
        yield f"{made.precision} product, {side} cubed", functools.partial(product, *[side] * 3)
    tokens = 197 * bench.sizes.batches[-1]
    width = made.model.clip.visual.conv1.out_channels
    yield (
        f"{made.precision} product, {tokens} tokens by the MLP",
        functools.partial(product, tokens, width, 4 * width),
    )
    for batch in bench.sizes.batches:
        yield f"encoder, batch {batch}", functools.partial(as_it_is, batch)
    yield "best batch", lambda: {"batch": best_batch(), "GFLOP a window": operations() / 1e9}
    yield "encoder, its kernels", kernels


def tiles(bench: Bench) -> Iterator[Measurement]:
    """One tile in memory, in the middle of a scene, and where its time goes."""
    for kind in KINDS:
        yield kind, functools.partial(_tile, bench, kind)


def _tile(bench: Bench, kind: str) -> Row:
    device = bench.device
    made = segmenter(bench, kind)
    side = bench.sizes.tile
    tile = made.plan((3 * side, 3 * side), side)[4]
    rgb = drawn_rgb(tile.read).astype(np.float32) / 255
    block = PixelBlock(rgb, np.ones(tile.read.shape, dtype=bool))
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    start = time.perf_counter()
    made.segment_tile(block, tile)
    first = time.perf_counter() - start
    whole = seconds_of(lambda: made.segment_tile(block, tile), bench, runs=1)
    peak = _peak_mib(device)
    pixels = made.encoder.normalise(block)
    some = [w.relative_to(tile.read).slices() for w in tile.windows[: made.batch_size]]
    windows = torch.stack([pixels[(slice(None), *here)] for here in some])
    batches = len(tile.windows) / len(windows)
    encode = batches * seconds_of(lambda: made.encoder(windows), bench)
    score = batches * seconds_of(lambda: made.window_logits(windows), bench)
    return {
        "Mpx/s": tile.core.area / whole / 1e6,
        "windows/s": len(tile.windows) / whole,
        "s": whole,
        "encoder s": encode,
        "head s": score - encode,
        "merge, decide, transfer s": whole - score,
        "first time s": first,
        "batch": made.batch_size,
        "GPU peak MiB": peak,
        "pixels": tile.core.area,
    }


def fused(bench: Bench) -> Iterator[Measurement]:
    """The fused kernel against the same steps in plain PyTorch."""
    for radius in (5, 3):
        yield f"radius {radius}", functools.partial(_works, bench, radius)
    for channels in bench.sizes.channels:
        yield f"{channels} channels", functools.partial(_both_kernels, bench, channels)


def _works(bench: Bench, radius: int) -> Row:
    size = {"radius": radius, "channels": bench.sizes.channels[0]}
    row: Row = {"largest difference": kernel.deviation(bench.device, **size)}
    if bench.device.type == "cuda":
        row |= {"taken": kernel.works(radius, bench.device)}
    return row


@torch.no_grad()
def _both_kernels(bench: Bench, channels: int) -> Row:
    device, batch, side = bench.device, bench.sizes.upsampled_batch, bench.sizes.upsampled
    file = bundled_folder() / "simfeatup.pt"
    upsampler = LearnedJbu(read_state_dict(file), source=str(file)).to(device)
    size, grid = (side, side), (side // bench.sizes.patch,) * 2
    x = torch.randn(batch, channels, *grid, device=device)
    guidance = torch.randn(batch, 3, *size, device=device)
    ladder = upsampler.ladder(size, grid)
    plain, one_kernel = [], []
    for index, step in enumerate(upsampler.operator(guidance, grid).steps):
        geometry = StepGeometry.of(ladder[index + 1], ladder[index], step.weights.radius, device)
        plain.append(PlainStep(geometry, step.weights, step.guidance))
        one_kernel.append(FusedStep(step.weights, step.guidance))
    in_steps, in_one = LearnedUpsampling(tuple(plain)), LearnedUpsampling(tuple(one_kernel))
    start = time.perf_counter()
    found = in_one(x)
    synchronise(device)
    first = time.perf_counter() - start
    difference = float((found - in_steps(x)).abs().max())
    times = [seconds_of(functools.partial(op, x), bench, runs=2) for op in (in_steps, in_one)]
    return {
        "plain ms": 1e3 * times[0],
        "fused ms": 1e3 * times[1],
        "ratio": times[0] / times[1],
        "largest difference": difference,
        "first time s": first,
        "windows": batch,
    }


def agreement(bench: Bench) -> Iterator[Measurement]:
    """Labels and logits are a CPU's; a tile's are those of the whole image."""
    cpu, side = torch.device("cpu"), bench.sizes.sample
    models: dict[str, Callable[[torch.device], Model]] = {
        "geoseg-tiny": lambda device: load_model("geoseg-tiny", device=str(device)),
        "ViT-B/16": random_model,
    }
    block = sample_block(side)

    @functools.cache
    def logits(name: str, device: torch.device, precision: Any) -> tuple[FloatArray, LabelArray]:
        made = of(name, device, precision)
        found = made.logits(block)
        return found, made.decide(found).labels

    def of(name: str, device: torch.device, precision: Any) -> Segmenter:
        given = Options(templates="none", precision=precision)
        return Segmenter(models[name](device), WORDS, given)

    def against_cpu(name: str) -> Row:
        return difference(logits(name, bench.device, "fp32"), logits(name, cpu, "fp32"))

    def without_tf32(name: str) -> Row:
        logits.cache_clear()
        with torch.backends.cudnn.flags(allow_tf32=False):
            row = against_cpu(name)
        logits.cache_clear()
        return row

    def in_bf16(name: str) -> Row:
        return difference(logits(name, bench.device, "bf16"), logits(name, bench.device, "fp32"))

    def tiled(name: str, precision: Any) -> Row:
        made = of(name, bench.device, precision)
        whole, parts = (_labels(made, block, size) for size in (side, STRIDE))
        return difference((made.logits(block), parts), (made.logits(block), whole))

    for name in models:
        yield f"{name}, fp32 and a CPU's", functools.partial(against_cpu, name)
        yield f"{name}, the same without TF32", functools.partial(without_tf32, name)
        yield f"{name}, bf16 and fp32", functools.partial(in_bf16, name)
        for precision in ("fp32", "bf16"):
            yield f"{name}, tiled and whole, {precision}", functools.partial(tiled, name, precision)


def _labels(made: Segmenter, block: PixelBlock, tile: int) -> LabelArray:
    """Labels of an image, tile by tile."""
    labels = np.zeros(block.valid.shape, np.uint8)
    plan: TilePlan = made.plan(block.valid.shape, tile)
    for part in plan:
        here = part.read.slices()
        read = PixelBlock(
            np.ascontiguousarray(block.rgb[(slice(None), *here)]), block.valid[here].copy()
        )
        labels[part.core.slices()] = made.segment_tile(read, part).labels
    return labels


def difference(found: tuple[FloatArray, LabelArray], wanted: tuple[FloatArray, LabelArray]) -> Row:
    """How far labels and logits are those that are wanted."""
    second, first = np.sort(wanted[0], axis=0)[-2:]
    differ = found[1] != wanted[1]
    return {
        "labels equal": float(1 - differ.mean()),
        "differ": int(differ.sum()),
        "differ and clear": int((differ & (first - second > CLEAR_LOGITS)).sum()),
        "largest logit difference": float(np.abs(found[0] - wanted[0]).max()),
    }


def files(bench: Bench) -> Iterator[Measurement]:
    """Whole runs from a file to files."""
    run = functools.partial(whole_run, bench.device, bench.folder)
    small, large = bench.sizes.scenes
    yield "warm up", functools.partial(run, KINDS[0], WINDOW, True)
    for kind in KINDS:
        for side in (small, large):
            yield f"{kind}, {side} x {side}", functools.partial(run, kind, side, False)
    for kind in KINDS:
        yield f"{kind}, {large} x {large}, all products", functools.partial(run, kind, large, True)


def idle(bench: Bench) -> Iterator[Measurement]:
    """Share of a run in which the device had nothing to do, and what it did otherwise."""

    def in_run(kind: str) -> Row:
        row = whole_run(bench.device, bench.folder, kind, bench.sizes.scenes[1], False)
        return {"idle": row["idle in segment"], "by": row["idle by"]}

    def in_tile(kind: str) -> Row:
        made, side = segmenter(bench, kind), bench.sizes.tile
        tile = made.plan((side, side), side)[0]
        rgb = drawn_rgb(tile.read).astype(np.float32) / 255
        block = PixelBlock(rgb, np.ones(tile.read.shape, dtype=bool))
        share, first = busiest(lambda: made.segment_tile(block, tile), bench.device)
        return {"idle": 1 - share, "by": "profiler", "per cent": first}

    for kind in KINDS:
        yield f"{kind}, segment of a run", functools.partial(in_run, kind)
        yield f"{kind}, a tile", functools.partial(in_tile, kind)


def memory(bench: Bench) -> Iterator[Measurement]:
    """Peaks of memory, and how they grow with the scene."""

    def growth(kind: str) -> Row:
        run = functools.partial(whole_run, bench.device, bench.folder, kind)
        small, large = (run(side, False) for side in bench.sizes.scenes)
        row: Row = {}
        for name in ("GPU peak MiB", "host peak MiB"):
            if large[name] is not None:
                row |= {name: large[name], f"{name}, 4 x the area": large[name] / small[name]}
        return row

    for kind in KINDS:
        yield kind, functools.partial(growth, kind)


SECTIONS: dict[str, tuple[Callable[[Bench], Iterator[Measurement]], float]] = {
    "tests": (tests, 0.26),
    "encoder": (encoder, 0.08),
    "tiles": (tiles, 0.10),
    "fused": (fused, 0.06),
    "agreement": (agreement, 0.10),
    "files": (files, 0.33),
    "idle": (idle, 0.04),
    "memory": (memory, 0.03),
}
"""Sections and their shares of the time; what one leaves goes to those after it."""


# -- the process that measures --------------------------------------------------------------------


def work(pipe: Any, device: torch.device, sizes: Sizes, folder: Path) -> None:
    """Measure the sections that are asked for; send rows, then whether the device still works."""
    while (asked := pipe.recv()) is not None:
        name, deadline = asked
        before = settings()
        for row in rows_of(name, Bench(device, sizes, folder, deadline)):
            pipe.send({"section": name, **row})
        if settings() != before:
            pipe.send({"section": name, "what": "settings", "error": f"changed to {settings()}"})
        pipe.send(works(device))


def rows_of(name: str, bench: Bench) -> Iterator[Row]:
    section, _ = SECTIONS[name]
    try:
        for what, measure in section(bench):
            if time.monotonic() > bench.deadline:
                yield {"what": what, "skipped": "the section's time is used up"}
                continue
            yield {"what": what, **tried(measure)}
            if not works(bench.device):
                yield {"what": "the rest", "skipped": "the device's context is broken"}
                return
    except Exception:
        yield {"what": name, "error": traceback.format_exc(limit=-3)}


def tried(measure: Callable[[], Row]) -> Row:
    """Figures or the error, with what geoseg warned of meanwhile."""
    warned = Warned()
    log = logging.getLogger("geoseg")
    log.addHandler(warned)
    try:
        row = measure()
    except Exception:
        row = {"error": traceback.format_exc(limit=-3)}
    finally:
        log.removeHandler(warned)
    return row | ({"warnings": warned.messages} if warned.messages else {})


class Warned(logging.Handler):
    """Keeps warnings."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        """Keep one."""
        self.messages.append(record.getMessage())


def works(device: torch.device) -> bool:
    try:
        synchronise(device)
    except Exception:  # an error that stays, of this or an earlier kernel
        return False
    return True


def settings() -> dict[str, Any]:
    """What a program may rely on that geoseg leaves as it is."""
    return {
        "float32 products": torch.backends.cuda.matmul.allow_tf32,
        "convolutions": torch.backends.cudnn.allow_tf32,
        "benchmark": torch.backends.cudnn.benchmark,
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "threads": torch.get_num_threads(),
    }


class Worker:
    """The process that measures; a broken one is replaced."""

    def __init__(self, *arguments: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, other = context.Pipe()
        self._process = context.Process(target=work, args=(other, *arguments), daemon=True)
        self._process.start()
        other.close()

    def measure(self, section: str, deadline: float, add: Callable[[Row], None]) -> bool:
        """Hand on a section's rows; whether the process can go on."""
        self._pipe.send((section, deadline))
        try:
            while self._pipe.poll(max(deadline + GRACE_S - time.monotonic(), 0)):
                said = self._pipe.recv()
                if isinstance(said, bool):
                    return said
                add(said)
            why = f"no answer within {GRACE_S} s after the section's time"
        except (EOFError, OSError):
            self._process.join(5)
            why = f"the process ended with code {self._process.exitcode}"
        add({"section": section, "what": "the rest", "error": why})
        return False

    def end(self) -> None:
        """End the process, whatever it does."""
        self._process.kill()
        self._process.join()


# -- table, file, summary -------------------------------------------------------------------------


class Report:
    """Rows, printed and written as they come.

    Parameters
    ----------
    file
        Where they are written; None only prints.
    device
        The device that is measured.
    """

    def __init__(self, file: Path | None, device: torch.device) -> None:
        self.rows: list[Row] = []
        self._file, self._start = file, time.monotonic()
        self._facts = {
            "benchmark": "gpu_check",
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "arguments": sys.argv[1:],
            "machine": _common.machine(),
            "device": _described(device),
        }
        print(f"{self._facts['device']}\n", flush=True)
        print(f"{'section':<10} {'what':<44} figures", flush=True)

    def add(self, row: Row) -> None:
        """Print a row and write it."""
        self.rows.append(row)
        print(f"{row['section']:<10} {row['what']:<44} {_figures(row)}", flush=True)
        self._write()

    def finish(self) -> None:
        """Say in a line what to look at first."""
        summary = summarised(self.rows)
        print(f"\nsummary: {summary}", flush=True)
        self._write(summary=summary)

    def _write(self, **more: Any) -> None:
        if self._file is None:
            return
        seconds = round(time.monotonic() - self._start, 1)
        content = {**self._facts, "seconds": seconds, **more, "rows": self.rows}
        self._file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self._file.with_suffix(".part")
        unfinished.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        unfinished.replace(self._file)


def _described(device: torch.device) -> str:
    if device.type != "cuda":
        return f"{device}, torch {torch.__version__}"
    try:
        found = torch.cuda.get_device_properties(device)
    except RuntimeError as error:
        return f"{device}: {error}"
    memory = f"{found.total_memory / 2**30:.0f} GiB"
    version = f"torch {torch.__version__}, CUDA {torch.version.cuda}"
    return f"{found.name}, {memory}, capability {found.major}.{found.minor}, {version}"


def _figures(row: Row) -> str:
    for name in ("error", "skipped"):
        if name in row:
            return f"{name}: {row[name].strip().splitlines()[-1]}"
    return "  ".join(
        f"{name} {_text(value)}"
        for name, value in row.items()
        if name not in ("section", "what", "end of output") and value not in (None, [], {})
    )


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"
    if isinstance(value, dict):
        first = list(value.items())[:6]
        return "(" + ", ".join(f"{name[:40]} {_text(one)}" for name, one in first) + ")"
    if isinstance(value, list):
        return f"({'; '.join(map(str, value))})"
    return str(value)


def summarised(rows: Sequence[Row]) -> str:
    """In one line: what takes most beside the encoder, for each upsampler, and its share."""
    found = {(row["section"], row["what"]): row for row in rows}
    parts = []
    shares = {
        row["what"]: row["of matrix rate"]
        for row in rows
        if row["what"].startswith("encoder, batch") and row.get("of matrix rate")
    }
    if shares:
        best = max(shares, key=lambda what: shares[what])
        parts.append(f"{best}, reaches {shares[best]:.2f} of the matrix rate")
    for kind in KINDS:
        tile = found.get(("tiles", kind), {})
        runs = [
            row
            for (section, what), row in found.items()
            if section == "files" and what.startswith(f"{kind}, ") and "seconds" in row
        ]
        if "encoder s" not in tile:
            continue
        stages = {name.removesuffix(" s"): tile[name] for name in _TILE_STAGES}
        if runs:
            stages = _of_run(stages, tile, runs[-1])
        encoding = stages.pop("encoder")
        most = max(stages, key=lambda name: stages[name])
        parts.append(
            f"{kind}: beside the encoder's {encoding:.3g} s, {most} takes most, "
            f"{stages[most]:.3g} s of {encoding + sum(stages.values()):.3g} s"
        )
    failed = sum("error" in row or bool(row.get("failures")) for row in rows)
    skipped = sum("skipped" in row for row in rows)
    return "; ".join([*parts, f"{failed} rows with errors, {skipped} skipped"])


_TILE_STAGES = ("encoder s", "head s", "merge, decide, transfer s")


def _of_run(stages: dict[str, float], tile: Row, run: Row) -> dict[str, float]:
    """Stages of a whole run; what a tile in memory does not account for is reading and waiting."""
    pixels = run["Mpx/s"] * 1e6 * run["s"]
    stages = {name: value * pixels / tile["pixels"] for name, value in stages.items()}
    segment = run["seconds"]["segment"]
    products = {name: value for name, value in run["seconds"].items() if name != "segment"}
    return {**stages, "reading, writing, waiting": segment - sum(stages.values()), **products}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", help="cuda, cuda:N, or cpu to try the code [default: cuda]")
    parser.add_argument("--quick", action="store_true", help="tiny sizes, to see that it runs")
    parser.add_argument("--only", nargs="+", choices=SECTIONS, help="these sections only")
    parser.add_argument("--minutes", type=float, default=7.2, help="time for all [7.2]")
    parser.add_argument(
        "--out", type=Path, help="JSON file [results/gpu_check.json; none for a CPU]"
    )
    given = parser.parse_args()
    device = torch.device(given.device or "cuda")
    if device.type == "cuda" and not torch.cuda.is_available():
        print("no CUDA GPU here, nothing to check; --device cpu --quick tries the code")
        return
    file = given.out
    if file is None and device.type == "cuda":
        file = _common.RESULTS / "gpu_check.json"
    if device.type == "cpu":
        os.environ["TRITON_INTERPRET"] = "1"  # for the processes that measure
    report = Report(file, device)
    chosen = given.only or list(SECTIONS)
    total = sum(SECTIONS[name][1] for name in chosen)
    start, used = time.monotonic(), 0.0
    worker: Worker | None = None
    with tempfile.TemporaryDirectory() as folder:
        os.environ["GEOSEG_CACHE"] = str(Path(folder) / "cache")
        for name in chosen:
            used += SECTIONS[name][1]
            deadline = start + 60 * given.minutes * used / total
            sizes = QUICK if given.quick else Sizes()
            worker = worker or Worker(device, sizes, Path(folder))
            if not worker.measure(name, deadline, report.add):
                worker.end()
                worker = None
        if worker is not None:
            worker.end()
    report.finish()


if __name__ == "__main__":
    main()
