"""Whatever happens, nothing is lost, and nothing wrong ends without a word."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import rasterio
import torch

import geoseg
from geoseg import _claim
from geoseg.errors import GeosegError, GeosegWarning, OutputError, SceneError, TileError
from geoseg.inference.segmenter import Segmenter
from geoseg.io.fingerprint import sample_digest
from geoseg.io.scene import Scene
from geoseg.model.loading import Model, load_model
from geoseg.testing import assert_same_raster, tiny_random_model, write_scene
from geoseg.types import Window

WORDS = "building; road; water; tree"
QUICK = geoseg.Options(templates="none")
PRODUCTS = geoseg.Products(polygons="none", preview=False)
GEOSEG = [sys.executable, "-c", "from geoseg_cli.start import run; run()"]


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_random_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def model(spec: str) -> Model:
    return load_model(spec, device="cpu")


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("scene") / "scene.tif"
    return write_scene(path, 200, 260, holes=[Window(0, 0, 64, 64)])


def segment(scene: Any, out: Path, model: Any, **more: Any) -> geoseg.pipeline.Run:
    return geoseg.segment_to_files(
        scene, WORDS, out, model=model, tile=64, **{"options": QUICK, "products": PRODUCTS} | more
    )


@pytest.fixture(scope="module")
def straight(scene: Path, model: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return segment(scene, tmp_path_factory.mktemp("straight"), model).out


class StopError(Exception):
    """Raised in the middle of a run."""


def interrupt(scene: Path, out: Path, model: Model, after: int = 9) -> Path:
    def stop(state: Any) -> None:
        if state.tiles_done == after:
            raise StopError

    with pytest.raises(StopError):
        segment(scene, out, model, progress=stop)
    return out / ".geoseg-work"


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    place = max(len(data) - 64 * 64, 0)
    data[place : place + 100] = bytes(255 - byte for byte in data[place : place + 100])
    file.write_bytes(data)


def empty(file: Path) -> None:
    file.write_bytes(b"")


DAMAGES: dict[str, Callable[[Path], None]] = {
    "cut": cut, "flip": flip, "empty": empty, "gone": Path.unlink,
    "other": lambda file: file.write_text("hello"),
}  # fmt: skip


@pytest.mark.parametrize("name", ["labels", "confidence"])
@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_work_files_are_not_believed(
    damage: str, name: str, scene: Path, model: Model, straight: Path, tmp_path: Path
) -> None:
    work = interrupt(scene, tmp_path / "out", model)
    DAMAGES[damage](work / f"{name}.work.tif")
    resumed = segment(scene, tmp_path / "out", model, resume=True)
    for file in ("labels.tif", "confidence.tif"):
        assert_same_raster(resumed.out / file, straight / file)


@pytest.mark.parametrize(
    "line",
    ["[]", "null", "17", '{"tile": 3}', "[" * 5000,
     '{"tile": "3", "windows": 4, "checksums": {}, "retried": ""}',
     '{"tile": 3, "windows": 4, "checksums": {}, "retried": 1}',
     '{"tile": 3, "windows": 4, "checksums": {}, "retried": "", "more": 1}',
     '{"tile": 3, "windows": 1, "checksums": {"labels": -1}, "retried": ""}',
     '{"tile": 3, "windows": 1, "checksums": {"labels": 5, "confidence": 6}, "retried": ""}'],
)  # fmt: skip
def test_a_record_that_lies_is_not_believed(
    line: str, scene: Path, model: Model, straight: Path, tmp_path: Path
) -> None:
    journal = interrupt(scene, tmp_path / "out", model) / "journal.jsonl"
    first, *others = journal.read_text().splitlines()
    journal.write_text("\n".join([first, *others[:2], line, *others[2:]]) + "\n")
    resumed = segment(scene, tmp_path / "out", model, resume=True)
    assert_same_raster(resumed.out / "labels.tif", straight / "labels.tif")


@pytest.mark.parametrize("line", ["[]", "null", "", "{", '"text"'])
def test_a_record_of_nothing_is_one_line(
    line: str, scene: Path, model: Model, tmp_path: Path
) -> None:
    journal = interrupt(scene, tmp_path / "out", model) / "journal.jsonl"
    journal.write_text(line + "\n")
    with pytest.raises(OutputError, match="is damaged; start anew with --overwrite"):
        segment(scene, tmp_path / "out", model, resume=True)


@pytest.mark.parametrize("damage", DAMAGES)
def test_products_of_a_finished_run_are_verified(
    damage: str, scene: Path, model: Model, straight: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(straight, out)
    again = segment(scene, out, model, resume=True)
    assert again.report == json.loads((straight / "run.json").read_text())
    DAMAGES[damage](out / "labels.tif")
    with pytest.raises(OutputError, match=r"labels.tif is missing or has changed"):
        segment(scene, out, model, resume=True)


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", ["labels.tif.aux.xml", "confidence.qml"])
def test_side_files_of_a_finished_run_may_change_with_a_warning(
    name: str, damage: str, scene: Path, model: Model, straight: Path, tmp_path: Path
) -> None:
    """Other programs write into them."""
    out = tmp_path / "out"
    shutil.copytree(straight, out)
    DAMAGES[damage](out / name)
    with pytest.warns(GeosegWarning, match=f"{name} is missing or has changed"):
        again = segment(scene, out, model, resume=True)
    assert again.report == json.loads((straight / "run.json").read_text())


def test_areas_come_from_the_pixels_that_were_written(straight: Path) -> None:
    report = json.loads((straight / "run.json").read_text())
    with rasterio.open(straight / "labels.tif") as file:
        counts = np.bincount(file.read(1).ravel(), minlength=256)
    assert [entry["pixels"] for entry in report["classes"]] == counts[:4].tolist()
    assert report["nodata_pixels"] == counts[255]


def test_a_scene_of_the_same_size_and_time_is_another_scene(
    scene: Path, model: Model, tmp_path: Path
) -> None:
    copy = Path(shutil.copy2(scene, tmp_path / "scene.tif"))
    interrupt(copy, tmp_path / "out", model)
    stat = copy.stat()
    flip(copy)
    os.utime(copy, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    with pytest.raises(OutputError, match="the scene changed"):
        segment(copy, tmp_path / "out", model, resume=True)


def test_samples_reach_all_over_a_large_file(tmp_path: Path) -> None:
    file = tmp_path / "large.bin"
    data = bytearray(np.random.default_rng(0).bytes(8 * 2**20))
    file.write_bytes(data)
    before = sample_digest(file)
    for start in range(0, len(data), 2**20):
        changed = bytearray(data)
        changed[start : start + 2**17] = bytes(2**17)
        file.write_bytes(changed)
        assert sample_digest(file) != before


# -- tiles that fail -----------------------------------------------------------------------------


class Flaky:
    """Makes one tile of a run fail so many times."""

    def __init__(self, error: Exception, times: int) -> None:
        self.error, self.left = error, times

    def __call__(self, read: Callable[..., Any]) -> Callable[..., Any]:
        def flaky(scene: Scene, window: Window) -> Any:
            if window.row > 60 and window.col > 60 and self.left:
                self.left -= 1
                raise self.error
            return read(scene, window)

        return flaky


@pytest.mark.parametrize(
    ("error", "words"),
    [(SceneError("gone for a moment"), "gone for a moment"),
     (torch.OutOfMemoryError(), "too little memory")],
)  # fmt: skip
def test_a_tile_that_fails_once_is_tried_again_and_listed(
    error: Exception, words: str, scene: Path, model: Model, straight: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    assert json.loads((straight / "run.json").read_text())["retried"] == []
    monkeypatch.setattr(Scene, "read", Flaky(error, 1)(Scene.read))
    done = segment(scene, tmp_path / "out", model)
    assert_same_raster(done.out / "labels.tif", straight / "labels.tif")
    assert done.report["holes"] == []
    (retried,) = done.report["retried"]
    assert words in retried["error"]
    window = Window(**retried["window"])
    assert window.height == window.width == 64
    assert window.col >= 64  # rows are read ahead, so the tile above may be the one tried again


def test_a_retried_tile_of_the_interrupted_part_stays_listed(
    scene: Path, model: Model, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Scene, "read", Flaky(SceneError("gone"), 1)(Scene.read))
    interrupt(scene, tmp_path / "out", model, after=12)
    resumed = segment(scene, tmp_path / "out", model, resume=True)
    assert_same_raster(resumed.out / "labels.tif", straight / "labels.tif")
    assert [tile["error"] for tile in resumed.report["retried"]] == ["gone"]


def test_a_tile_that_turns_out_empty_at_the_second_try_is_listed(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beyond = [Window(0, 64, 192, 128), Window(64, 0, 128, 64)]
    scene = write_scene(tmp_path / "scene.tif", 192, 192, holes=beyond)
    monkeypatch.setattr(Scene, "known_empty", lambda scene, window: False)
    monkeypatch.setattr(Scene, "read", Flaky(SceneError("gone"), 1)(Scene.read))
    done = segment(scene, tmp_path / "out", model)
    assert [tile["error"] for tile in done.report["retried"]] == ["gone"]
    with rasterio.open(done.out / "labels.tif") as file:
        labels = file.read(1)
    assert (labels[Window(**done.report["retried"][0]["window"]).slices()] == 255).all()
    assert (labels[:64, :64] != 255).all()


def test_a_tile_that_never_fits_is_named(
    scene: Path, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Scene, "read", Flaky(MemoryError(), 10**6)(Scene.read))
    with pytest.raises(TileError, match=r"pixels in rows \d+ to \d+, columns .* into memory"):
        segment(scene, tmp_path / "out", model)
    assert not (tmp_path / "out" / "labels.tif").exists()


def test_keep_going_leaves_holes_that_resume_fills(
    scene: Path, model: Model, straight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    monkeypatch.setattr(Scene, "read", Flaky(SceneError("unreadable"), 10**6)(Scene.read))
    partly = segment(scene, out, model, keep_going=True)
    holes = partly.report["holes"]
    assert 2 <= len(holes) < partly.report["tiles"]
    assert {hole["error"] for hole in holes} == {"unreadable"}
    with rasterio.open(out / "labels.tif") as file:
        labels = file.read(1)
    for hole in holes:
        assert (labels[Window(**hole["window"]).slices()] == 255).all()
    monkeypatch.undo()
    states: list[geoseg.pipeline.Progress] = []
    whole = segment(scene, out, model, resume=True, progress=states.append)
    assert states[0].pixels == sum(Window(**hole["window"]).area for hole in holes)
    assert whole.report["holes"] == []
    assert_same_raster(out / "labels.tif", straight / "labels.tif")


@pytest.mark.parametrize("moment", ["nthreads", "no scheduler", "submit"])
def test_a_scheduler_that_goes_at_any_moment_is_one_line(
    moment: str, scene: Path, model: Model, tmp_path: Path
) -> None:
    from distributed.comm.core import CommClosedError

    class Leaving:
        """A client whose scheduler has just gone, which it does not know yet."""

        status = "running"

        def nthreads(self) -> dict[str, int]:
            if moment == "no scheduler":
                raise AttributeError("'NoneType' object has no attribute 'ncores'")
            return self.gone() if moment == "nthreads" else {"tcp://worker": 1}

        def submit(self, *task: Any, pure: bool) -> Any:
            sent = self.__dict__.setdefault("sent", [])  # what all need, and one of the tasks
            return self.gone() if len(sent) == 2 else sent.append(task)

        def gone(self, *_: Any) -> Any:
            raise CommClosedError("ConnectionPool closing.")

        cancel = gone

    with pytest.raises(GeosegError, match="scheduler is gone; finished tiles are kept"):
        segment(scene, tmp_path / "out", model, client=Leaving())


def test_logits_that_are_no_numbers_are_never_a_class(
    scene: Path, spec: str, tmp_path: Path
) -> None:
    model = load_model(spec, device="cpu")
    with torch.no_grad():
        model.clip.visual.proj[3, 3] = torch.nan
    with pytest.raises(TileError, match="not finite"):
        segment(scene, tmp_path / "out", model)
    segmenter = geoseg.Segmenter(model, "water; road", {"window": 64, "stride": 32})
    with pytest.raises(TileError, match="not finite"):
        segmenter.predict(np.zeros((64, 64, 3), np.uint8))


# -- who is at work ------------------------------------------------------------------------------


def test_a_claim_is_held_by_one(tmp_path: Path) -> None:
    claim = tmp_path / "claim"
    with _claim.claimed(claim, tmp_path):
        with (
            pytest.raises(OutputError, match=f"process {os.getpid()} on .* since 20"),
            _claim.claimed(claim, tmp_path),
        ):
            pass
        assert claim.exists()
    assert not claim.exists()
    with _claim.claimed(claim, tmp_path):
        pass


def test_a_claim_of_a_killed_process_is_free(tmp_path: Path) -> None:
    claim = tmp_path / "claim"
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom geoseg._claim import claimed\n"
        "with claimed(Path(sys.argv[1]), Path('x')):\n    print('held', flush=True)\n"
        "    time.sleep(60)"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", code, str(claim)], stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    with (
        pytest.raises(OutputError, match=f"process {holder.pid} "),
        _claim.claimed(claim, tmp_path),
    ):
        pass
    holder.kill()
    holder.wait()
    assert claim.exists()
    with _claim.claimed(claim, tmp_path):
        pass


def test_where_locks_do_not_reach_the_time_tells(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another machine's claim holds while it is renewed, and no longer."""
    claim = tmp_path / "claim"
    claim.write_text(json.dumps({"process": 7, "host": "elsewhere", "since": 1.7e9}))
    with (
        pytest.raises(OutputError, match="process 7 on elsewhere"),
        _claim.claimed(claim, tmp_path),
    ):
        pass
    old = time.time() - 2 * _claim.STALE_SECONDS
    os.utime(claim, (old, old))
    with _claim.claimed(claim, tmp_path):
        pass


