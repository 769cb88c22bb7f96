"""Places that a person should look at, and what becomes of them."""

from __future__ import annotations

import json
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import rasterio
from rasters import UTM, make
from scipy.spatial.distance import pdist
from typer.testing import CliRunner

import geoseg
from geoseg import Options, Products, Store
from geoseg.errors import GeosegWarning, OptionError, OutputError, SceneError
from geoseg.testing import tiny_random_model
from geoseg_cli.main import app

SIZE = (160, 320)
WORDS = "brick; lawn; lake"
BARE = Products(polygons="none", preview=False, margin=True)
QUICK = Options(templates="none", cls_bias=0.0)


def patches(path: Path, seed: int = 0) -> Path:
    """Squares of three colours that vary a little; a corner holds no data."""
    rng = np.random.default_rng(seed)
    colours = np.array([(170, 70, 60), (60, 150, 60), (40, 70, 160)])
    flat = colours[rng.integers(0, 3, (5, 10))].repeat(32, 0).repeat(32, 1).transpose(2, 0, 1)
    pixels = (flat + rng.integers(-12, 12, (3, *SIZE))).clip(1, 255).astype(np.uint8)
    pixels[:, :50, :70] = 0
    return make(path, pixels, nodata=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("suggest")


@pytest.fixture(scope="module")
def model(folder: Path) -> geoseg.Model:
    return geoseg.load_model(tiny_random_model(folder / "model"), device="cpu")


@pytest.fixture(scope="module")
def store(folder: Path, model: geoseg.Model) -> Store:
    return geoseg.encode(patches(folder / "scene.tif"), folder / "s.store", model=model)


@pytest.fixture(scope="module")
def made(folder: Path, store: Store) -> Path:
    return store.to_files(WORDS, folder / "map", options=QUICK, products=BARE).out


def pixels_of(points: gpd.GeoDataFrame) -> tuple[np.ndarray, np.ndarray]:
    return (5000000 - points.geometry.y).astype(int), (points.geometry.x - 500000).astype(int)


@pytest.mark.parametrize("fast", [False, True])
def test_places_say_what_the_map_says_and_lie_where_it_is_unsure(
    store: Store, folder: Path, tmp_path: Path, fast: bool
) -> None:
    made = store.to_files(WORDS, tmp_path / "map", fast=fast, options=QUICK, products=BARE)
    points = geoseg.suggest(store, made.out, 12)
    assert list(points.columns) == [
        "class", "label", "second", "margin", "confidence", "cluster", "geometry",
    ]  # fmt: skip
    assert points.crs == UTM
    assert points["class"].isna().all()
    at = pixels_of(points)
    names = np.array(WORDS.split("; "))
    with rasterio.open(made.out / "labels.tif") as raster:
        labels = raster.read(1)
    with rasterio.open(made.out / "margin.tif") as raster:
        margin = raster.read(1)
    assert (names[labels[at]] == points.label).all()
    assert (margin[at] == points.margin).all()
    assert (points.second != points.label).all()
    assert points.margin.mean() < margin[labels != 255].mean()


def test_places_are_spread_and_the_same_every_time(store: Store, made: Path) -> None:
    points = geoseg.suggest(store, made, 12)
    apart = pdist(np.column_stack(pixels_of(points)))
    assert apart.min() >= points.attrs["distance"] > 10
    assert points.cluster.nunique() > 1
    again = geoseg.suggest(store, made, 12)
    assert points.equals(again)
    near = geoseg.suggest(store, made, 8, distance=50)
    assert pdist(np.column_stack(pixels_of(near))).min() >= 50
    with pytest.warns(GeosegWarning, match="there is room for . places that lie 150 pixels apart"):
        assert len(geoseg.suggest(store, made, 12, distance=150)) < 12


def test_a_part_of_a_scene_and_a_full_tier_alone(folder: Path, model: geoseg.Model) -> None:
    full = geoseg.encode(
        folder / "scene.tif", folder / "full.store", model=model, store={"tier": "full"}
    )
    area = (500100, 4999860, 500300, 4999980)
    made = full.to_files(WORDS, folder / "part", aoi=area, options=QUICK, products=BARE)
    points = geoseg.suggest(full, made.out, 6)
    left, bottom, right, top = points.total_bounds
    assert left > area[0]
    assert bottom > area[1]
    assert right < area[2]
    assert top < area[3]
    assert len(points) == 6


def test_a_person_fills_some_in_and_the_map_is_corrected(
    store: Store, made: Path, tmp_path: Path
) -> None:
    runner, out = CliRunner(), tmp_path / "points.gpkg"
    command = ["suggest", str(store.path), "--map", str(made), "-n", "9", "--out", str(out)]
    done = runner.invoke(app, command)
    assert done.exit_code == 0, done.output
    assert "9 points" in done.stderr
    assert runner.invoke(app, command).exit_code == 1
    again = runner.invoke(app, [*command, "--overwrite", "--json"])
    assert json.loads(again.stdout)["points"] == 9
    points = gpd.read_file(out)
    to_map = ["correct", str(store.path), "--map", str(made), "--points", str(out), "--out",
              str(tmp_path / "new"), "--polygons", "none", "--no-preview"]  # fmt: skip
    done = runner.invoke(app, to_map)
    assert done.exit_code != 0
    assert "none of the places has a class in the column class" in done.stderr
    points.loc[:5, "class"] = points.loc[:5, "label"]
    points.to_file(out)
    with pytest.warns(GeosegWarning, match="3 of 9 places have no class in the column class"):
        found = geoseg.correct(store, made, out, tmp_path / "new", products=BARE)
    assert found.before == 1.0
    done = runner.invoke(app, [*to_map, "--overwrite"])
    assert done.exit_code == 0, done.output
    assert done.stderr.count("3 of 9 places have no class") == 1


def test_what_cannot_be_suggested_is_one_line(
    store: Store, made: Path, tmp_path: Path, model: geoseg.Model
) -> None:
    with pytest.raises(SceneError, match=r"holds no map with its run\.json"):
        geoseg.suggest(store, tmp_path)
    with pytest.raises(OptionError, match="n is 0; give 1"):
        geoseg.suggest(store, made, 0)
    with pytest.raises(OptionError, match=r"places can be written as \.gpkg, \.geojson"):
        geoseg.suggest(store, made, out=tmp_path / "points.txt")
    with pytest.raises(OutputError, match="there is no folder"):
        geoseg.suggest(store, made, out=tmp_path / "none" / "points.gpkg")
    other = geoseg.encode(patches(tmp_path / "other.tif", 1), tmp_path / "o.store", model=model)
    for call in (
        lambda: geoseg.suggest(other, made),
        lambda: geoseg.correct(other, made, geoseg.suggest(store, made), tmp_path / "new"),
    ):
        with pytest.raises(OptionError, match="was made of another scene"):
            call()
