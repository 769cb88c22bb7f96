"""A run that was interrupted, at any moment and in any way, and what comes after it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import geoseg
from geoseg.errors import OptionError, OutputError
from geoseg.options.products import ALL_PRODUCTS, SIDE_FILES
from geoseg.pipeline import Progress
from geoseg.run.folder import JOURNAL, WORK_FOLDER
from geoseg.run.tiles import TileJob
from geoseg.testing import assert_same_raster, tiny_random_model, write_scene
from geoseg.types import Window

CLASSES = "building; road; water; forest, trees; meadow"
RASTERS = ("labels.tif", "confidence.tif")
QUICK = geoseg.Options(templates="none")
SIZE = (300, 420)
TILE = 64


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_random_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def loaded(model: str) -> geoseg.Model:
    return geoseg.load_model(model, device="cpu")


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    """A scene with a tile of nothing, which must stay nothing whatever happens."""
    return write_scene(tmp_path / "scene.tif", *SIZE, holes=[Window(64, 64, 128, 100)])


@pytest.fixture
def run(scene: Path, loaded: geoseg.Model, tmp_path: Path) -> Any:
    def call(out: str = "out", classes: str = CLASSES, **settings: Any) -> geoseg.pipeline.Run:
        options = {"model": loaded, "tile": TILE, "options": QUICK} | settings
        return geoseg.segment_to_files(scene, classes, tmp_path / out, **options)

    return call


class Cut:
    """A progress callback that ends the run at a moment of its choice."""

    def __init__(self, *, tiles: int | None = None, stage: str | None = None) -> None:
        self.tiles, self.stage = tiles, stage
        self.seen: list[Progress] = []

    def __call__(self, progress: Progress) -> None:
        self.seen.append(progress)
        if progress.stage == self.stage or (
            self.stage is None and progress.tiles_done == self.tiles
        ):
            raise KeyboardInterrupt


def cut(run: Any, **when: Any) -> None:
    settings = {name: when.pop(name) for name in list(when) if name not in ("tiles", "stage")}
    with pytest.raises(KeyboardInterrupt):
        run(progress=Cut(**when), **settings)


def assert_same_map(one: Path, other: Path) -> None:
    for name in RASTERS:
        assert_same_raster(one / name, other / name)


def visible(out: Path) -> list[str]:
    """Names of the products; what lies beside them has tests of its own."""
    beside = (".qml", ".aux.xml")
    names = (path.name for path in out.iterdir())
    return sorted(name for name in names if name[0] != "." and not name.endswith(beside))


def test_a_resumed_run_does_what_is_left_and_gives_the_same_map(run: Any, tmp_path: Path) -> None:
    whole = run("whole")
    cut(run, tiles=9)
    assert visible(tmp_path / "out") == []
    watch = Cut()
    resumed = run(resume=True, progress=watch)
    assert watch.seen[0].tiles_done == 9
    told = [p for p in watch.seen if p.stage == "segment"]
    assert list(dict.fromkeys(p.tiles_done for p in told)) == list(range(9, 36))
    windows = [p.windows_done for p in told]
    assert windows == sorted(windows)
    assert (windows[0], windows[-1]) == (0, told[0].windows)
    assert_same_map(whole.out, resumed.out)
    assert visible(resumed.out) == visible(whole.out) == sorted(geoseg.Products().names)
    assert not (resumed.out / WORK_FOLDER).exists()
    for name in ("classes", "tiles", "nodata_pixels", "polygons"):
        assert resumed.report[name] == whole.report[name]
    # Only the windows that the last tile had left open run again.
    assert whole.report["windows"] < resumed.report["windows"] < 1.1 * whole.report["windows"]


@pytest.mark.parametrize("stage", ["labels.tif", "confidence.tif", "polygons.gpkg", "preview.png"])
def test_a_run_cut_while_making_products_infers_nothing_again(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str
) -> None:
    whole = run("whole")
    cut(run, stage=stage)
    assert visible(tmp_path / "out") == []
    monkeypatch.setattr(TileJob, "run", lambda *_: pytest.fail("a tile ran again"))
    assert_same_map(whole.out, run(resume=True).out)


def test_a_run_on_another_gsd_resumes_in_the_product_stage(run: Any) -> None:
    reading = geoseg.Reading(gsd=0.8)
    whole = run("whole", reading=reading)
    cut(run, stage="polygons.gpkg", reading=reading)
    resumed = run(reading=reading, resume=True)
    assert_same_map(whole.out, resumed.out)
    assert resumed.report["classes"] == whole.report["classes"]


def test_an_interrupted_run_is_not_replaced_by_accident(run: Any) -> None:
    cut(run, tiles=3)
    with pytest.raises(OutputError, match=r"interrupted run; finish it with --resume or .*--over"):
        run()


def test_overwrite_after_an_interruption_starts_anew(run: Any, tmp_path: Path) -> None:
    cut(run, tiles=9)
    watch = Cut()
    anew = run(classes="water; land", overwrite=True, progress=watch)
    assert watch.seen[0].tiles_done == 0
    assert_same_map(anew.out, run("whole", classes="water; land").out)


def test_resume_and_overwrite_together_are_refused(run: Any) -> None:
    with pytest.raises(OptionError, match="give one of them"):
        run(resume=True, overwrite=True)


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"classes": "water; land"}, "--classes"),
        ({"options": geoseg.Options(templates="none", cls_bias=0.1)}, "--cls-bias"),
        ({"options": geoseg.Options(templates="none", stride=40)}, "--stride and --tile"),
        ({"options": geoseg.Options()}, "--templates"),
        ({"tile": 128}, "--tile"),
        ({"reading": geoseg.Reading(stretch="2,98")}, "--bands, --stretch or --gsd"),
        ({"reading": geoseg.Reading(aoi="500010,5199900,500100,5199980")}, "--aoi"),
        ({"products": geoseg.Products(polygons="none")}, "the wanted products"),
    ],
)
def test_changed_options_are_refused_by_name(run: Any, changed: dict, named: str) -> None:
    cut(run, tiles=5)
    with pytest.raises(OutputError, match=f"cannot resume, because {named} changed") as caught:
        run(resume=True, **changed)
    assert "--overwrite" in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1
    run(resume=True)  # the refusal has harmed nothing


def test_a_changed_scene_is_refused(run: Any, scene: Path) -> None:
    cut(run, tiles=5)
    write_scene(scene, *SIZE, seed=1)
    with pytest.raises(OutputError, match="because the scene changed"):
        run(resume=True)


def test_another_model_is_refused(run: Any, tmp_path: Path) -> None:
    cut(run, tiles=5)
    other = tiny_random_model(tmp_path / "other", seed=1)
    with pytest.raises(OutputError, match="because --model changed"):
        run(resume=True, model=other)


def test_an_option_given_as_its_default_changes_nothing(run: Any) -> None:
    cut(run, tiles=5)
    run(resume=True, options=geoseg.Options(templates="none", cls_bias=0.3))


def test_resuming_a_finished_run_does_nothing(
    run: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = run()
    times = {path: path.stat().st_mtime_ns for path in first.files}
    monkeypatch.setattr(TileJob, "run", lambda *_: pytest.fail("a tile ran again"))
    again = run(resume=True)
    assert again.report == first.report
    assert {path: path.stat().st_mtime_ns for path in again.files} == times


def test_a_finished_run_with_other_options_is_refused(run: Any) -> None:
    run()
    with pytest.raises(OutputError, match="finished run with other input or options"):
        run(classes="water; land", resume=True)


def test_resume_does_not_touch_files_of_somebody_else(run: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "labels.tif").write_bytes(b"precious")
    with pytest.raises(OutputError, match=r"already holds labels\.tif"):
        run(resume=True)
    assert (out / "labels.tif").read_bytes() == b"precious"


def test_resume_without_anything_to_resume_is_a_run(run: Any) -> None:
    assert run(resume=True).report["tiles"] == 35


@pytest.mark.parametrize("tail", ['{"counts": [1, 2', "\0\0\0", '{"other": 1}\n', "7\n"])
def test_a_cut_off_line_costs_its_tile(run: Any, tmp_path: Path, tail: str) -> None:
    whole = run("whole")
    cut(run, tiles=9)
    record = tmp_path / "out" / WORK_FOLDER / JOURNAL
    lines = record.read_text().splitlines(keepends=True)
    record.write_text("".join(lines[:-1]) + tail)
    watch = Cut()
    resumed = run(resume=True, progress=watch)
    assert watch.seen[0].tiles_done == 8
    assert_same_map(whole.out, resumed.out)


def test_a_damaged_record_says_so(run: Any, tmp_path: Path) -> None:
    cut(run, tiles=9)
    (tmp_path / "out" / WORK_FOLDER / JOURNAL).write_text("")
    with pytest.raises(OutputError, match="damaged; start anew with --overwrite"):
        run(resume=True)


def test_a_lost_work_file_is_not_taken_for_an_empty_map(run: Any, tmp_path: Path) -> None:
    cut(run, tiles=9)
    (tmp_path / "out" / WORK_FOLDER / "confidence.work.tif").unlink()
    resumed = run(resume=True)
    straight = run("straight")
    for name in ("labels.tif", "confidence.tif"):
        assert_same_raster(resumed.out / name, straight.out / name)


def test_a_failure_before_the_first_tile_leaves_nothing(run: Any, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(progress=Cut(tiles=0))
    assert not (tmp_path / "out").exists()


def test_overwriting_removes_products_that_the_new_run_does_not_make(run: Any) -> None:
    run(products=geoseg.Products(polygons="geojson", probabilities=True))
    new = run(overwrite=True, products=geoseg.Products(polygons="none", preview=False))
    assert visible(new.out) == ["confidence.tif", "labels.tif", "run.json"]


# A process that has loaded everything and forks: each child is a run that may be killed, and costs
# no new start.
FORKS = """
import json, os, random, signal, sys, time
from pathlib import Path
import torch
torch.set_num_threads(1)
import geoseg

