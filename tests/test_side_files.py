"""Rasters explain themselves in other programs, and nothing describes an earlier map."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest
import rasterio
from rasterio.enums import ColorInterp
from typer.testing import CliRunner
from vectors import blobs, label_file

import geoseg
from geoseg.errors import GeosegWarning, OutputError
from geoseg.io.write import provenance
from geoseg.testing import tiny_random_model, write_scene
from geoseg.vector import vectorize
from geoseg_cli.main import app

ALL = geoseg.Products(probabilities=True, margin=True, polygons="none", preview=False)
QUICK = geoseg.Options(templates="none")
TIME = "2019:09:04 10:11:12"


@pytest.fixture(scope="module")
def spec(tmp_path_factory: pytest.TempPathFactory) -> str:
    return tiny_random_model(tmp_path_factory.mktemp("model"))


@pytest.fixture
def scene(tmp_path: Path) -> Path:
    path = write_scene(tmp_path / "scene.tif", 90, 120)
    with rasterio.open(path, "r+") as dataset:
        dataset.update_tags(TIFFTAG_DATETIME=TIME)
    return path


def segment(scene: Path, out: Path, spec: str, classes: str, **more: object) -> geoseg.pipeline.Run:
    return geoseg.segment_to_files(
        scene, classes, out, model=spec, **{"options": QUICK, "products": ALL} | more
    )


def columns_of(aux: Path) -> Iterator[tuple[str, list[str]]]:
    """Usage and cells of each column of a raster attribute table."""
    table = ET.parse(aux).getroot().find("PAMRasterBand/GDALRasterAttributeTable")
    assert table is not None
    assert table.get("tableType") == "thematic"
    rows = [[cell.text or "" for cell in row.iter("F")] for row in table.iter("Row")]
    for number, column in enumerate(table.iter("FieldDefn")):
        yield column.findtext("Usage") or "", [row[number] for row in rows]


def test_labels_have_an_attribute_table_and_a_legend_of_the_classes(
    scene: Path, spec: str, tmp_path: Path
) -> None:
    run = segment(scene, tmp_path / "out", spec, "water; field & <crop>; tree")
    entries = run.report["classes"]
    columns = dict(columns_of(tmp_path / "out" / "labels.tif.aux.xml"))
    value, count, name, *colours = (columns[usage] for usage in "5126789")
    assert value == ["0", "1", "2"]
    assert count == [str(entry["pixels"]) for entry in entries]
    assert name == ["water", "field & <crop>", "tree"]
    with rasterio.open(run.out / "labels.tif") as dataset:
        assert str(run.out / "labels.tif.aux.xml") in dataset.files
        table = dataset.colormap(1)
    assert [table[i] for i in range(3)] == list(zip(*(map(int, c) for c in colours), strict=True))
    qml = ET.fromstring((run.out / "labels.qml").read_text().split("\n", 1)[1])
    assert [e.get("label") for e in qml.iter("paletteEntry")] == name
    for ramp in ("confidence", "margin", "probabilities"):
        qml = ET.fromstring((run.out / f"{ramp}.qml").read_text().split("\n", 1)[1])
        assert [e.get("value") for e in qml.iter("item")][::4] == ["0", "100"]


def test_rasters_say_what_they_are_and_where_they_come_from(
    scene: Path, spec: str, tmp_path: Path
) -> None:
    out = segment(scene, tmp_path / "out", spec, "water; field,crop; tree").out
    for name in ("labels", "confidence", "margin", "probabilities"):
        with rasterio.open(out / f"{name}.tif") as dataset:
            tags = dataset.tags()
            assert tags["TIFFTAG_DATETIME"] == TIME
            assert tags["GEOSEG_SCENE"] == "scene.tif"
            assert tags["GEOSEG_MODEL"] == spec
            assert tags["GEOSEG_CLASSES"] == "water; field, crop; tree"
            assert tags["TIFFTAG_SOFTWARE"] == f"geoseg {tags['GEOSEG_VERSION']}"
            if name != "labels":
                assert set(dataset.units) == {"%"}
    with rasterio.open(out / "probabilities.tif") as dataset:
        assert dataset.descriptions == ("water", "field", "tree")
        assert set(dataset.colorinterp) <= {ColorInterp.gray, ColorInterp.undefined}


@pytest.mark.parametrize(
    ("domain", "tags", "time"),
    [
        (None, {"TIFFTAG_DATETIME": TIME}, TIME),
        (None, {"TIFFTAG_DATETIME": "2019-09-04T10:11:12"}, TIME),
        (None, {"EXIF_DateTimeOriginal": TIME}, TIME),
        (None, {"PRODUCT_START_TIME": "2019-09-04T10:11:12.024Z"}, TIME),
        (None, {"PRODUCT_START_TIME": "2019-09-04T12:11:12+02:00"}, TIME),
        ("IMAGERY", {"ACQUISITIONDATETIME": "2019-09-04 10:11:12"}, TIME),
        (None, {"TIFFTAG_DATETIME": "2024:01:01 00:00:00", "EXIF_DateTimeOriginal": TIME}, TIME),
        (None, {"TIFFTAG_DATETIME": "yesterday"}, None),
        (None, {}, None),
    ],
)
def test_the_time_of_a_scene_is_found_where_products_keep_it(
    tmp_path: Path, domain: str | None, tags: dict[str, str], time: str | None
) -> None:
    scene = write_scene(tmp_path / "s.tif", 9, 9)
    with rasterio.open(scene, "r+") as dataset:
        dataset.update_tags(ns=domain, **tags)
    assert provenance(str(scene), "m", [["a"]]).get("TIFFTAG_DATETIME") == time


def test_side_files_of_an_earlier_map_go_with_it(scene: Path, spec: str, tmp_path: Path) -> None:
    out = segment(scene, tmp_path / "out", spec, "water; crop; tree").out
    for stale in (
        "labels.tif.ovr",
        "confidence.tif.msk",
        "margin.tif.aux.xml",
        "labels.tif.vat.dbf",
    ):
        (out / stale).write_text("of the earlier map")
    (out / "labels.tif.aux.xml").write_text("water")
    (out / "notes.qml").write_text("mine")
    few = geoseg.Products(polygons="none", preview=False)
    segment(scene, out, spec, "tree; water", overwrite=True, products=few)
    assert {file.name for file in out.iterdir()} == {
        "labels.tif", "labels.tif.aux.xml", "labels.qml", "confidence.tif", "confidence.qml",
        "run.json", "notes.qml",
    }  # fmt: skip
    names = dict(columns_of(out / "labels.tif.aux.xml"))["2"]
    assert names == ["tree", "water"]


def test_side_files_are_never_replaced_unasked(scene: Path, spec: str, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "labels.qml").write_text("mine")
    with pytest.raises(OutputError, match=r"already holds labels\.qml"):
        segment(scene, out, spec, "a; b")
    assert (out / "labels.qml").read_text() == "mine"


def test_a_finished_run_is_known_though_another_program_has_written_beside_it(
    scene: Path, spec: str, tmp_path: Path
) -> None:
    out = segment(scene, tmp_path / "out", spec, "a; b").out
    (out / "labels.tif.aux.xml").write_text("<PAMDataset/>")
    with pytest.warns(GeosegWarning, match=r"labels\.tif\.aux\.xml is missing or has changed"):
        again = segment(scene, out, spec, "a; b", resume=True)
    assert again.report == json.loads((out / "run.json").read_text())
    assert (out / "labels.tif.aux.xml").read_text() == "<PAMDataset/>"


def test_raster_style_leaves_alone_what_is_not_ours(tmp_path: Path, runner: CliRunner) -> None:
    labels = label_file(tmp_path / "labels.tif", blobs(20, 30, 2, seed=1), ["a", "b"])
    command = ["vectorize", str(labels), "--raster-style", "-o"]
    assert runner.invoke(app, [*command, str(tmp_path / "p.gpkg")]).exit_code == 0
    assert runner.invoke(app, [*command, str(tmp_path / "q.gpkg")]).exit_code == 0
    (tmp_path / "labels.qml").write_text("mine")
    assert runner.invoke(app, [*command, str(tmp_path / "r.gpkg")]).exit_code == 1


def test_a_geopackage_that_is_open_elsewhere_is_refused_and_stays_whole(tmp_path: Path) -> None:
    labels = label_file(tmp_path / "labels.tif", blobs(40, 50, 3, seed=1), ["a", "b", "c"])
    out = tmp_path / "p.gpkg"
    vectorize(labels, out)
    with closing(sqlite3.connect(out)) as gis:
        gis.execute("PRAGMA journal_mode=wal")
        gis.execute("INSERT INTO layer_styles (styleName) VALUES ('mine')")
        gis.commit()
        with pytest.raises(OutputError, match="open in another program"):
            vectorize(labels, out, overwrite=True)
        assert gis.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    summary = vectorize(labels, out, overwrite=True)
    with closing(sqlite3.connect(out)) as file:
        assert file.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert file.execute("SELECT count(*) FROM segments").fetchone() == (summary.count,)


@pytest.mark.parametrize("end", ["-wal", "-shm", "-journal"])
def test_logs_that_a_killed_program_left_go_with_their_geopackage(tmp_path: Path, end: str) -> None:
    labels = label_file(tmp_path / "labels.tif", blobs(40, 50, 3, seed=1), ["a", "b", "c"])
    out = tmp_path / "p.gpkg"
    vectorize(labels, out)
    (tmp_path / f"p.gpkg{end}").write_bytes(b"left behind" * 99)
    summary = vectorize(labels, out, overwrite=True)
    assert {f.name for f in tmp_path.iterdir()} == {"labels.tif", "p.gpkg", "p.qml"}
    with closing(sqlite3.connect(out)) as file:
        assert file.execute("SELECT count(*) FROM segments").fetchone() == (summary.count,)


def test_a_run_refuses_to_replace_polygons_that_are_open(
    scene: Path, spec: str, tmp_path: Path
) -> None:
    more = geoseg.Products(preview=False)
    out = segment(scene, tmp_path / "out", spec, "a; b", products=more).out
    with closing(sqlite3.connect(out / "polygons.gpkg")) as gis:
        gis.execute("PRAGMA journal_mode=wal")
        gis.execute("INSERT INTO layer_styles (styleName) VALUES ('mine')")
        gis.commit()
        before = (out / "labels.tif").read_bytes()
        with pytest.raises(OutputError, match=r"polygons\.gpkg: is open in another program"):
            segment(scene, out, spec, "b; a", overwrite=True, products=more)
        assert (out / "labels.tif").read_bytes() == before
    segment(scene, out, spec, "b; a", overwrite=True, products=more)
