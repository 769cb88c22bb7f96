"""Many small scenes in one call: five of them broken, killed twice, continued with --update.

Every good scene is mapped once, the manifest tells of all, and memory stays level. Prints seconds
and processor seconds a scene, with the manifest and ``--update`` and without.

    python benchmarks/bench_batch.py --scenes 200
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import rasterio
from rasterio.transform import from_origin

CLASSES = "water; tree; road; building"
COMMAND = [sys.executable, "-c", "from geoseg_cli.main import run; run()", "segment"]
QUICK = ["--model", "geoseg-tiny", "--templates", "none", "--upsampler", "none", "--quiet"]


def make_scenes(folder: Path, count: int, side: int) -> None:
    """Write scenes of noise, and break the last five in five ways."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(count):
        place = from_origin(500000 + 2 * side * number, 5000000, 1, 1)
        profile = {"driver": "GTiff", "width": side, "height": side, "dtype": "uint8"}
        data = rng.integers(1, 256, (3, side, side)).astype(np.uint8)
        with rasterio.open(
            folder / f"s{number:03d}.tif",
            "w",
            count=3,
            crs="EPSG:32631",
            transform=place,
            **profile,
        ) as out:
            out.write(data)
    files = sorted(folder.iterdir())[-5:]
    files[0].write_bytes(b"")
    files[1].write_bytes(files[1].read_bytes()[:2000])
    files[2].write_text("no raster")
    with rasterio.open(files[3], "w", count=2, **profile) as out:
        out.write(data[:2])
    files[4].unlink()
    files[4].symlink_to("nowhere.tif")


def call(scenes: Path, out: Path, *more: str, kill_at: int | None = None) -> tuple[int, int]:
    """Map all; exit code and largest memory in MB; killed at a scene if asked."""
    manifest, command = out.with_suffix(".jsonl"), [*COMMAND, f"{scenes}/*.tif", "--out", str(out)]
    with subprocess.Popen([*command, "--classes", CLASSES, *QUICK, *more]) as process:
        while process.poll() is None:
            time.sleep(0.05)
            if kill_at and manifest.exists() and len(manifest.read_text().splitlines()) >= kill_at:
                process.send_signal(signal.SIGKILL)
                break
            status = Path(f"/proc/{process.pid}/status")
            if status.exists() and "VmHWM" in (text := status.read_text()):
                peak = int(text.split("VmHWM:")[1].split()[0]) // 1024
        process.wait()
    return process.returncode, peak


def measured(scenes: Path, out: Path, *more: str) -> tuple[float, float]:
    """Seconds and processor seconds of a call."""
    clock, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    call(scenes, out, *more)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - clock, spent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", type=int, default=200)
    parser.add_argument("--side", type=int, default=128)
    asked = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="geoseg-bench-"))
    scenes, out, count = folder / "scenes", folder / "maps", asked.scenes
    try:
        make_scenes(scenes, count, asked.side)
        manifest = out.with_suffix(".jsonl")
        more = ("--update", "--manifest", str(manifest))
        for kill_at in (count // 3, 2 * count // 3):
            code, peak = call(scenes, out, *more, kill_at=kill_at)
            print(f"killed at {kill_at}: exit {code}, {peak} MB", flush=True)
        code, peak = call(scenes, out, *more)
        lines = [json.loads(line) for line in manifest.read_text().splitlines()]
        made = Counter(one["scene"] for one in lines if one["status"] in ("done", "resumed"))
        last = Counter({one["scene"]: one["status"] for one in lines}.values())
        print(f"finished: exit {code}, {peak} MB, {dict(last)}")
        print(f"mapped more than once: {[k for k, v in made.items() if v > 1]}")
        print(f"mapped: {len(made)}, maps: {len(list(out.glob('*/run.json')))}")
        for words in ((), ("--update", "--manifest", str(folder / "again.jsonl"))):
            shutil.rmtree(out)
            wall, spent = measured(scenes, out, *words)
            print(f"{' '.join(words[:1]) or 'plain'}: {wall:.1f} s, {spent:.1f} processor s in all")
        print(f"{os.cpu_count()} CPUs, {count} scenes of {asked.side} pixels, geoseg-tiny")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
