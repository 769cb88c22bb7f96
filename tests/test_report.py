"""What ``run.json`` says, for a catalogue that reads it."""

from __future__ import annotations

import hashlib
import json
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from rasterio.transform import from_origin
from rasterio.warp import transform_bounds
from rasters import make, rgb

import geoseg
from geoseg.errors import GeosegWarning, OptionError
from geoseg.run.report import SCHEMA
from geoseg.testing import tiny_random_model

FORM = json.loads((files("geoseg") / "schemas" / "run.json").read_text(encoding="utf-8"))
QUICK = geoseg.Options(templates="none")


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_random_model(tmp_path_factory.mktemp("model"))


def report_of(scene: Any, out: Path, spec: str, **more: Any) -> dict[str, Any]:
    geoseg.segment_to_files(scene, "water; tree", out, model=spec, options=QUICK, **more)
    report: dict[str, Any] = json.loads((out / "run.json").read_text())
    jsonschema.validate(report, FORM)
    return report


def test_a_report_tells_when_where_and_what(tmp_path: Path, spec: str) -> None:
    scene = make(tmp_path / "s.tif", rgb())
    report = report_of(scene, tmp_path / "out", spec)
    assert report["schema"] == SCHEMA == FORM["properties"]["schema"]["const"]
    started, finished = (datetime.fromisoformat(report[k]) for k in ("started", "finished"))
    assert started < finished
    assert report["bounds"] == [500000, 4999960, 500050, 5000000]
    assert report["transform"] == [1, 0, 500000, 0, -1, 5000000]
    known = transform_bounds("EPSG:32631", "EPSG:4326", *report["bounds"])
    assert report["bbox_wgs84"] == pytest.approx(known, abs=1e-6)
    stages = [v for k, v in report["seconds"].items() if k != "total"]
    assert report["seconds"]["total"] >= sum(stages) > 0
    (source,) = report["sources"]
    assert source["sha256"] == hashlib.sha256(scene.read_bytes()).hexdigest()
    written = {file.name for file in (tmp_path / "out").iterdir()}
    assert set(report["files"]) == written - {"run.json"}
    for name, told in report["files"].items():
        data = (tmp_path / "out" / name).read_bytes()
        assert told == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def test_a_report_without_a_place_has_nulls(tmp_path: Path, spec: str) -> None:
    scene = make(tmp_path / "s.tif", rgb(), crs=None, transform=None)
    with pytest.warns(GeosegWarning, match="no CRS"):
        report = report_of(scene, tmp_path / "out", spec)
    assert [report[k] for k in ("bounds", "bbox_wgs84", "transform")] == [None] * 3
    assert len(report["warnings"]) == 1
    assert "no CRS" in report["warnings"][0]


def test_the_box_of_a_scene_across_the_antimeridian(tmp_path: Path, spec: str) -> None:
    place = from_origin(179.9, -16, 0.005, 0.005)
    scene = make(tmp_path / "s.tif", rgb(40, 60), crs="EPSG:4326", transform=place)
    with pytest.warns(GeosegWarning, match="coarse"):
        report = report_of(scene, tmp_path / "out", spec)
    assert report["bbox_wgs84"] == pytest.approx([179.9, -16.2, -179.8, -16])


def test_a_mosaic_names_its_sources(tmp_path: Path, spec: str) -> None:
    scenes = [
        make(tmp_path / f"{i}.tif", rgb(seed=i), transform=from_origin(5e5 + 50 * i, 5e6, 1, 1))
        for i in range(2)
    ]
    report = report_of(scenes, tmp_path / "out", spec)
    assert [one["path"] for one in report["sources"]] == [str(scene) for scene in scenes]


def test_a_part_of_a_scene_has_its_own_bounds(tmp_path: Path, spec: str) -> None:
    scene = make(tmp_path / "s.tif", rgb())
    reading = geoseg.Reading(aoi="500010,4999970,500030,4999990")
    report = report_of(scene, tmp_path / "out", spec, reading=reading)
    assert report["bounds"] == [500010, 4999970, 500030, 4999990]
    assert report["size"] == [20, 20]


def test_with_a_source_date_all_files_are_the_same_bytes(
    tmp_path: Path, spec: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    scene = make(tmp_path / "s.tif", rgb())
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    found = []
    for name in ("one", "other"):
        report = report_of(scene, tmp_path / name, spec)
        found.append({f.name: f.read_bytes() for f in (tmp_path / name).iterdir()})
    assert len(found[0]) > 6
    assert found[0] == found[1]
    assert report["started"] == report["finished"] == "2023-11-14T22:13:20.000Z"
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "yesterday")
    with pytest.raises(OptionError, match="SOURCE_DATE_EPOCH is 'yesterday'"):
        report_of(scene, tmp_path / "wrong", spec)
