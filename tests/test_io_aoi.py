"""Areas of interest: which pixels, in whatever CRS they come."""

from __future__ import annotations

import json
from pathlib import Path

import geopandas
import numpy as np
import pytest
import shapely
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio.crs import CRS

from geoseg.errors import OptionError, SceneError
from geoseg.io.aoi import Aoi
from geoseg.io.grid import Grid
from geoseg.types import Window

UTM = CRS.from_epsg(32631)
UPRIGHT = Affine(2, 0, 500000, 0, -2, 5000000)
SOUTH_UP = Affine(2, 0, 500000, 0, 2, 4999800)
ROTATED = Affine(1.6, 1.2, 500000, 1.2, -1.6, 5000000)
GRIDS = [Grid(UTM, transform, 100, 120) for transform in (UPRIGHT, SOUTH_UP, ROTATED)]


def centres_inside(area: shapely.Geometry, grid: Grid) -> np.ndarray:
    rows, cols = np.mgrid[: grid.height, : grid.width]
    x, y = grid.to_ground(cols + 0.5, rows + 0.5)
    return np.asarray(shapely.contains_xy(area, x, y))


@pytest.mark.parametrize("grid", GRIDS)
def test_a_box_takes_the_pixels_whose_centres_it_holds(grid: Grid) -> None:
    x, y = grid.to_ground(60, 50)
    box = (x - 30.3, y - 20.7, x + 41.1, y + 15.2)
    aoi = Aoi.open(",".join(str(v) for v in box), grid)
    expected = centres_inside(shapely.box(*box), grid)
    np.testing.assert_array_equal(aoi.mask(grid.window), expected)
    rows, cols = np.nonzero(expected)
    w = aoi.window
    assert (w.row, w.col) <= (rows.min(), cols.min())
    assert w.row_stop > rows.max()
    assert w.col_stop > cols.max()
    inner = Window(w.row + 1, w.col + 2, w.height - 2, w.width - 3)
    np.testing.assert_array_equal(aoi.mask(inner), expected[inner.slices()])


def test_an_aligned_box_is_exactly_its_pixels() -> None:
    aoi = Aoi.open("500020,4999900,500060,4999960", GRIDS[0])
    assert aoi.window == Window(20, 10, 30, 20)
    assert aoi.mask(aoi.window).all()


def test_a_box_beyond_the_scene_is_clipped() -> None:
    aoi = Aoi.open("0,0,500011,9000000", GRIDS[0])
    assert aoi.window == Window(0, 0, 100, 5)


@pytest.mark.parametrize(
    ("suffix", "crs"),
    [
        ("gpkg", "EPSG:4326"),
        ("gpkg", "EPSG:3857"),
        ("gpkg", "EPSG:32631"),
        ("shp", "EPSG:3035"),
        ("geojson", "EPSG:4326"),
    ],
)
def test_a_vector_file_in_another_crs(tmp_path: Path, crs: str, suffix: str) -> None:
    grid = GRIDS[0]
    area = shapely.Point(500120, 4999900).buffer(60.3, quad_segs=32)
    table = geopandas.GeoDataFrame({"name": ["here"]}, geometry=[area], crs="EPSG:32631")
    path = tmp_path / f"aoi.{suffix}"
    table.to_crs(crs).to_file(path)
    aoi = Aoi.open(path, grid)
    got, expected = aoi.mask(grid.window), centres_inside(area, grid)
    # Coordinates in the file are rounded; a centre on the very edge may fall either way.
    assert (got != expected).sum() <= 4
    assert expected.sum() > 2500


def test_several_polygons_with_a_hole(tmp_path: Path) -> None:
    grid = GRIDS[0]
    ring = shapely.box(500010, 4999850, 500110, 4999950) - shapely.box(
        500040, 4999880, 500070, 4999920
    )
    other = shapely.box(500150, 4999900, 500170, 4999930)
    table = geopandas.GeoDataFrame(geometry=[ring, other], crs="EPSG:32631")
    table.to_file(tmp_path / "a.gpkg")
    aoi = Aoi.open(tmp_path / "a.gpkg", grid)
    expected = centres_inside(shapely.union_all([ring, other]), grid)
    np.testing.assert_array_equal(aoi.mask(grid.window), expected)


@given(
    st.tuples(*[st.floats(0, 240), st.floats(0, 200), st.floats(3, 80), st.floats(3, 80)]),
    st.sampled_from(GRIDS),
)
@settings(max_examples=60, deadline=None)
def test_window_holds_every_pixel_of_the_area(
    numbers: tuple[float, float, float, float], grid: Grid
) -> None:
    x, y = 500000 + numbers[0], 4999800 + numbers[1]
    box = (x, y, x + numbers[2], y + numbers[3])
    expected = centres_inside(shapely.box(*box), grid)
    text = ",".join(repr(v) for v in box)
    if not expected.any():
        return
    aoi = Aoi.open(text, grid)
    outside = expected.copy()
    outside[aoi.window.slices()] = False
    assert not outside.any()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0,0,10,10", "does not cover any pixel of the scene .500000.00,4999"),
        ("500010,4999900,500000,4999950", "min below max"),
        ("500000,4999900,nan,4999950", "min below max"),
        ("1,2,3", "no such file; give a vector file or minx,miny,maxx,maxy"),
        ("missing.gpkg", "no such file; give a vector file or minx,miny,maxx,maxy"),
        ("500000.1,4999900.1,500000.2,4999900.2", "does not cover any pixel"),
    ],
)
def test_areas_that_cannot_be_are_refused(text: str, message: str) -> None:
    with pytest.raises(OptionError, match=message):
        Aoi.open(text, GRIDS[0])


