"""Maps that were finished apart become one: polygons across borders, classes that agree."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pytest
from affine import Affine
from typer.testing import CliRunner
from vectors import UTM, blobs, label_file

import geoseg
from geoseg.errors import OptionError, SceneError
from geoseg.legend import open_labels
from geoseg.types import Window
from geoseg.vector import VectorOptions
from geoseg.vector.stats import zone_stats
from geoseg_cli.main import app

NAMES = ["roof", "road", "water"]


def piece(path: Path, values: np.ndarray, row: int, col: int, **more: Any) -> Path:
    """A part of a map, at its place."""
    names = more.pop("names", NAMES)
    moved = UTM["transform"] * Affine.translation(col, row)
    return label_file(path, values, names, **({"transform": moved} | more))


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    values = blobs(60, 90, 3, seed=2)
    values[20:30, 40:60] = 255
    return label_file(tmp_path / "whole.tif", values, NAMES)


@pytest.fixture
def parts(tmp_path: Path, whole: Path) -> list[Path]:
    """The same map in four pieces, in no order."""
    values = open_labels(whole).read()
    places = [(30, 50), (0, 0), (30, 0), (0, 50)]
    stops = {0: (30, 50), 30: (60, 50), 50: (0, 90)}
    found = []
    for number, (row, col) in enumerate(places):
        part = values[row : stops[row][0], col : 90 if col else 50]
        found.append(piece(tmp_path / f"{number}.tif", part, row, col))
    return found


def test_joined_maps_make_the_polygons_of_the_whole(
    whole: Path, parts: list[Path], tmp_path: Path
) -> None:
    options = VectorOptions(min_area_m2=600, simplify_m=10)
    for chosen in (None, options):
        frames = []
        for name, labels in (("whole", whole), ("parts", parts)):
            out = tmp_path / f"{name}.fgb"
            geoseg.vectorize(labels, out, options=chosen, overwrite=True)
            frames.append(gpd.read_file(out))
        assert frames[0].geometry.geom_equals_exact(frames[1].geometry, 1e-9).all()
        assert frames[0].drop(columns="geometry").equals(frames[1].drop(columns="geometry"))


def test_zones_count_joined_maps_as_the_whole(
    whole: Path, parts: list[Path], tmp_path: Path
) -> None:
    geoseg.vectorize(whole, tmp_path / "zones.gpkg")
    one, other = (zone_stats(labels, tmp_path / "zones.gpkg") for labels in (whole, parts))
    assert one.drop(columns="class_name").to_numpy() == pytest.approx(
        other.drop(columns="class_name").to_numpy()
    )


def test_the_commands_take_several(parts: list[Path], tmp_path: Path) -> None:
    given = [str(part) for part in parts]
    done = CliRunner().invoke(app, ["vectorize", *given, "-o", str(tmp_path / "p.geojson")])
    assert done.exit_code == 0, done.output
    names = set(gpd.read_file(tmp_path / "p.geojson").class_name)
    assert names == set(NAMES)
    zones = ["--zones", str(tmp_path / "p.geojson"), "-o", str(tmp_path / "s.csv")]
    assert CliRunner().invoke(app, ["stats", *given, *zones]).exit_code == 0
    style = ["vectorize", *given, "-o", str(tmp_path / "q.fgb"), "--raster-style"]
    assert CliRunner().invoke(app, style).exit_code == 2


def test_confidences_of_joined_maps_are_those_of_the_whole(
    whole: Path, parts: list[Path], tmp_path: Path
) -> None:
    data = np.random.default_rng(0).integers(0, 101, (60, 90)).astype(np.uint8)
    scores = label_file(tmp_path / "scores.tif", data, [])
    pieces = []
    for number, (row, col) in enumerate([(30, 50), (0, 0), (30, 0), (0, 50)]):
        part = data[row : row + 30, col : 90 if col else 50]
        pieces.append(piece(tmp_path / f"score{number}.tif", part, row, col, names=[]))
    one = geoseg.vectorize(whole, confidence=scores)
    other = geoseg.vectorize(parts, confidence=pieces)
    for name in ("confidence", "confidence_min"):
        np.testing.assert_allclose(one[name], other[name])
    command = ["vectorize", *map(str, parts), "-o", str(tmp_path / "p.fgb")]
    told = [word for path in pieces for word in ("--confidence", str(path))]
    assert CliRunner().invoke(app, [*command, *told]).exit_code == 0
    assert gpd.read_file(tmp_path / "p.fgb").confidence.notna().all()
    refused = CliRunner().invoke(app, [*command, *told[:2], "--overwrite"])
    assert refused.exit_code == 2
    assert "1 given for 4 label rasters" in refused.stderr
    with pytest.raises(SceneError, match="does not lie on the grid"):
        geoseg.vectorize(parts, confidence=pieces[::-1])
    with pytest.raises(OptionError, match="2 rasters given for one"):
        geoseg.vectorize(whole, confidence=pieces[:2])


def test_where_maps_overlap_the_confidence_is_of_the_label_on_top(tmp_path: Path) -> None:
    ones = np.ones((10, 10), np.uint8)
    holed = ones * 2
    holed[:, :3] = 255
    labels = [piece(tmp_path / "a.tif", ones, 0, 0), piece(tmp_path / "b.tif", holed, 0, 5)]
    scores = [
        piece(tmp_path / f"{value}.tif", ones * value, 0, col, names=[])
        for value, col in ((40, 0), (90, 5))
    ]
    table = geoseg.vectorize(labels, confidence=scores).set_index("class_id")
    assert table.confidence.to_dict() == {1: 40, 2: 90}


def test_gaps_and_overlaps(tmp_path: Path) -> None:
    ones = np.ones((10, 10), np.uint8)
    holed = ones * 2
    holed[:, :5] = 255
    parts = [
        piece(tmp_path / "a.tif", ones, 0, 0),
        piece(tmp_path / "b.tif", holed, 0, 5),
        piece(tmp_path / "far.tif", ones, 40, 40),
    ]
    raster = open_labels(parts)
    values = raster.read()
    assert raster.shape == (50, 50)
    assert (values[:10, :10] == 1).all()
    assert (values[:10, 10:15] == 2).all()
    assert (values[40:, 40:] == 1).all()
    assert (values == 255).sum() == 2500 - 150 - 100
    assert raster.known_empty(Window(0, 20, 30, 20))
    assert not raster.known_empty(Window(0, 5, 30, 20))


def test_rasters_without_nodata_get_room_for_gaps(tmp_path: Path) -> None:
    values = np.full((4, 4), 255, np.uint8)
    parts = [piece(tmp_path / f"{c}.tif", values, 0, c, nodata=None, names=[]) for c in (0, 8)]
    raster = open_labels(parts)
    assert raster.read().tolist() == [[255] * 4 + [65535] * 4 + [255] * 4] * 4


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"names": ["roof", "water", "road"]}, "value 1 is 'water', but 'road' in .*a.tif"),
        ({"names": ["roof", "road"]}, "has not the classes of .*a.tif, 'water' is in one alone"),
        ({"crs": "EPSG:32632"}, "has CRS EPSG:32632, but .*a.tif has EPSG:32631"),
        ({"transform": UTM["transform"] * Affine.translation(10.4, 0)}, "do not lie on the grid"),
        ({"transform": UTM["transform"] * Affine.scale(2)}, "do not lie on the grid"),
    ],
)
def test_what_cannot_be_joined_is_refused(tmp_path: Path, more: dict[str, Any], words: str) -> None:
    values = np.ones((9, 9), np.uint8)
    parts = [
        piece(tmp_path / "a.tif", values, 0, 0),
        piece(tmp_path / "b.tif", values, 0, 9, **more),
    ]
    with pytest.raises(SceneError, match=words):
        geoseg.vectorize(parts, tmp_path / "p.fgb")


def test_values_that_nobody_has_named_are_told_of(tmp_path: Path) -> None:
    bare = label_file(tmp_path / "bare.tif", np.ones((9, 9), np.uint8), ["class 0", "class 1"])
    out = ["-o", str(tmp_path / "p.fgb"), "--overwrite"]
    told = CliRunner().invoke(app, ["vectorize", str(bare), *out]).stderr
    assert "bare.tif: nothing says what its values mean" in told
    named = CliRunner().invoke(app, ["vectorize", str(bare), *out, "--classes", "a;b"]).stderr
    assert "nothing says" not in named
