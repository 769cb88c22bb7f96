"""Results at an address of an object store: uploaded when they are whole, or refused at once."""

from __future__ import annotations

import contextlib
import json
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from rasters import make, rgb
from typer.testing import CliRunner

import geoseg
from geoseg.errors import GeosegError, MissingExtraError, OptionError, OutputError
from geoseg.pipeline import segment_many
from geoseg.testing import tiny_random_model
from geoseg_cli.main import app

OUT = "memory://bucket/maps"
QUICK = geoseg.Options(templates="none", upsampler="none", window=64, stride=64)


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_random_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty store, and a folder for temporary files that is empty again afterwards."""
    MemoryFileSystem.store.clear()
    MemoryFileSystem.pseudo_dirs[:] = [""]
    temporary = tmp_path / "tmp"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.chdir(tmp_path)
    yield temporary
    assert not list(tmp_path.glob("*:*"))


def run(scene: Path, spec: str, out: str = OUT, **more: Any) -> Any:
    return geoseg.segment_to_files(
        scene, "water; tree", out, model=spec, **({"options": QUICK} | more)
    )


def stored(out: str = OUT) -> dict[str, bytes]:
    files = fsspec.filesystem("memory")
    if not files.exists(out):
        return {}
    return {Path(name).name: files.cat_file(name) for name in files.find(out)}


def test_the_same_files_lie_there_as_here(tmp_path: Path, spec: str, place: Path) -> None:
    scene = make(tmp_path / "s.tif", rgb())
    there = run(scene, spec)
    here = run(scene, spec, str(tmp_path / "map"))
    assert stored().keys() == {file.name for file in (tmp_path / "map").iterdir()}
    assert stored()["labels.tif"] == (tmp_path / "map" / "labels.tif").read_bytes()
    assert there.out == OUT
    assert there.files[0] == f"{OUT}/labels.tif"
    assert [Path(str(file)).name for file in there.files] == [
        Path(file).name for file in here.files
    ]
    assert json.loads(stored()["run.json"])["identity"] == here.report["identity"]
    assert list(place.iterdir()) == []


def test_the_record_comes_last_and_an_old_one_goes_first(
    tmp_path: Path, spec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = make(tmp_path / "s.tif", rgb())
    run(scene, spec)
    put, order = MemoryFileSystem.put_file, []

    def seen(self: Any, lpath: str, rpath: str, **more: Any) -> None:
        order.append((Path(rpath).name, "run.json" in stored()))
        put(self, lpath, rpath, **more)

    monkeypatch.setattr(MemoryFileSystem, "put_file", seen)
    run(scene, spec, overwrite=True, products={"preview": False})
    assert [name for name, _ in order][-1] == "run.json"
    assert not any(recorded for _, recorded in order)
    assert "preview.png" not in stored()


def test_what_is_there_is_not_replaced_unasked(tmp_path: Path, spec: str) -> None:
    scene = make(tmp_path / "s.tif", rgb())
    run(scene, spec)
    before = stored()
    with pytest.raises(OutputError, match=f"{OUT} already holds labels.tif"):
        run(scene, spec)
    assert stored() == before


def test_update_skips_what_is_there_and_makes_the_rest(tmp_path: Path, spec: str) -> None:
    scene = make(tmp_path / "s.tif", rgb())
    assert run(scene, spec, update=True).status == "done"
    again = run(scene, spec, update=True)
    assert (again.status, again.files[0]) == ("skipped", f"{OUT}/labels.tif")
    files = fsspec.filesystem("memory")
    files.rm_file(f"{OUT}/preview.png")
    assert run(scene, spec, update=True).status == "done"
    files.rm_file(f"{OUT}/run.json")  # an upload that was cut off
    assert run(scene, spec, update=True).status == "done"
    make(scene, rgb(seed=1))
    assert run(scene, spec, update=True).status == "done"
    files.pipe_file(f"{OUT}/labels.tif", b"somebody's")
    files.rm_file(f"{OUT}/run.json")
    with pytest.raises(OutputError, match=f"{OUT}/labels.tif is not geoseg's"):
        run(scene, spec, update=True)


def test_an_upload_that_fails_is_gone_on_with(
    tmp_path: Path, spec: str, monkeypatch: pytest.MonkeyPatch, place: Path
) -> None:
    scene = make(tmp_path / "s.tif", rgb())
    put = MemoryFileSystem.put_file

    def broken(self: Any, lpath: str, rpath: str, **more: Any) -> None:
        if rpath.endswith("preview.png"):
            raise PermissionError("no more\nroom")
        put(self, lpath, rpath, **more)

    with monkeypatch.context() as patch:
        patch.setattr(MemoryFileSystem, "put_file", broken)
        with pytest.raises(
            OutputError, match=f"{OUT}/preview.png: cannot be written .no more room"
        ):
            run(scene, spec)
    assert "run.json" not in stored()
    assert run(scene, spec, resume=True).status == "resumed"
    assert "run.json" in stored()
    assert list(place.iterdir()) == []


def test_a_mosaic_is_the_same_when_it_is_asked_for_again(tmp_path: Path, spec: str) -> None:
    from rasterio.transform import from_origin

    scenes = [
        make(tmp_path / f"{name}.tif", rgb(), transform=from_origin(500000 + left, 5000000, 1, 1))
        for name, left in (("a", 0), ("b", 50))
    ]
    assert run(scenes, spec, update=True).status == "done"  # type: ignore[arg-type]
    assert run(scenes, spec, update=True).status == "skipped"  # type: ignore[arg-type]


def test_a_batch_has_a_folder_a_scene(tmp_path: Path, spec: str) -> None:
    scenes = [make(tmp_path / f"{name}.tif", rgb(seed=i)) for i, name in enumerate("ab")]
    (tmp_path / "c.tif").write_bytes(b"broken")
    every = [*scenes, tmp_path / "c.tif"]
    manifest = tmp_path / "m.jsonl"
    settings = {"model": spec, "options": QUICK, "manifest": manifest, "update": True}
    batch = segment_many(every, "water; tree", OUT, **settings)
    assert [one.status for one in batch.outcomes] == ["done", "done", "failed"]
    assert {"labels.tif", "run.json"} <= stored(f"{OUT}/b").keys()
    lines = [json.loads(line) for line in manifest.read_text().splitlines()]
    assert lines[0]["out"] == f"{OUT}/a"
    assert lines[0]["files"][0] == f"{OUT}/a/labels.tif"
    batch = segment_many(every, "water; tree", OUT, **settings)
    assert [one.status for one in batch.outcomes] == ["skipped", "skipped", "failed"]


@pytest.mark.parametrize(
    ("out", "error", "said"),
    [
        ("s3://bucket/maps", MissingExtraError, r"s3://bucket/maps: needs .*geoseg\[stores\]"),
        ("https://host/maps", OutputError, "https://host/maps: is an address"),
        ("nonsense://bucket/maps", GeosegError, "nonsense:// is no store"),
    ],
)
def test_an_address_where_nothing_can_be_written_is_refused_at_once(
    tmp_path: Path,
    spec: str,
    out: str,
    error: type[GeosegError],
    said: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def missing(name: str, **more: Any) -> Any:
        raise (ImportError if name == "s3" else ValueError)(name)

    monkeypatch.setattr(fsspec, "filesystem", missing)
    for place in ("files", "many"):  # no model is loaded
        monkeypatch.setattr(f"geoseg.pipeline.{place}.segmenter_of", None)
    scene = make(tmp_path / "s.tif", rgb())
    make(tmp_path / "t.tif", rgb())
    with pytest.raises(error, match=said):
        run(scene, spec, out)
    manifest = tmp_path / "m.jsonl"
    with contextlib.suppress(error):  # what is wrong with all of them
        segment_many([scene, tmp_path / "t.tif"], "a; b", out, model=spec, manifest=manifest)
    lines = [json.loads(line) for line in manifest.read_text().splitlines()]
    assert [line["status"] for line in lines] == ["failed", "failed"]
    assert all(re.search(said.split(": ")[-1], line["error"]) for line in lines)


def test_a_store_that_takes_nothing_is_refused_before_the_model(
    tmp_path: Path, spec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: Any, path: str, *given: Any, **more: Any) -> None:
        raise PermissionError("Access Denied")

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", refuse)
    monkeypatch.setattr("geoseg.pipeline.files.segmenter_of", None)
    scene = make(tmp_path / "s.tif", rgb())
    with pytest.raises(OutputError, match=f"{OUT}: cannot be written .Access Denied"):
        run(scene, spec)


def test_the_command_line_uploads_and_says_where(tmp_path: Path, spec: str) -> None:
    make(tmp_path / "s.tif", rgb())
    words = [
        "segment", "s.tif", "--classes", "water; tree", "--model", spec, "--templates", "none",
        "--upsampler", "none", "--window", "64", "--out", OUT,
    ]  # fmt: skip
    done = CliRunner().invoke(app, [*words, "--dry-run"])
    assert done.output == f"s.tif -> {OUT}: new, 50 x 40 pixels\n"
    assert stored() == {}
    done = CliRunner().invoke(app, [*words, "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["runs"][0]["out"] == OUT
    done = CliRunner().invoke(app, [*words, "--dry-run"])
    assert done.exit_code == 1
    assert f"{OUT} already holds" in done.output
    done = CliRunner().invoke(app, [*words, "--update", "--resume"])
    assert done.exit_code == 2


def test_two_ways_at_once_are_refused(tmp_path: Path, spec: str) -> None:
    with pytest.raises(OptionError, match="give one"):
        run(make(tmp_path / "s.tif", rgb()), spec, overwrite=True, resume=True)