def test_files_without_polygons_or_crs_are_refused(tmp_path: Path) -> None:
    points = geopandas.GeoDataFrame(geometry=[shapely.Point(500010, 4999900)], crs="EPSG:32631")
    points.to_file(tmp_path / "points.gpkg")
    with pytest.raises(SceneError, match="has no polygons"):
        Aoi.open(tmp_path / "points.gpkg", GRIDS[0])
    nowhere = geopandas.GeoDataFrame(geometry=[shapely.box(0, 0, 9, 9)])
    with pytest.warns(UserWarning, match="crs"):
        nowhere.to_file(tmp_path / "nowhere.shp")
    with pytest.raises(SceneError, match="the file has no CRS"):
        Aoi.open(tmp_path / "nowhere.shp", GRIDS[0])
    (tmp_path / "text.gpkg").write_text("no database")
    with pytest.raises(SceneError, match="not a vector file"):
        Aoi.open(tmp_path / "text.gpkg", GRIDS[0])


def geojson(path: Path, rings: object) -> Path:
    geometry = {"type": "Polygon", "coordinates": rings}
    feature = {"type": "Feature", "properties": None, "geometry": geometry}
    path.write_text(json.dumps({"type": "FeatureCollection", "features": [feature]}))
    return path


@pytest.mark.parametrize(
    ("rings", "said"),
    [
        ([[[3.0, 45.1], [3.1, 45.2]]], "is not a vector file that can be read|has outlines"),
        ([[[3.0, 45.1]]], "is not a vector file that can be read|has outlines"),
        ([], "has no polygons"),
        ([[[3.0, float("nan")], [3.1, 45.2], [3.0, 45.1]]], "is not a vector file|has corners"),
    ],
)
def test_outlines_that_are_no_areas_are_refused(tmp_path: Path, rings: object, said: str) -> None:
    path = geojson(tmp_path / "a.geojson", rings)
    with pytest.raises(SceneError, match=rf"a\.geojson: ({said})") as caught:
        Aoi.open(path, GRIDS[0])
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("grid", GRIDS)
def test_a_box_is_the_whole_scene_or_too_far(grid: Grid) -> None:
    assert Aoi.open("-1e9,-1e9,1e9,1e9", grid).mask(grid.window).all()
    for size in ("5e9", "1e15", "1e300", "1e308"):
        with pytest.raises(OptionError, match=r"reaches too far|CRS is not defined"):
            Aoi.open(f"-{size},-{size},{size},{size}", grid)


def test_an_address_where_nobody_answers_is_one_line() -> None:
    with pytest.raises(
        SceneError, match=r"127\.0\.0\.1:9/a\.geojson: is not a vector file"
    ) as caught:
        Aoi.open("http://127.0.0.1:9/a.geojson", GRIDS[0])
    assert len(str(caught.value).splitlines()) == 1


def test_a_saved_web_page_is_called_one(tmp_path: Path) -> None:
    (tmp_path / "a.gpkg").write_text("<!doctype html><html>")
    with pytest.raises(SceneError, match="it begins like a web page"):
        Aoi.open(tmp_path / "a.gpkg", GRIDS[0])


def test_home_folders_and_folders_of_files_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    area = geopandas.GeoDataFrame(
        {"a": [1]}, geometry=[shapely.box(500020, 4999900, 500060, 4999960)], crs=UTM
    )
    (tmp_path / "shapes").mkdir()
    area.to_file(tmp_path / "shapes" / "a.shp")
    monkeypatch.setenv("HOME", str(tmp_path))
    for path in ("~/shapes", "~/shapes/a.shp"):
        assert Aoi.open(path, GRIDS[0]).window == Window(20, 10, 30, 20)


def test_a_scene_without_crs_takes_a_box_in_its_own_units() -> None:
    grid = Grid(None, Affine.identity(), 50, 60)
    assert Aoi.open("10,20,30,40", grid).window == Window(20, 10, 20, 20)


@pytest.mark.parametrize("crs", ["EPSG:32631", "EPSG:4326"])
def test_an_outline_that_crosses_itself_keeps_both_parts(tmp_path: Path, crs: str) -> None:
    grid = GRIDS[0]
    corners = [(500020, 4999960), (500150, 4999820), (500150, 4999960), (500020, 4999820)]
    table = geopandas.GeoDataFrame(geometry=[shapely.Polygon(corners)], crs="EPSG:32631")
    path = tmp_path / "bow.gpkg"
    table.to_crs(crs).to_file(path)
    whole = shapely.make_valid(shapely.Polygon(corners))
    got, expected = Aoi.open(path, grid).mask(grid.window), centres_inside(whole, grid)
    assert expected.sum() > 2000
    assert (got != expected).mean() < 0.005