def test_without_locks_whoever_makes_the_claim_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_claim, "fcntl", None)
    claim = tmp_path / "claim"
    with _claim.claimed(claim, tmp_path):
        for content in (claim.read_bytes(), b"", b"[" * 4000, b'{"process": 1, "since": "x"}'):
            claim.write_bytes(content)  # the owner may not have signed it yet
            with (
                pytest.raises(OutputError, match=r"at work there .* \(120 s if it was killed\)"),
                _claim.claimed(claim, tmp_path),
            ):
                pass
    assert not claim.exists()
    with _claim.claimed(claim, tmp_path):
        pass


def test_without_locks_of_many_that_come_at_once_one_has_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_claim, "fcntl", None)
    claim, start, end = tmp_path / "claim", threading.Barrier(8), threading.Barrier(8)

    def come(_: int) -> bool:
        start.wait()
        try:
            with _claim.claimed(claim, tmp_path):
                end.wait()
                return True
        except OutputError:
            end.wait()
            return False

    with ThreadPoolExecutor(8) as pool:
        for abandoned in (False, True, True, True):
            if abandoned:
                claim.write_text("")
                os.utime(claim, (1e9, 1e9))
            assert sum(pool.map(come, range(8))) == 1
    assert not list(tmp_path.iterdir())


