"""The same tiles on worker processes: same map, same errors, and workers may die."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import pytest

import geoseg
from geoseg.errors import GeosegError, OptionError, SceneError
from geoseg.pipeline import Progress
from geoseg.run.cluster import connect, worker_environment
from geoseg.run.tiles import TileJob
from geoseg.testing import assert_same_raster, tiny_random_model, write_scene
from geoseg.types import Window

CLASSES = "building; road; water; forest, trees; meadow"
QUICK = geoseg.Options(templates="none")
PRODUCTS = geoseg.Products(polygons="none", preview=False)
TILE = 64


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_random_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scene") / "scene.tif"
    return write_scene(path, 700, 900, holes=[Window(64, 64, 128, 100)])


def segment(scene: Path, out: Path, model: Any, **settings: Any) -> geoseg.pipeline.Run:
    return geoseg.segment_to_files(
        scene, CLASSES, out, model=model, options=QUICK, products=PRODUCTS, tile=TILE,
        device="cpu", **settings,
    )  # fmt: skip


@pytest.fixture(scope="module")
def alone(scene: Path, model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The map of a run in one process."""
    return segment(scene, tmp_path_factory.mktemp("alone"), model).out


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    with connect(workers=2) as found:
        yield found


def models_held(client: Any) -> list[int]:
    """How many models each worker holds."""

    def models() -> int:
        import gc

        from geoseg.model.loading import Model

        return sum(isinstance(one, Model) for one in gc.get_objects())

    return list(client.run(models).values())


def damage(scene: Path, target: Path) -> Path:
    """Copy a scene with nonsense in the middle of its pixels."""
    data = bytearray(scene.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 5000] = b"\xff" * 5000
    target.write_bytes(data)
    return target


def assert_same_map(one: Path, other: Path) -> None:
    for name in ("labels.tif", "confidence.tif"):
        assert_same_raster(one / name, other / name)


@pytest.mark.slow
def test_workers_give_the_same_map_and_load_the_model_once(
    client: Any, scene: Path, model: str, alone: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.chdir(scene.parent)
    spread = segment(Path(scene.name), tmp_path / "out", model, client=client)
    assert_same_map(spread.out, alone)
    assert models_held(client) == [1, 1]


@pytest.mark.slow
def test_what_all_tiles_need_travels_once(
    scene: Path, model: str, client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent, packed = [], TileJob.__getstate__
    monkeypatch.setattr(TileJob, "__getstate__", lambda job: sent.append(job) or packed(job))
    segment(scene, tmp_path / "out", model, client=client)
    assert 1 <= len(sent) <= 2  # by the run, and by the scheduler for the worker


def test_a_damaged_scene_gives_the_line_it_gives_in_one_process(
    client: Any, scene: Path, model: str, tmp_path: Path
) -> None:
    broken = damage(scene, tmp_path / "broken.tif")
    messages = []
    for where in (None, client):
        with pytest.raises(SceneError, match="file is damaged") as caught:
            segment(broken, tmp_path / "out", model, client=where, overwrite=True)
        messages.append(str(caught.value).split(": pixels in rows")[0])
    assert messages == [str(broken)] * 2


@pytest.mark.slow
def test_a_killed_worker_costs_only_its_tiles(
    client: Any, scene: Path, model: str, alone: Path, tmp_path: Path
) -> None:
    victims = client.run(os.getpid)
    killed = []

    def kill_one(progress: Progress) -> None:
        if progress.tiles_done >= 20 and not killed:
            killed.append(next(iter(victims.values())))
            os.kill(killed[0], signal.SIGKILL)

    spread = segment(scene, tmp_path / "out", model, client=client, progress=kill_one)
    assert killed
    assert_same_map(spread.out, alone)


@pytest.mark.slow
def test_a_running_scheduler_is_used_and_left_running(
    scene: Path, model: str, alone: Path, tmp_path: Path
) -> None:
    address_file = tmp_path / "scheduler.json"
    commands = [
        ["dask_scheduler", "--port", "0", "--host", "127.0.0.1", "--no-dashboard",
         "--scheduler-file", str(address_file)],
        ["dask_worker", "--nthreads", "2", "--no-dashboard", "--scheduler-file", str(address_file)],
    ]  # fmt: skip
    started = []
    try:
        for name, *arguments in commands:
            command = [sys.executable, "-m", f"distributed.cli.{name}", *arguments]
            started.append(
                subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            )
        address = wait_for_address(address_file)
        with connect(scheduler=address) as client:
            spread = segment(scene, tmp_path / "out", model, client=client)
            assert models_held(client) == [1]
        assert_same_map(spread.out, alone)
        assert [process.poll() for process in started] == [None, None]
    finally:
        for process in reversed(started):
            process.terminate()
            process.wait(timeout=30)


def wait_for_address(file: Path) -> str:
    import json
    import time

    for _ in range(600):
        if file.exists() and file.read_text():
            return str(json.loads(file.read_text())["address"])
        time.sleep(0.1)
    raise AssertionError("the scheduler did not start")


@pytest.mark.slow
def test_the_command_line_stays_quiet_about_its_workers(
    scene: Path, model: str, tmp_path: Path
) -> None:
    broken = damage(scene, tmp_path / "broken.tif")
    arguments = [
        "segment", str(broken), "--classes", CLASSES, "--model", model, "--templates", "none",
        "--out", str(tmp_path / "out"), "--tile", "640", "--workers", "1",
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", "from geoseg_cli.main import run; run()", *arguments],
        capture_output=True, text=True, timeout=180,
    )  # fmt: skip
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {broken}: pixels in rows")
    assert done.stdout == ""


def test_without_workers_there_is_no_client() -> None:
    with connect() as client:
        assert client is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"workers": -1}, "--workers is -1"),
        ({"workers": 1, "scheduler": "tcp://127.0.0.1:1"}, "give one of them"),
        ({"scheduler": "nonsense://x"}, "no Dask scheduler answers at nonsense://x"),
    ],
)
def test_impossible_clusters_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message), connect(**settings):
        pass


def test_a_scheduler_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("geoseg.run.cluster._CONNECT_SECONDS", 1)
    with (
        pytest.raises(GeosegError, match="start one with `dask scheduler`"),
        connect(scheduler="tcp://127.0.0.1:9"),
    ):
        pass
    assert dask.delayed(int)(7).compute() == 7  # other computing goes on as before


def test_cores_and_gpus_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert worker_environment(0, 2, gpus=0, cores=8)["OMP_NUM_THREADS"] == "4"
    assert worker_environment(0, 4, gpus=1, cores=2)["OMP_NUM_THREADS"] == "1"
    assert "CUDA_VISIBLE_DEVICES" not in worker_environment(1, 2, gpus=1, cores=8)
    seen = [worker_environment(n, 4, gpus=2, cores=8)["CUDA_VISIBLE_DEVICES"] for n in range(4)]
    assert seen == ["0", "1", "0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,GPU-5")
    seen = [worker_environment(n, 4, gpus=2, cores=8)["CUDA_VISIBLE_DEVICES"] for n in range(4)]
    assert seen == ["2", "GPU-5", "2", "GPU-5"]
