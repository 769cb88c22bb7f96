"""A scheduler and workers in processes of their own, used from the command line."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from geoseg.testing import assert_same_raster, tiny_random_model, write_scene

GEOSEG = [sys.executable, "-c", "from geoseg_cli.start import run; run()"]


@contextmanager
def dask_process(name: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", f"distributed.cli.{name}", "--no-dashboard", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(timeout=30)


def address_in(file: Path) -> str:
    for _ in range(600):
        if file.exists() and file.read_text():
            return str(json.loads(file.read_text())["address"])
        time.sleep(0.1)
    raise AssertionError("the scheduler did not start")


@pytest.mark.slow
def test_a_cluster_of_ones_own_maps_a_scene_and_stays(tmp_path: Path) -> None:
    model = tiny_random_model(tmp_path / "model")
    scene = write_scene(tmp_path / "scene.tif", 300, 400)
    common = [
        "segment", str(scene), "--classes", "building; road; water", "--model", model,
        "--templates", "none", "--tile", "64", "--polygons", "none", "--no-preview", "-q",
    ]  # fmt: skip
    file = tmp_path / "scheduler.json"
    where = ["--scheduler-file", str(file)]
    with dask_process("dask_scheduler", "--port", "0", "--host", "127.0.0.1", *where) as scheduler:
        address = address_in(file)
        with dask_process("dask_worker", "--nthreads", "1", *where) as worker:
            for out, more in (("alone", []), ("spread", ["--scheduler", address])):
                done = subprocess.run(
                    [*GEOSEG, *common, "--out", str(tmp_path / out), *more],
                    capture_output=True, text=True, timeout=300,
                )  # fmt: skip
                assert (done.returncode, done.stderr) == (0, "")
            assert [process.poll() for process in (scheduler, worker)] == [None, None]
    for name in ("labels.tif", "confidence.tif"):
        assert_same_raster(tmp_path / "alone" / name, tmp_path / "spread" / name)
