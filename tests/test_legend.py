"""A legend that somebody gives decides what the values of a label raster are called."""

from __future__ import annotations

import json
import sqlite3
from contextlib import closing
from io import StringIO
from pathlib import Path
from xml.etree import ElementTree as ET

import geopandas
import numpy as np
import pandas as pd
import pytest
from PIL import Image
from rasters import make, rgb
from typer.testing import CliRunner
from vectors import UTM, label_file

from geoseg.errors import GeosegWarning, SceneError, VocabularyError
from geoseg.io.labels import LabelRaster
from geoseg.legend import open_labels
from geoseg.vector import vectorize
from geoseg_cli.main import app

TABLE = "value,name,color\n10,Open water,#112233\n30,Forest & wood,#445566\n"
LEVELS = "Value,Red,Green,Blue,Label\n10,17,34,51,Open water\n30,68,85,102,Forest & wood\n"
STYLE = (
    '<qgis><pipe><rasterrenderer type="paletted"><colorPalette>'
    '<paletteEntry value="10" label="Open water" color="#112233"/>'
    '<paletteEntry value="30" label="Forest &amp; wood" color="#445566"/>'
    "</colorPalette></rasterrenderer></pipe></qgis>"
)
OBJECTS = json.dumps(
    [
        {"code": 30, "name": "Forest & wood", "color": "#445566"},
        {"code": 10, "name": "Open water", "color": "#112233"},
    ]
)
FOUND = [(10, "Open water", "#112233"), (30, "Forest & wood", "#445566")]


def raster(path: Path, values: object, names: list[str] | None = None) -> Path:
    """Labels of others, or with tags of ours where there are names."""
    data = np.repeat(np.repeat(np.array(values, np.uint8), 8, axis=0), 8, axis=1)
    if names is None:
        return make(path, data[None], nodata=255, **UTM)
    return label_file(path, data, names)


def listed(labels: LabelRaster) -> list[tuple[int, str, str]]:
    return [(c.index, c.name, c.color) for c in labels.classes]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("c.csv", TABLE),
        ("c.tsv", TABLE.replace(",", "\t")),
        ("c.csv", TABLE.replace("value", "CODE").replace(",", ";")),
        ("c.csv", LEVELS),
        ("c.json", OBJECTS),
        ("c.qml", STYLE),
    ],
)
def test_every_kind_of_legend_names_and_colours_values(
    tmp_path: Path, name: str, text: str
) -> None:
    (tmp_path / name).write_text(text)
    labels = raster(tmp_path / "l.tif", [[10, 30], [255, 30]])
    assert listed(open_labels(labels, str(tmp_path / name))) == FOUND


def test_an_attribute_table_names_values(tmp_path: Path) -> None:
    labels = raster(tmp_path / "ours.tif", [[0, 1]], ["a", "b"])
    assert CliRunner().invoke(
        app, ["vectorize", str(labels), "-o", str(tmp_path / "p.gpkg"), "--raster-style"]
    ).exit_code == 0  # fmt: skip
    other = raster(tmp_path / "l.tif", [[0, 1]])
    found = open_labels(other, tmp_path / "ours.tif.aux.xml")
    assert listed(found) == listed(LabelRaster.open(labels))


def test_a_list_counts_from_0_and_overrules_the_raster(tmp_path: Path) -> None:
    labels = raster(tmp_path / "l.tif", [[0, 1, 2]], ["a", "b", "c"])
    own = {c.index: c.color for c in LabelRaster.open(labels).classes}
    found = open_labels(labels, "water; tree; road; never there")
    assert [c.name for c in found.classes] == ["water", "tree", "road", "never there"]
    assert {c.index: c.color for c in found.classes[:3]} == own
    bare = raster(tmp_path / "bare.tif", [[0, 1]])
    assert [c.color for c in open_labels(bare, "water; tree").classes] == ["#3b7dd8", "#1f7a3d"]


@pytest.mark.parametrize("classes", ["water; tree", ["water", "tree"]])
def test_a_list_that_is_too_short_is_refused(tmp_path: Path, classes: object) -> None:
    labels = raster(tmp_path / "l.tif", [[1, 2]])
    with pytest.raises(VocabularyError, match=r"holds value 2, .* values 0 to 1 in their order"):
        open_labels(labels, classes)  # type: ignore[arg-type]