plan = json.loads(sys.argv[1])
model = geoseg.load_model(plan["model"], device="cpu")

def child(work):
    pid = os.fork()
    if pid == 0:
        signal.alarm(120)  # a child that hangs dies, and says so by its status
        try:
            work()
        except BaseException as error:
            print(repr(error), file=sys.stderr)
            os._exit(1)
        os._exit(0)
    return pid

def segment(out, **settings):
    geoseg.segment_to_files(
        plan["scene"], settings.pop("classes", plan["classes"]), out, model=model,
        tile=plan["tile"], options=geoseg.Options(templates="none"), **settings,
    )

def wait(pid):
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
"""

RANDOM_KILLS = (
    FORKS
    + """
out = Path(plan["out"])
start = time.monotonic()
assert wait(child(lambda: segment(plan["whole"]))) == 0
whole = time.monotonic() - start
dice = random.Random(plan["seed"])
killed = []
while len(killed) < plan["kills"]:
    pid = child(lambda: segment(out, resume=True))
    time.sleep(dice.uniform(0, whole))
    os.kill(pid, signal.SIGKILL)
    if wait(pid) == 0:
        os.rename(out, out.with_name(f"finished-{len(list(out.parent.iterdir()))}"))
        continue
    record = out / ".geoseg-work" / "journal.jsonl"
    tiles = len(record.read_bytes().splitlines()) - 1 if record.exists() else 0
    files = sorted(p.name for p in out.iterdir() if p.name[0] != ".") if out.exists() else []
    killed.append([tiles, files])
