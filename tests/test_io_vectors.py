"""Vector files in: every format, layers, what counts as a polygon, and where it lies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd
import pytest
import shapely
from affine import Affine
from rasterio.crs import CRS
from rasterio.transform import from_origin
from vectors import label_file

from geoseg.errors import EvaluationError, GeosegWarning, OptionError, SceneError
from geoseg.evaluation import evaluate
from geoseg.io.aoi import Aoi
from geoseg.io.grid import Grid
from geoseg.io.vectors import read_polygons
from geoseg.vector.stats import zone_stats

GRID = Grid(CRS.from_epsg(32631), from_origin(500_000, 5_000_000, 10, 10), 60, 80)
LEFT = shapely.box(499_900, 4_999_300, 500_400, 5_000_100)
"""The left half of the grid, and some ground around it."""


def write(path: Path, shapes: list[Any], crs: Any = 32631, **more: Any) -> Path:
    table = gpd.GeoDataFrame({"name": [f"z{i}" for i in range(len(shapes))]}, geometry=shapes)
    table = table.set_crs(crs)
    if path.suffix == ".parquet":
        table.to_parquet(path)
    elif "!" in path.name:  # which writes to another file
        write(path.with_name("plain.gpkg"), shapes, crs).rename(path)
    elif path.suffix == ".kml":
        table.to_crs(4326).to_file(path, driver="KML", **more)
    else:
        table.to_file(path, **more)
    return path


def area_of(path: Path, **more: Any) -> int:
    return int(Aoi.open(path, GRID, **more).mask(GRID.window).sum())


@pytest.fixture
def labels(tmp_path: Path) -> Path:
    values = np.zeros((60, 80), np.uint8)
    values[:, 40:] = 1
    return label_file(tmp_path / "labels.tif", values, ["left", "right"])


@pytest.mark.parametrize(
    "name", ["a.gpkg", "a.shp", "a.geojson", "a.kml", "a.fgb", "a.parquet", "a.gml", "a!b.gpkg"]
)
def test_every_format_is_taken_everywhere(tmp_path: Path, labels: Path, name: str) -> None:
    crs = 4326 if name.endswith(("kml", "geojson")) else 32631
    shape = gpd.GeoSeries([LEFT], crs=32631).to_crs(crs).iloc[0]
    path = write(tmp_path / name, [shape], crs)
    assert area_of(path) == pytest.approx(2400, abs=60)
    table = zone_stats(labels, path)
    assert table.share.tolist() == pytest.approx([1, 0], abs=0.01)
    assert evaluate(labels, path, truth_values="*=left").scores.accuracy > 0.99


def test_the_layer_with_polygons_is_found_and_said(tmp_path: Path, labels: Path) -> None:
    path = write(tmp_path / "a.gpkg", [shapely.Point(500_000, 5e6)], layer="pins")
    write(path, [LEFT], layer="area")
    said = "takes the layer 'area', the only one of 2 that has polygons"
    with pytest.warns(GeosegWarning, match=f"{said}; --aoi-layer"):
        assert area_of(path) == 2400
    with pytest.warns(GeosegWarning, match=f"{said}; --zone-layer"):
        assert zone_stats(labels, path).share.tolist() == [1, 0]
    with pytest.warns(GeosegWarning, match=f"{said}; --truth-layer"):
        evaluate(labels, path, truth_values="*=left")


def test_several_layers_with_polygons_are_not_chosen_from(tmp_path: Path, labels: Path) -> None:
    path = write(tmp_path / "a.gpkg", [LEFT], layer="one")
    write(path, [shapely.box(500_400, 4_999_300, 501_000, 5_000_100)], layer="other")
    for option, read in (
        ("aoi", lambda: area_of(path)),
        ("zone", lambda: zone_stats(labels, path)),
        ("truth", lambda: evaluate(labels, path, truth_values="*=left")),
    ):
        with pytest.raises(OptionError, match=f"2 layers have polygons, one, other.*--{option}-la"):
            read()
    assert area_of(path, layer="one") == 2400
    assert zone_stats(labels, path, layer="other").share.tolist() == [0, 1]
    right = evaluate(labels, path, truth_values="*=right", truth_layer="other")
    assert right.scores.accuracy == 1
    with pytest.raises(OptionError, match="has no layer 'none'; it has one, other"):
        area_of(path, layer="none")


def test_a_layer_of_styles_is_none_to_choose_from(tmp_path: Path) -> None:
    path = write(tmp_path / "a.gpkg", [LEFT], layer="area")
    import pyogrio

    pyogrio.write_dataframe(pd.DataFrame({"style": ["<qml>"]}), path, layer="layer_styles")
    assert area_of(path) == 2400


def test_what_counts_as_a_polygon(tmp_path: Path) -> None:
    high = shapely.force_3d(LEFT, 12.5)
    mixed = shapely.GeometryCollection([shapely.Point(0, 0), shapely.MultiPolygon([LEFT])])
    for shape in (high, mixed, shapely.GeometryCollection([mixed])):
        assert area_of(write(tmp_path / "a.gpkg", [shape])) == 2400
    path = write(tmp_path / "b.gpkg", [None, LEFT, shapely.LineString([(0, 0), (1, 1)])])
    with pytest.warns(GeosegWarning, match="2 of 3 features have no polygon and are left out"):
        assert area_of(path) == 2400


def test_what_is_no_polygon_is_called_what_it_is(tmp_path: Path, labels: Path) -> None:
    lines = write(tmp_path / "lines.gpkg", [shapely.LineString(LEFT.exterior.coords)])
    with pytest.raises(SceneError, match="no polygons for an area of interest, it holds lines"):
        area_of(lines)
    with pytest.raises(SceneError, match="no polygons for zones, it holds lines"):
        zone_stats(labels, lines)
    with pytest.raises(EvaluationError, match="no polygons for the truth, it holds lines"):
        evaluate(labels, lines, truth_values="*=left")


def test_points_are_truth(tmp_path: Path, labels: Path) -> None:
    points = write(tmp_path / "p.gpkg", [shapely.Point(500_005, 4_999_995), LEFT.centroid])
    found = evaluate(labels, points, truth_values="*=left")
    assert found.scores.confusion.sum() == 2


# -- far and around the Earth ---------------------------------------------------------------------


def boxes(path: Path) -> Path:
    """The whole Earth in boxes of 10 degrees."""
    table = gpd.GeoDataFrame(
        {"name": [f"{x}_{y}" for x in range(-180, 180, 10) for y in range(-90, 90, 10)]},
        geometry=[
            shapely.box(x, y, x + 10, y + 10)
            for x in range(-180, 180, 10)
            for y in range(-90, 90, 10)
        ],
        crs=4326,
    )
    if path.suffix == ".parquet":
        table.to_parquet(path)
    else:
        table.to_file(path)
    return path


@pytest.mark.parametrize("suffix", [".gpkg", ".fgb", ".parquet", ".geojson"])
def test_features_all_around_the_earth(tmp_path: Path, labels: Path, suffix: str) -> None:
    path = boxes(tmp_path / f"world{suffix}")
    assert area_of(path) == 4800
    table = zone_stats(labels, path, column="name")
    assert table.zone[table.area_m2 > 0].unique().tolist() == ["0_40"]
    assert table[table.zone == "0_40"].share.tolist() == pytest.approx([0.5, 0.5], abs=1e-6)
    found = evaluate(labels, path, truth_column="name", truth_values="0_40=left;*=right")
    assert found.scores.accuracy == 0.5


def degrees(left: float, width: int = 80) -> Grid:
    return Grid(CRS.from_epsg(4326), Affine(0.01, 0, left, 0, -0.01, -16), 60, width)


@pytest.mark.parametrize("left", [179.6, -180.4])
@pytest.mark.parametrize("crs", [4326, 4258, 3832])
def test_longitudes_are_the_same_360_degrees_on(tmp_path: Path, left: float, crs: int) -> None:
    grid = degrees(left)
    halves = [shapely.box(179, -17, 180, -15), shapely.box(-180, -17, -179, -15)]
    cases = [[shapely.MultiPolygon(halves)], halves]
    if crs != 3832:
        cases += [[shapely.box(179, -17, 181, -15)], [shapely.box(-181, -17, -179, -15)]]
    for number, shapes in enumerate(cases):
        table = gpd.GeoDataFrame(geometry=shapes, crs=4326)
        table = table.set_crs(crs, allow_override=True) if crs == 4258 else table.to_crs(crs)
        path = tmp_path / f"a{number}.gpkg"
        table.to_file(path)
        assert Aoi.open(path, grid).mask(grid.window).all()


def test_zones_across_180_cover_their_labels(tmp_path: Path) -> None:
    grid = degrees(179.6)
    values = np.zeros(grid.shape, np.uint8)
    labels = label_file(tmp_path / "l.tif", values, crs="EPSG:4326", transform=grid.transform)
    inside = [shapely.box(179.8, -16.4, 180, -16.1), shapely.box(-180, -16.4, -179.8, -16.1)]
    zones = write(tmp_path / "z.geojson", [shapely.MultiPolygon(inside)], 4326)
    assert zone_stats(labels, zones).coverage.tolist() == pytest.approx([1], abs=1e-3)
    truth = evaluate(labels, zones, truth_values="*=class 0")
    assert truth.scores.confusion.sum() == 40 * 30


def test_a_raster_around_the_pole_takes_the_cap(tmp_path: Path) -> None:
    grid = Grid(CRS.from_epsg(3413), from_origin(-400_000, 400_000, 10_000, 10_000), 80, 80)
    cap = write(tmp_path / "cap.geojson", [shapely.box(-180, 80, 180, 90)], 4326)
    assert Aoi.open(cap, grid).mask(grid.window).all()


def test_truth_of_one_crs_name_and_another_is_laid_alike(tmp_path: Path) -> None:
    text = write(tmp_path / "a.gpkg", [LEFT], "EPSG:32631+5773")
    assert area_of(text) == 2400


def test_unplaced_images_take_what_is_drawn_on_them(tmp_path: Path) -> None:
    grid = Grid(None, Affine.identity(), 40, 50)
    drawn = tmp_path / "d.geojson"
    ring = [[0, 0], [20, 0], [20, -10], [0, -10], [0, 0]]
    geometry = {"type": "Polygon", "coordinates": [ring]}
    drawn.write_text(json.dumps({"type": "Feature", "properties": {}, "geometry": geometry}))
    with pytest.raises(SceneError, match="the raster has no CRS"):
        Aoi.open(drawn, grid)  # GeoJSON says longitude and latitude
    table = gpd.GeoDataFrame(geometry=[shapely.Polygon(ring)])
    with pytest.warns(UserWarning, match="crs"):
        table.to_file(tmp_path / "d.gpkg")
    mask = Aoi.open(tmp_path / "d.gpkg", grid).mask(grid.window)
    assert mask[:10, :20].all()
    assert mask.sum() == 200


def test_attributes_and_places_in_the_file_stay(tmp_path: Path) -> None:
    path = write(tmp_path / "a.gpkg", [None, LEFT, shapely.box(0, 0, 1, 1)])
    with pytest.warns(GeosegWarning, match="1 of 3"):
        laid = read_polygons(path, GRID, what="zone", layer=None)
    assert laid.table.index.tolist() == [1, 2]
    assert laid.table.name.tolist() == ["z1", "z2"]
    assert laid.table.geometry.is_empty.tolist() == [False, True]
    assert laid.whole.area.tolist() == [LEFT.area, 1]


def test_web_mercator_across_180(tmp_path: Path) -> None:
    grid = Grid(CRS.from_epsg(3857), from_origin(20_037_508 - 500, -1_900_000, 10, 10), 100, 100)
    halves = [shapely.box(179, -18, 180, -16), shapely.box(-180, -18, -179, -16)]
    for shapes in ([shapely.box(179, -18, 181, -16)], halves):
        area = write(tmp_path / "a.gpkg", shapes, 4326)
        assert Aoi.open(area, grid).mask(grid.window).all()


def test_a_disk_takes_what_reaches_beyond_its_limb(tmp_path: Path) -> None:
    crs = CRS.from_string("+proj=geos +h=35785831 +lon_0=0 +sweep=y")
    grid = Grid(crs, from_origin(-5.5e6, 5.5e6, 50_000, 50_000), 220, 220)
    world = write(tmp_path / "w.gpkg", [shapely.box(-180, -90, 180, 90)], 4326)
    disk = np.pi * (5.43e6 / 50_000) ** 2
    assert Aoi.open(world, grid).mask(grid.window).sum() == pytest.approx(disk, rel=0.02)