def test_what_a_table_leaves_out_stays_as_the_raster_has_it(tmp_path: Path) -> None:
    (tmp_path / "c.csv").write_text("id,class\n1,river\n200,not in the file\n255,nothing\n")
    ours = raster(tmp_path / "l.tif", [[0, 1]], ["a", "b"])
    assert [c.name for c in open_labels(ours, str(tmp_path / "c.csv")).classes] == [
        "a", "river", "not in the file"
    ]  # fmt: skip
    bare = raster(tmp_path / "bare.tif", [[0, 1, 7]])
    with pytest.warns(GeosegWarning, match="does not name value 0, 7, which occurs"):
        found = open_labels(bare, str(tmp_path / "c.csv"))
    assert [c.name for c in found.classes] == ["class 0", "river", "class 7", "not in the file"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("value,name\n1,a\n1,b\n", "line 3: value 1 stands in it twice"),
        ("value,name\n1,a\n,b\n", "line 3: '' is no pixel value"),
        ("value,name\n1.5,a\n", "line 2: '1.5' is no pixel value"),
        ("value,name,color\n1,a,green\n", "'green' is not a colour"),
    ],
)
def test_a_table_that_makes_no_sense_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "c.csv").write_text(text)
    with pytest.raises(VocabularyError, match=message):
        open_labels(raster(tmp_path / "l.tif", [[1]]), str(tmp_path / "c.csv"))


@pytest.mark.parametrize("name", ["c.qml", "c.aux.xml", "c.vat.dbf"])
def test_a_style_that_names_nothing_is_refused(tmp_path: Path, name: str) -> None:
    labels = raster(tmp_path / "l.tif", [[1]])
    with pytest.raises(SceneError, match="no such file"):
        open_labels(labels, str(tmp_path / name))
    (tmp_path / name).write_text("<qgis/>")
    with pytest.raises(SceneError, match="names no pixel value"):
        open_labels(labels, str(tmp_path / name))


def test_commands_take_a_legend(tmp_path: Path, runner: CliRunner) -> None:
    (tmp_path / "c.csv").write_text(TABLE)
    labels = raster(tmp_path / "l.tif", [[10, 30], [30, 30]])
    scene = make(tmp_path / "s.tif", rgb(16, 16), **UTM)
    polygons, legend = tmp_path / "p.gpkg", ["--classes", str(tmp_path / "c.csv")]
    command = ["vectorize", str(labels), "-o", str(polygons), "--raster-style", *legend]
    assert runner.invoke(app, command).exit_code == 0
    assert sorted(geopandas.read_file(polygons).class_name) == ["Forest & wood", "Open water"]
    with closing(sqlite3.connect(polygons)) as file:
        (qml,) = file.execute("SELECT styleQML FROM layer_styles").fetchone()
    assert [e.get("label") for e in ET.fromstring(qml.split("\n", 1)[1]).iter("category")] == [
        "Open water", "Forest & wood"
    ]  # fmt: skip
    assert [c.name for c in LabelRaster.open(labels).classes] == ["Open water", "Forest & wood"]
    done = runner.invoke(app, ["stats", str(labels), "--zones", str(polygons), *legend])
    assert set(pd.read_csv(StringIO(done.stdout)).class_name) == {"Open water", "Forest & wood"}
    picture = tmp_path / "p.png"
    command = ["preview", str(scene), str(labels), "-o", str(picture), "--opacity", "1", *legend]
    assert runner.invoke(app, command).exit_code == 0
    with Image.open(picture) as page:
        assert (np.asarray(page.convert("RGB")) == (0x44, 0x55, 0x66)).all(axis=2).mean() > 0.1
    done = runner.invoke(app, ["vectorize", str(labels), "-o", str(polygons), "-c", "a;b"])
    assert done.exit_code == 1


def test_values_of_one_name_are_counted_together(tmp_path: Path) -> None:
    labels = raster(tmp_path / "l.tif", [[0, 1, 2]], ["wood", "water", "wood"])
    summary = vectorize(labels, tmp_path / "p.gpkg")
    assert summary.count_by_class == {"wood": 2, "water": 1}