assert wait(child(lambda: segment(out, resume=True))) == 0
print(json.dumps(killed))
"""
)

KILLED_WHILE_PUBLISHING = (
    FORKS
    + """
def dies(after):
    move = Path.replace
    moved = []
    def replace(self, target):
        if Path(target).parent == Path(plan["out"]):
            if len(moved) == after:
                os.kill(os.getpid(), signal.SIGKILL)
            moved.append(self.name)
        return move(self, target)
    Path.replace = replace
    segment(plan["out"], overwrite=True)

assert wait(child(lambda: segment(plan["out"], classes="old; older"))) == 0
assert wait(child(lambda: dies(plan["after"]))) == -signal.SIGKILL
between = sorted(p.name for p in Path(plan["out"]).iterdir() if p.name[0] != ".")
assert wait(child(lambda: segment(plan["out"], resume=True))) == 0
print(json.dumps(between))
"""
)


def run_forks(code: str, **plan: Any) -> Any:
    done = subprocess.run(
        [sys.executable, "-c", code, json.dumps(plan, default=str)],
        capture_output=True, text=True, timeout=300,
        # No threads of the parent may hold a lock at the moment of a fork.
        env={**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_killed_at_ten_random_moments(scene: Path, model: str, tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    runs.mkdir()
    killed = run_forks(
        RANDOM_KILLS, scene=scene, classes=CLASSES, model=model, tile=TILE, whole=runs / "whole",
        out=runs / "out", kills=10, seed=int(time.time()),
    )  # fmt: skip
    assert len(killed) == 10
    all_files = {*geoseg.Products().names, *geoseg.Products().side_files}
    for _, files in killed:
        # Products are moved to their names when all are complete, run.json last; a kill may still
        # come while the finished run clears its work folder.
        assert "run.json" not in files or set(files) == all_files
    for finished in runs.iterdir():
        assert visible(finished) == sorted(geoseg.Products().names)
        assert_same_map(finished, runs / "whole")


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("after", range(5))
def test_killed_between_the_moves_of_an_overwriting_run(
    scene: Path, model: str, tmp_path: Path, run: Any, after: int
) -> None:
    between = run_forks(
        KILLED_WHILE_PUBLISHING, scene=scene, classes=CLASSES, model=model, tile=TILE,
        out=tmp_path / "out", after=after,
    )  # fmt: skip
    assert "run.json" not in between, "old and new files look like one finished run"
    assert_same_map(tmp_path / "out", run("whole").out)
    assert visible(tmp_path / "out") == sorted(geoseg.Products().names)
    assert set(between) <= {*ALL_PRODUCTS, *SIDE_FILES}


@pytest.fixture
def command(scene: Path, model: str, tmp_path: Path) -> Iterator[Any]:
    """Start the command line in a process group of its own, as a terminal does."""
    started: list[subprocess.Popen[str]] = []

    def start(*extra: str) -> subprocess.Popen[str]:
        # A shell lets what it starts in the background ignore Ctrl-C, these tests too.
        code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
        code += "from geoseg_cli.start import run; run()"
        arguments = ["segment", str(scene), "--classes", CLASSES, "--model", model]
        arguments += ["--out", str(tmp_path / "out"), "--tile", "32", "--templates", "none"]
        arguments += extra
        process = subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        )  # fmt: skip
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def wait_for_tiles(process: subprocess.Popen[str], out: Path, tiles: int) -> None:
    record = out / WORK_FOLDER / JOURNAL
    deadline = time.monotonic() + 120
    while not record.exists() or len(record.read_bytes().splitlines()) <= tiles:
        assert process.poll() is None, process.stderr and process.stderr.read()
        assert time.monotonic() < deadline, "the run has not come so far"
        time.sleep(0.005)


@pytest.mark.slow
@pytest.mark.parametrize("extra", [[], ["--workers", "2"]], ids=["threads", "workers"])
def test_ctrl_c_ends_with_one_line_and_resume_goes_on(
    command: Any, run: Any, tmp_path: Path, extra: list[str]
) -> None:
    first = command(*extra)
    wait_for_tiles(first, tmp_path / "out", 3)
    os.killpg(first.pid, signal.SIGINT)
    _, stderr = first.communicate(timeout=60)
    assert first.returncode == 130, stderr
    lines = [line for line in stderr.splitlines() if "%" not in line and "dashboard" not in line]
    assert lines == ["error: interrupted; run the same command with --resume to go on"]
    assert visible(tmp_path / "out") == []

    second = command("--resume", "--quiet")
    _, stderr = second.communicate(timeout=120)
    assert second.returncode == 0, stderr
    assert stderr == ""
    assert_same_map(tmp_path / "out", run("whole").out)
