"""Many scenes in one call: each ends by itself, in a folder of its own, and a record tells all."""

from __future__ import annotations

import io
import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from rasterio.transform import from_origin
from rasters import make, rgb
from typer.testing import CliRunner, Result

import geoseg
from geoseg import pipeline
from geoseg.errors import GeosegWarning, OptionError, OutputError, SceneError
from geoseg.io.expand import expand_scenes, is_one_scene
from geoseg.pipeline import products
from geoseg.run.result import Progress
from geoseg.run.scenes import jobs_of
from geoseg.testing import tiny_random_model
from geoseg_cli.main import app

WORDS = "water; tree; road"
QUICK = geoseg.Options(templates="none")


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_random_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two good scenes and one that is none, apart from each other."""
    path = tmp_path / "in"
    path.mkdir()
    for number, name in enumerate("ac"):
        make(
            path / f"{name}.tif",
            rgb(seed=number),
            transform=from_origin(5e5 + 1e4 * number, 5e6, 1, 1),
        )
    (path / "b.tif").touch()
    return path


def segment(scenes: object, out: Path, spec: str, *more: object) -> Result:
    given = scenes if isinstance(scenes, list) else [scenes]
    common = ["--classes", WORDS, "--model", spec, "--templates", "none", "--out", out]
    return CliRunner().invoke(app, ["segment", *map(str, [*given, *common, *more])])


def lines(manifest: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in manifest.read_text().splitlines()]


# -- scenes that fail ----------------------------------------------------------------------------


def test_a_scene_that_fails_ends_alone_and_all_are_told(
    folder: Path, tmp_path: Path, spec: str
) -> None:
    out, manifest = tmp_path / "out", tmp_path / "runs.jsonl"
    done = segment(folder, out, spec, "--json", "--manifest", manifest)
    assert done.exit_code == 1
    told = json.loads(done.stdout)
    assert [Path(run["out"]).name for run in told["runs"]] == ["a", "c"]
    assert [run["status"] for run in told["runs"]] == ["done", "done"]
    (failed,) = told["failed"]
    assert failed["scene"] == str(folder / "b.tif")
    assert failed["out"] == str(out / "b")
    assert "empty" in failed["error"]
    assert told["exit_code"] == 1
    assert told["seconds"] > 0
    assert told["started"] < told["finished"]
    found = lines(manifest)
    assert [line["status"] for line in found] == ["done", "failed", "done"]
    assert [line["error"] is None for line in found] == [True, False, True]
    assert set(found[0]["areas_m2"]) == {"water", "tree", "road"}
    assert sum(found[0]["areas_m2"].values()) == pytest.approx(2000, rel=0.01)
    assert {Path(file).parent for file in found[2]["files"]} == {out / "c"}


class UnforeseenError(RuntimeError):
    pass


@pytest.mark.parametrize(
    "error", [UnforeseenError("who would\nhave thought"), MemoryError(), OSError(28, "x")]
)
def test_what_nobody_expected_ends_one_scene_too(
    folder: Path, tmp_path: Path, spec: str, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    usual = products.vectorize

    def breaks(labels: Path, *rest: Any, **more: Any) -> Any:
        if "/a/" in str(labels):
            raise error
        return usual(labels, *rest, **more)

    monkeypatch.setattr(products, "vectorize", breaks)
    done = segment(folder, tmp_path / "out", spec, "--json")
    assert done.exit_code == 1
    told = json.loads(done.stdout)
    assert [Path(run["out"]).name for run in told["runs"]] == ["c"]
    assert [Path(one["scene"]).stem for one in told["failed"]] == ["a", "b"]
    assert all("a.tif" in line for line in done.stderr.splitlines() if "unexpected" in line)


def test_a_folder_that_cannot_be_written_ends_its_scene(
    folder: Path, tmp_path: Path, spec: str
) -> None:
    out = tmp_path / "out"
    (out / "a").mkdir(parents=True)
    (out / "a" / ".geoseg-work").touch()
    (folder / "b.tif").unlink()
    done = segment(folder, out, spec, "--json")
    assert done.exit_code == 1
    assert [Path(run["out"]).name for run in json.loads(done.stdout)["runs"]] == ["c"]
    assert (out / "c" / "run.json").exists()


def test_exit_codes_tell_some_from_none(folder: Path, tmp_path: Path, spec: str) -> None:
    (folder / "a.tif").write_bytes(b"")
    assert segment(folder, tmp_path / "some", spec).exit_code == 1
    (folder / "c.tif").unlink()
    assert segment(folder, tmp_path / "none", spec).exit_code == 3
    assert segment(folder / "b.tif", tmp_path / "one", spec).exit_code == 1
    for given in (folder, folder / "b.tif"):
        done = segment(given, tmp_path / "usage", spec, "--overwrite", "--resume")
        assert done.exit_code == 2


def test_a_failure_is_json_too(folder: Path, tmp_path: Path, spec: str) -> None:
    manifest = tmp_path / "m.jsonl"
    one = segment(folder / "b.tif", tmp_path / "o", spec, "--json", "--manifest", manifest)
    told = json.loads(one.stdout)
    assert (one.exit_code, told["exit_code"], told["runs"]) == (1, 1, [])
    assert "empty" in told["failed"][0]["error"]
    assert len(one.stderr.splitlines()) == 1
    assert [line["status"] for line in lines(manifest)] == ["failed"]
    early = segment(folder, tmp_path / "o", "no/such", "--json", "--manifest", manifest)
    assert early.exit_code == 1
    assert "no/such" in json.loads(early.stdout)["error"]
    assert [line["status"] for line in lines(manifest)] == ["failed"] * 4
    other = CliRunner().invoke(app, ["info", str(folder / "b.tif"), "--json"])
    assert json.loads(other.stdout) == {
        "error": f"{folder / 'b.tif'}: is empty (0 bytes)", "exit_code": 1,
    }  # fmt: skip


def test_a_manifest_outlives_a_kill(folder: Path, tmp_path: Path, spec: str) -> None:
    """What was written stays, a line that was cut off spoils no other."""
    manifest, out = tmp_path / "m.jsonl", tmp_path / "out"

    class KilledError(BaseException):
        pass

    def stop(scene: str, *_: object) -> None:
        if scene.endswith("c.tif"):
            raise KilledError

    scenes = [folder / "a.tif", folder / "c.tif"]
    common: dict[str, Any] = {"model": spec, "options": QUICK, "manifest": manifest}
    with pytest.raises(KilledError):
        pipeline.segment_many(scenes, WORDS, out, on_scene=stop, **common)
    assert [line["status"] for line in lines(manifest)] == ["done"]
    with manifest.open("a") as file:
        file.write('{"scene": "c')
    pipeline.segment_many(scenes, WORDS, out, update=True, **common)
    kept = [line for line in manifest.read_text().splitlines() if line.endswith("}")]
    assert [json.loads(line)["status"] for line in kept] == ["done", "skipped", "done"]
    with pytest.raises(OutputError, match=r"s3://b/m\.jsonl: is an address"):
        pipeline.segment_many(scenes, WORDS, out, **common | {"manifest": "s3://b/m.jsonl"})


# -- folders -------------------------------------------------------------------------------------


def test_a_folder_of_scenes_has_one_layout_however_many_there_are(
    folder: Path, tmp_path: Path, spec: str
) -> None:
    for name in "bc":
        (folder / f"{name}.tif").unlink()
    (tmp_path / "list.txt").write_text(f"{folder / 'a.tif'}\n")
    for number, given in enumerate([folder, f"{folder}/*.tif", f"@{tmp_path / 'list.txt'}"]):
        out = tmp_path / str(number)
        assert segment(given, out, spec).exit_code == 0
        assert [path.name for path in out.iterdir()] == ["a"]
    assert segment(folder / "a.tif", tmp_path / "one", spec).exit_code == 0
    assert (tmp_path / "one" / "labels.tif").exists()


def test_names_of_folders_come_from_the_scene_alone(tmp_path: Path) -> None:
    scenes = [tmp_path / "x" / "s.tif", tmp_path / "y" / "s.tif"]
    with pytest.raises(OptionError, match=r"x/s\.tif and .*y/s\.tif would both .*\{parent\}_"):
        jobs_of(scenes, "out")
    for order in (scenes, scenes[::-1]):
        found = {job.scene: job.out for job in jobs_of(order, "out", "{parent}_{stem}")}
        assert found[str(scenes[0])] == Path("out/x_s")
    (job,) = jobs_of(["https://me:word@host/town/s.b.tif?sig=1"], "out", "{parent}/{name}")
    assert job.out == Path("out/town/s.b.tif")
    for wrong in ("{size}", "", "../{stem}", "/abs", "{"):
        with pytest.raises(OptionError, match="--out-name"):
            jobs_of(scenes[:1], "out", wrong)


def test_scenes_come_from_lists(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    a, c = str(folder / "a.tif"), str(folder / "c.tif")
    file = tmp_path / "list.txt"
    file.write_text(
        f"\ufeff{a}\r\n\n{folder}/c*.tif\n{a}\nhttps://host/x.tif?a=b\n", encoding="utf-8"
    )
    assert expand_scenes([f"@{file}"]) == [a, c, "https://host/x.tif?a=b"]
    for text, words in (("", "names no scene"), (f"@{file}\n", "names another list")):
        (tmp_path / "bad.txt").write_text(text)
        with pytest.raises(SceneError, match=words):
            expand_scenes([f"@{tmp_path / 'bad.txt'}"])
    with pytest.raises(SceneError, match=r"list of scenes .*none.txt does not exist"):
        expand_scenes([f"@{tmp_path / 'none.txt'}"])
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(f"{c}\n".encode())))
    assert expand_scenes(["-"]) == [c]
    assert [is_one_scene([p]) for p in (a, "-", f"@{file}", folder, "*.tif")] == [True] + [
        False
    ] * 4


def test_scenes_that_lie_side_by_side_get_a_hint(tmp_path: Path, spec: str) -> None:
    for number, x in enumerate((5e5, 5e5 + 50, 6e5)):
        make(tmp_path / f"{number}.tif", rgb(seed=number), transform=from_origin(x, 5e6, 1, 1))
    near = [tmp_path / "0.tif", tmp_path / "1.tif"]
    common: dict[str, Any] = {"model": spec, "options": QUICK}
    with pytest.warns(GeosegWarning, match=r"0\.tif and .*1\.tif lie side by side.*--mosaic"):
        pipeline.segment_many(near, WORDS, tmp_path / "near", **common)
    same = shutil.copy(tmp_path / "0.tif", tmp_path / "other_day.tif")
    far = [tmp_path / "0.tif", tmp_path / "2.tif", Path(same)]
    pipeline.segment_many(far, WORDS, tmp_path / "far", **common)  # a warning would be an error


# -- update --------------------------------------------------------------------------------------


def test_update_does_what_is_to_be_done(
    folder: Path, tmp_path: Path, spec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, scene = tmp_path / "out", folder / "a.tif"

    def update(**more: Any) -> str:
        settings = {"model": spec, "options": QUICK} | more
        return geoseg.segment_to_files(scene, WORDS, out, update=True, **settings).status

    assert update() == "done"
    first = (out / "labels.tif").read_bytes()
    assert update() == "skipped"
    content = scene.read_bytes()  # fetched again
    scene.unlink()
    scene.write_bytes(content)
    assert update() == "skipped"
    assert update(options=geoseg.Options(templates="none", cls_bias=0.1)) == "done"
    assert update() == "done"
    assert (out / "labels.tif").read_bytes() == first
    with rasterio.open(scene, "r+") as dataset:
        dataset.write(dataset.read()[:, ::-1])
    assert update() == "done"
    assert (out / "labels.tif").read_bytes() != first
    (out / "labels.tif").unlink()
    assert update() == "done"
    for name in ("labels.tif", "polygons.gpkg", "run.json"):  # as a workflow engine does
        (out / name).unlink()
    assert update() == "done"
    (out / "preview.png").write_bytes(b"touched")
    with pytest.warns(GeosegWarning, match=r"preview\.png has changed since"):
        assert update() == "done"
    with pytest.raises(OptionError, match="--update"):
        update(overwrite=True)


def test_update_finishes_what_was_interrupted_and_no_other_run(tmp_path: Path, spec: str) -> None:
    scene = make(tmp_path / "s.tif", rgb(120, 130))
    common: dict[str, Any] = {"model": spec, "options": QUICK, "tile": 64}
    whole = geoseg.segment_to_files(scene, WORDS, tmp_path / "whole", **common)

    def stop(state: Progress) -> None:
        if state.tiles_done == 2:
            raise KeyboardInterrupt

    for changed, status in (({}, "resumed"), ({"tile": 128}, "done")):
        out = tmp_path / status
        with pytest.raises(KeyboardInterrupt):
            geoseg.segment_to_files(scene, WORDS, out, progress=stop, **common)
        run = geoseg.segment_to_files(scene, WORDS, out, update=True, **common | changed)
        assert run.status == status
        with rasterio.open(out / "labels.tif") as one, rasterio.open(whole.files[0]) as other:
            assert np.array_equal(one.read(), other.read())


def test_update_leaves_files_of_others_alone(folder: Path, tmp_path: Path, spec: str) -> None:
    common: dict[str, Any] = {"model": spec, "options": QUICK, "update": True}
    for name, text in {"labels.tif": "precious", "run.json": "{}", "margin.tif": "mine"}.items():
        out = tmp_path / name
        out.mkdir()
        (out / name).write_text(text)
        with pytest.raises(OutputError, match=f"{name} is not geoseg's"):
            geoseg.segment_to_files(folder / "a.tif", WORDS, out, **common)
        assert (out / name).read_text() == text


def test_resume_takes_over_what_an_engine_has_left(folder: Path, tmp_path: Path, spec: str) -> None:
    common: dict[str, Any] = {"model": spec, "options": QUICK}
    run = geoseg.segment_to_files(folder / "a.tif", WORDS, tmp_path / "out", **common)
    before = run.files[0].read_bytes()
    for name in ("labels.tif", "polygons.gpkg", "run.json"):
        (run.out / name).unlink()
    geoseg.segment_to_files(folder / "a.tif", WORDS, run.out, resume=True, **common)
    assert run.files[0].read_bytes() == before


def test_many_scenes_killed_twice_are_mapped_once_each(tmp_path: Path, spec: str) -> None:
    scenes = tmp_path / "in"
    scenes.mkdir()
    for number in range(12):
        place = from_origin(5e5 + 1e4 * number, 5e6, 1, 1)
        make(scenes / f"{number:02d}.tif", rgb(40, 40, seed=number), transform=place)
    (scenes / "02.tif").write_bytes(b"")
    (scenes / "05.tif").write_text("no raster")
    (scenes / "07.tif").write_bytes((scenes / "08.tif").read_bytes()[:900])
    make(scenes / "09.tif", rgb()[:2])
    manifest = tmp_path / "m.jsonl"
    common: dict[str, Any] = {"model": spec, "options": QUICK, "update": True, "manifest": manifest}

    class KilledError(BaseException):
        pass

    def stop_at(name: str) -> Any:
        def stop(scene: str, *_: object) -> None:
            if scene.endswith(name):
                raise KilledError

        return stop

    paths = expand_scenes([scenes])
    for name in ("04.tif", "08.tif"):
        with pytest.raises(KilledError):
            pipeline.segment_many(paths, WORDS, tmp_path / "out", on_scene=stop_at(name), **common)
    done = pipeline.segment_many(paths, WORDS, tmp_path / "out", **common)
    assert len(done.errors) == 4
    mapped = [Path(line["scene"]).stem for line in lines(manifest) if line["status"] == "done"]
    assert sorted(mapped) == ["00", "01", "03", "04", "06", "08", "10", "11"]
    last = {Path(line["scene"]).stem: line["status"] for line in lines(manifest)}
    assert sorted(name for name, status in last.items() if status == "failed") == [
        "02", "05", "07", "09",
    ]  # fmt: skip


# -- what a call would do, and where its options come from -----------------------------------------


def test_a_dry_run_says_what_would_be(folder: Path, tmp_path: Path, spec: str) -> None:
    out = tmp_path / "out"
    assert segment(folder / "a.tif", out / "a", spec).exit_code == 0
    done = segment(folder, out, spec, "--dry-run", "--update")
    assert done.exit_code == 1
    a, b, c = done.stdout.splitlines()
    assert a == f"{folder / 'a.tif'} -> {out / 'a'}: finished, 50 x 40 pixels"
    assert "is empty" in b
    assert c.endswith(": new, 50 x 40 pixels")
    told = json.loads(segment(folder, out, spec, "--dry-run", "--json").stdout)["scenes"]
    assert [one["state"] for one in told] == ["finished", "new", "new"]
    assert "already holds labels.tif" in told[0]["error"]
    assert [path.name for path in out.iterdir()] == ["a"]


def test_options_come_from_a_file(folder: Path, tmp_path: Path, spec: str) -> None:
    config = tmp_path / "geoseg.toml"
    config.write_text(
        f'model = "{spec}"\nclasses = ["water, lake", "tree"]\nbands = [3, 2, 1]\n'
        f'templates = "none"\nout = "{tmp_path / "out"}"\nmin-area = 3\nconfidence = false\n'
        'polygons = "geojson"\nnodata = [0]\n',
        encoding="utf-8",
    )
    given = ["segment", str(folder / "a.tif"), "--config", str(config)]
    done = CliRunner().invoke(app, [*given, "--polygons", "none"])
    assert done.exit_code == 0, done.output
    report = json.loads((tmp_path / "out" / "run.json").read_text())
    assert [c["queries"] for c in report["classes"]] == [["water", "lake"], ["tree"]]
    assert report["reading"]["bands"] == [3, 2, 1]
    assert report["products"]["min_area_m2"] == 3
    assert set(report["files"]) == {"labels.tif", "labels.tif.aux.xml", "labels.qml", "preview.png"}
    for text, words in {
        "clases = 'a;b'": "no option 'clases'; did you mean classes?",
        "preview = 'yes'": "'preview' is a switch; write true or false",
        "classes = {a = 1}": "'classes' is a table",
        "= 1": "cannot be understood",
        "gsd = 'abc'": "'gsd':",
        "window = true": "'window':",
        "polygons = 'shp'": "'polygons':",
        "tile = 2020-01-01": "'tile'",
        "[[stride]]\na = 1": "'stride'",
        "model = '\udcff'": "is no text in UTF-8",
    }.items():
        config.write_bytes(text.encode("utf-8", "surrogateescape"))
        wrong = CliRunner().invoke(app, given)
        assert wrong.exit_code == 2
        assert words in wrong.stderr
        assert len(wrong.stderr.splitlines()) == 1


def test_a_scene_without_a_name_or_with_one_that_cannot_be_is_a_line(
    folder: Path, tmp_path: Path, spec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)  # which an empty name would mean
    empty = segment([""], tmp_path / "out", spec)
    assert (empty.exit_code, empty.stderr) == (
        1,
        "error: a scene has an empty name; give the path of a file, folder or pattern\n",
    )
    names = tmp_path / "list.txt"
    names.write_text(f"{folder / 'a.tif'}\n{'x' * 5000}\na\0b.tif\n")
    done = segment([f"@{names}"], tmp_path / "out", spec, "--json")
    assert done.exit_code == 1
    told = json.loads(done.stdout)
    assert [Path(run["scene"]).name for run in told["runs"]] == ["a.tif"]
    assert len(told["failed"]) == 2
    assert not any("unexpected" in one["error"] for one in told["failed"])


def test_a_dry_run_says_what_is_wrong_with_the_options(tmp_path: Path) -> None:
    given = ["segment", "gone.tif", "--out", str(tmp_path / "out"), "--dry-run", "--classes"]
    for more in (["no/such/file.txt"], ["a; b", "--cls-bias", "-1"]):
        done = CliRunner().invoke(app, [*given, *more])
        assert done.exit_code != 0
        assert done.stdout == ""
        assert len(done.stderr.splitlines()) == 1


def test_a_record_of_a_run_makes_the_same_map(folder: Path, tmp_path: Path, spec: str) -> None:
    classes = tmp_path / "classes.toml"
    classes.write_text(
        '[[class]]\nname = "water"\nprompts = ["lake", "river"]\ncolor = "#010203"\n'
        'threshold = 0.2\n[[class]]\nname = "tree"\noffset = 0.01\n'
    )
    first = ["--classes", str(classes), "--model", spec, "--templates", "none", "--cls-bias", "0.1"]
    more = ["--simplify", "2", "--threshold", "0.1", "--no-preview", "--gsd", "1.5"]
    runner = CliRunner()
    scene, one = str(folder / "a.tif"), tmp_path / "one"
    done = runner.invoke(app, ["segment", scene, "--out", str(one), *first, *more])
    assert done.exit_code == 0, done.output
    again = ["segment", scene, "--config", str(one / "run.json"), "--out"]
    done = runner.invoke(app, [*again, str(tmp_path / "other")])
    assert done.exit_code == 0, done.output
    reports = [json.loads((path / "run.json").read_text()) for path in (one, tmp_path / "other")]
    for key in ("identity", "classes"):
        assert reports[0][key] == reports[1][key]
    assert (one / "labels.tif").read_bytes() == (tmp_path / "other" / "labels.tif").read_bytes()
    assert runner.invoke(app, [*again, str(one), "--update", "--json"]).stdout.count("skipped") == 1
    (tmp_path / "run.json").write_text('{"schema": "geoseg/run/1", "model": {}}')
    wrong = ["segment", scene, "--config", str(tmp_path / "run.json"), "--out", str(one)]
    assert "is no whole record of a run" in runner.invoke(app, wrong).stderr


def test_a_log_for_machines_has_a_line_of_json_for_all(
    folder: Path, tmp_path: Path, spec: str
) -> None:
    make(folder / "a.tif", rgb()[[0, 1, 2, 0, 1]], photometric="minisblack")
    done = segment(folder, tmp_path / "out", spec, "--log-json", "--json")
    told = [json.loads(line) for line in done.stderr.splitlines()]
    assert {line["level"] for line in told} == {"scene", "progress", "warning", "error"}
    assert all(line["time"].endswith("Z") for line in told)
    progress = [line for line in told if line["level"] == "progress"]
    stages = [line["stage"] for line in progress if line["scene"].endswith("c.tif")]
    assert stages[0] == "segment"
    assert stages[-1] == "preview.png"
    assert progress[-1]["tiles_done"] == progress[-1]["tiles"] > 0
    (warning,) = (line for line in told if line["level"] == "warning")
    assert warning["scene"].endswith("a.tif")
    assert "--bands" in warning["message"]


def test_a_dry_run_needs_words_or_examples(folder: Path, tmp_path: Path) -> None:
    given = ["segment", str(folder / "a.tif"), "--out", str(tmp_path / "out"), "--dry-run"]
    silent = CliRunner().invoke(app, given)
    assert (silent.exit_code, silent.stderr.count("\n")) == (2, 1)
    assert "nothing says what to look for" in silent.stderr
    assert CliRunner().invoke(app, [*given, "--examples", "some.gpkg"]).exit_code == 0
