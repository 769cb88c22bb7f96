"""Names and streams may have any letters: none of them makes a run fail."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import geopandas
import pyogrio
import pytest
from typer.testing import CliRunner
from vectors import blobs, label_file

from geoseg.io.aoi import Aoi
from geoseg.io.labels import LabelRaster
from geoseg.testing import tiny_random_model, write_scene
from geoseg.vector import vectorize
from geoseg.vector.stats import zone_stats
from geoseg_cli.main import app

posix = pytest.mark.skipif(sys.platform == "win32", reason="such names cannot be on Windows")
NAMES = ["!map", "a!b;c", "#1 %41?x=1", 'it\'s "here"', "Wäldchen 屋", "[ab]*"]


@posix
@pytest.mark.parametrize("name", NAMES)
def test_polygons_are_written_and_read_under_any_name(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    folder.mkdir()
    labels = label_file(folder / f"{name}.tif", blobs(20, 30, 2, seed=3), ["a", "b"])
    for suffix in (".gpkg", ".fgb", ".geojson", ".parquet"):
        out = folder / f"{name}{suffix}"
        count = vectorize(labels, out).count
        if suffix != ".parquet":
            assert len(zone_stats(labels, out).zone.unique()) == count
            assert Aoi.open(str(out), LabelRaster.open(labels).grid).outline.area > 0
        vectorize(labels, out, overwrite=True)
    assert {file.suffix for file in folder.iterdir()} == {
        ".tif", ".gpkg", ".fgb", ".geojson", ".parquet"
    }  # fmt: skip
    assert list(tmp_path.iterdir()) == [folder]


@posix
def test_a_shapefile_of_any_name_keeps_its_other_files(tmp_path: Path) -> None:
    labels = label_file(tmp_path / "labels.tif", blobs(20, 30, 2, seed=3), ["a", "b"])
    vectorize(labels, tmp_path / "p.gpkg")
    pyogrio.write_dataframe(geopandas.read_file(tmp_path / "p.gpkg"), tmp_path / "p.shp")
    for file in tmp_path.glob("p.*"):
        file.rename(tmp_path / f"zo!nes{file.suffix}")
    table = zone_stats(labels, tmp_path / "zo!nes.shp", column="class_name")
    assert set(table.zone) == {"a", "b"}


@posix
def test_a_run_leaves_its_files_under_any_name(tmp_path: Path, runner: CliRunner) -> None:
    scene = write_scene(tmp_path / "scene!.tif", 60, 70)
    out = tmp_path / "!map"
    model = tiny_random_model(tmp_path / "model")
    done = runner.invoke(app, ["segment", str(scene), "-c", "a; b", "-m", model, "-o", str(out)])
    assert done.exit_code == 0, done.output
    report = json.loads((out / "run.json").read_text())
    assert report["scene"] == str(scene)
    assert {"labels.tif", "polygons.gpkg", "preview.png"} <= {file.name for file in out.iterdir()}


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
def test_streams_of_any_encoding_take_all_letters(encoding: str, tmp_path: Path) -> None:
    labels = label_file(tmp_path / "labels.tif", blobs(20, 30, 2, seed=3), ["λ", "屋 \U0001f332"])
    code = "from geoseg_cli.main import run; run()"
    for command in (
        ["segment", "--help"],
        ["vectorize", str(labels), "-o", str(tmp_path / "p.gpkg"), "--json"],
        ["vectorize", str(tmp_path / "λ屋.tif"), "-o", str(tmp_path / "q.gpkg")],
    ):
        done = subprocess.run(
            [sys.executable, "-c", code, *command], capture_output=True, check=False, timeout=60,
            env=os.environ | {"PYTHONIOENCODING": encoding},
        )  # fmt: skip
        assert b"Traceback" not in done.stderr
        assert done.returncode == ("λ" in command[1])
        if "--json" in command:
            assert set(json.loads(done.stdout)["count_by_class"]) == {"λ", "屋 \U0001f332"}