def test_a_claim_that_another_one_has_taken_over_is_left_to_it(tmp_path: Path) -> None:
    claim = tmp_path / "claim"
    with _claim.claimed(claim, tmp_path):  # on a machine that then sleeps for a while
        claim.unlink()
        claim.write_text("another's")
    assert claim.read_text() == "another's"


def test_a_mark_that_was_left_by_a_kill_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_claim, "fcntl", None)
    claim, mark = tmp_path / "claim", tmp_path / "claim-taken"
    for file in (claim, mark):
        file.touch()
        os.utime(file, (1e9, 1e9))
    with pytest.raises(OutputError, match="just started"), _claim.claimed(claim, tmp_path):
        pass
    with _claim.claimed(claim, tmp_path):
        assert json.loads(claim.read_text())["process"] == os.getpid()
    assert not list(tmp_path.iterdir())


def test_a_second_run_leaves_the_first_alone(
    scene: Path, model: Model, straight: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    refused = []

    def intrude(state: Any) -> None:
        if state.tiles_done == 4:
            with pytest.raises(OutputError, match="another run is at work there") as caught:
                segment(scene, out, model, overwrite=True)
            refused.append(str(caught.value))

    done = segment(scene, out, model, progress=intrude)
    assert refused
    assert_same_raster(done.out / "labels.tif", straight / "labels.tif")
    assert sorted(file.name for file in out.iterdir()) == [
        "confidence.qml", "confidence.tif", "labels.qml", "labels.tif", "labels.tif.aux.xml",
        "run.json",
    ]  # fmt: skip


# -- processes -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_workers_listen_on_this_machine_alone() -> None:
    code = (
        "from geoseg.run.cluster import connect\n"
        "if __name__ == '__main__':\n"
        "    with connect(workers=2):\n        print('up', flush=True)\n        input()"
    )
    script = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert script.stdout is not None
    try:
        assert script.stdout.readline() == "up\n"
        started = psutil.Process(script.pid)
        family = [started, *started.children(recursive=True)]
        addresses = {
            connection.laddr.ip
            for process in family
            for connection in process.net_connections()
            if connection.status == psutil.CONN_LISTEN
        }
        assert len(family) >= 3
        assert addresses == {"127.0.0.1"}
    finally:
        script.communicate("\n", timeout=60)


@pytest.mark.slow
def test_a_child_of_a_fork_maps_too(scene: Path, model: Model, tmp_path: Path) -> None:
    segment(scene, tmp_path / "parent", model)
    child = os.fork()
    if child == 0:
        torch.set_num_threads(1)
        segment(scene, tmp_path / "child", model)
        os._exit(0)
    for _ in range(600):
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            break
        time.sleep(0.1)
    else:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        pytest.fail("the child hangs")
    assert status == 0
    assert_same_raster(tmp_path / "child" / "labels.tif", tmp_path / "parent" / "labels.tif")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGTERM, 143, "terminated"),
                                 (signal.SIGINT, 130, "interrupted")],
)  # fmt: skip
def test_signals_end_a_run_with_a_line(
    number: int, code: int, word: str, spec: str, tmp_path: Path
) -> None:
    big = write_scene(tmp_path / "big.tif", 900, 900)
    out = tmp_path / "out"
    run = subprocess.Popen(
        [*GEOSEG, "segment", str(big), "--classes", WORDS, "--model", spec, "--templates", "none",
         "--tile", "32", "--out", str(out), "-q"],
        stderr=subprocess.PIPE, text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )  # fmt: skip
    journal = out / ".geoseg-work" / "journal.jsonl"
    for _ in range(1200):
        if journal.exists() and len(journal.read_bytes().splitlines()) > 5:
            break
        time.sleep(0.05)
    run.send_signal(number)
    _, said = run.communicate(timeout=60)
    assert run.returncode == code
    assert said == f"error: {word}; run the same command with --resume to go on\n"


@pytest.mark.slow
def test_many_runs_in_one_process_leave_nothing_behind(spec: str, tmp_path: Path) -> None:
    """Descriptors, threads, temporary files and memory are level after the first runs."""
    code = f"""
import gc, tempfile, threading
from pathlib import Path
import psutil
import geoseg
from geoseg.testing import write_scene
folder = Path({str(tmp_path)!r})
scene = write_scene(folder / "scene.tif", 100, 130)
options, me = geoseg.Options(templates="none"), psutil.Process()
for number in range(50):
    geoseg.segment_to_files(scene, "building; road; water", folder / "out", model={spec!r},
                            options=options, tile=64, overwrite=True)
    if number in (9, 49):
        gc.collect()
        files = list(Path(tempfile.gettempdir()).iterdir())
        print(me.num_fds(), threading.active_count(), len(files), me.memory_info().rss, flush=True)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True,
        env=os.environ | {"TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    early, late = ([int(word) for word in line.split()] for line in done.stdout.splitlines())
    assert late[:3] == early[:3]
    assert late[3] < 1.1 * early[3]


def test_an_address_that_tells_nothing_warns_when_resumed(
    scene: Path, model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: dict[str, Any] = {"files": [], "server": {"Content-Length": "5"}, "pixels": "0f"}
    marks = {"path": "http://x/s.tif"} | told
    monkeypatch.setattr(Scene, "fingerprint", lambda self, **_: marks)
    interrupt(scene, tmp_path / "out", model)
    with pytest.warns(GeosegWarning, match="nothing tells whether it is still the scene"):
        segment(scene, tmp_path / "out", model, resume=True)


def test_a_segmenter_may_be_used_by_several_threads(model: Model) -> None:
    from concurrent.futures import ThreadPoolExecutor

    segmenter = Segmenter(model, WORDS, QUICK)
    images = np.random.default_rng(0).random((4, 100, 90, 3), dtype=np.float32)
    alone = [segmenter.predict(image).labels for image in images]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda image: segmenter.predict(image).labels, images))
    for one, other in zip(alone, together, strict=True):
        assert np.array_equal(one, other)


def test_ctrl_c_while_the_commands_are_loaded_is_no_traceback() -> None:
    code = (
        "import sys, types\n"
        "class Stops(types.ModuleType):\n"
        "    def __getattr__(self, name): raise KeyboardInterrupt\n"
        "sys.modules['typer'] = Stops('typer')\n"
        "from geoseg_cli.start import run\nrun()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")
