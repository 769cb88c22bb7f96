"""Where a scene lies: one CRS in many words, coordinates that do not fit, grids off the Earth."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pyproj
import pytest
import rasterio
import rasterio.features
import rasterio.shutil
import rasterio.vrt
import rasterio.warp
import shapely
from affine import Affine
from rasterio.crs import CRS
from rasterio.errors import NotGeoreferencedWarning
from rasterio.transform import from_origin
from rasters import make, rgb
from vectors import label_file

import geoseg
from geoseg.errors import GeosegError, GeosegWarning, OptionError, SceneError
from geoseg.evaluation import evaluate
from geoseg.io.aoi import Aoi
from geoseg.io.crs import crs_name, is_storable, same_crs, storable
from geoseg.io.grid import Grid
from geoseg.io.mosaic import build_mosaic
from geoseg.io.scene import Scene
from geoseg.testing import tiny_random_model
from geoseg.types import Window
from geoseg.vector import vectorize

KROVAK = (
    "+proj=krovak +lat_0=49.5 +lon_0=24.8333333333333 +alpha=30.2881397222222 +k=0.9999 "
    "+ellps=bessel +towgs84=589,76,480 +units=m +type=crs"
)
SITE = 'LOCAL_CS["Site grid",UNIT["metre",1]]'
ROTATED = (
    "+proj=ob_tran +o_proj=longlat +o_lon_p=0 +o_lat_p=39.25 +lon_0=18 "
    "+to_meter=0.0174532925199433 +type=crs"
)


@pytest.fixture(scope="module")
def loaded(tmp_path_factory: pytest.TempPathFactory) -> geoseg.Model:
    return geoseg.load_model(tiny_random_model(tmp_path_factory.mktemp("model")), device="cpu")


def run(scene: Path, out: Path, loaded: geoseg.Model, **settings: Any) -> geoseg.Run:
    options = geoseg.Options(templates="none")
    return geoseg.segment_to_files(scene, "a; b", out, model=loaded, options=options, **settings)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("EPSG:32631", "EPSG:32631", True),
        ("EPSG:32631", "EPSG:32631+5773", True),
        ("EPSG:4326", "EPSG:4979", True),
        ("EPSG:4326", "OGC:CRS84", True),
        ("EPSG:32631", "EPSG:32632", False),
        ("EPSG:26914", "EPSG:32614", False),
        ("EPSG:4326", "EPSG:4258", False),
        (KROVAK, "EPSG:5514", True),
        (KROVAK, KROVAK.replace("589", "570"), True),
        (SITE, SITE.replace("Site", "Other"), False),
        (SITE, SITE.replace("1]", "0.3048]"), False),
    ],
)
def test_the_same_place_in_other_words(one: str, other: str, same: bool) -> None:
    assert same_crs(CRS.from_string(one), CRS.from_string(other)) == same
    assert same_crs(CRS.from_string(other), CRS.from_string(one)) == same


def test_esri_and_wkt2_are_words_too() -> None:
    utm = pyproj.CRS("EPSG:26914")
    for version in ("WKT1_ESRI", "WKT2_2019", "WKT1_GDAL"):
        assert same_crs(CRS.from_wkt(utm.to_wkt(version)), CRS.from_epsg(26914))
    assert not same_crs(None, CRS.from_epsg(26914))
    assert same_crs(None, None)


@pytest.mark.parametrize("crs", [KROVAK, "EPSG:32631+5773", SITE, "+proj=moll", "ESRI:102003"])
def test_a_name_is_never_wkt(crs: str) -> None:
    name = crs_name(CRS.from_string(crs))
    assert "[" not in name
    assert len(name) < 80


def test_a_crs_that_a_geotiff_turns_into_another_is_written_as_its_twin(tmp_path: Path) -> None:
    krovak = CRS.from_string(KROVAK)
    path = make(tmp_path / "l.tif", rgb(), crs=storable(krovak))
    with rasterio.open(path) as dataset:
        lon, lat = rasterio.warp.transform(dataset.crs, "EPSG:4258", [-740000], [-1040000])
    assert (lon[0], lat[0]) == pytest.approx((14.4555, 50.1185), abs=0.01)
    assert storable(CRS.from_epsg(32631)) == CRS.from_epsg(32631)
    assert not is_storable(CRS.from_string(ROTATED))


def test_a_scene_whose_crs_comes_back_in_other_words_runs_and_resumes(
    tmp_path: Path, loaded: geoseg.Model
) -> None:
    tif = make(tmp_path / "s.tif", rgb(), crs=None, transform=from_origin(-740000, -1040000, 5, 5))
    vrt = tmp_path / "s.vrt"
    with rasterio.open(tif) as source, rasterio.vrt.WarpedVRT(source, src_crs=KROVAK) as warped:
        rasterio.shutil.copy(warped, vrt, driver="VRT")
    with rasterio.open(vrt) as dataset:
        assert dataset.crs == CRS.from_string(KROVAK)
    done = run(vrt, tmp_path / "out", loaded)
    assert run(vrt, tmp_path / "out", loaded, resume=True).report == done.report
    assert done.report["classes"][0]["area_m2"] is not None


def test_heights_play_no_part(tmp_path: Path) -> None:
    values = np.arange(12, dtype=np.uint8).reshape(3, 4) % 2
    labels = label_file(tmp_path / "labels.tif", values)
    high = label_file(tmp_path / "truth.tif", values, crs="EPSG:32631+5773")
    assert evaluate(labels, high).scores.accuracy == 1
    confidence = label_file(tmp_path / "c.tif", values, crs="EPSG:32631+5773")
    assert vectorize(labels, tmp_path / "p.gpkg", confidence=confidence).count > 0
    parts = [
        make(tmp_path / "a.tif", rgb(), crs="EPSG:32631"),
        make(
            tmp_path / "b.tif",
            rgb(),
            crs="EPSG:32631+5773",
            transform=from_origin(500050, 5000000, 1, 1),
        ),
    ]
    assert build_mosaic(parts, tmp_path / "mosaic.vrt").exists()


def test_another_crs_is_refused_by_name(tmp_path: Path) -> None:
    values = np.zeros((3, 4), np.uint8)
    labels = label_file(tmp_path / "labels.tif", values)
    other = label_file(tmp_path / "truth.tif", values, crs="EPSG:32632+5773")
    with pytest.raises(GeosegError, match="CRS is EPSG:32632, the labels' is EPSG:32631"):
        evaluate(labels, other)


# -- coordinates that do not fit ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("crs", "x", "y", "step", "said"),
    [
        ("EPSG:4326", 488099, 5208746, 5, "do not fit its CRS, EPSG:4326: these are no degrees"),
        ("EPSG:4326", 47, -99, 1e-4, "x and y seem swapped"),
        ("EPSG:26914", 5208746, 488099, 5, "x and y seem swapped"),
        ("EPSG:26914", -99.1, 47, 1e-5, "seem to be degrees"),
        ("EPSG:3857", -99.1, 47, 1e-5, "seem to be degrees"),
    ],
)
def test_coordinates_that_do_not_fit_the_crs_give_no_areas(
    tmp_path: Path, loaded: geoseg.Model, crs: str, x: float, y: float, step: float, said: str
) -> None:
    path = make(tmp_path / "s.tif", rgb(), crs=crs, transform=from_origin(x, y, step, step))
    with pytest.warns(GeosegWarning, match=said):
        report = run(path, tmp_path / "out", loaded).report
    json.dumps(report, allow_nan=False)
    assert report["gsd_m"] is None
    assert all(entry["area_m2"] is None for entry in report["classes"])
    assert gpd.read_file(tmp_path / "out" / "polygons.gpkg").area_m2.isna().all()
    for products in (
        geoseg.Products(polygons="geojson"),
        geoseg.Products(min_area_m2=1),
        geoseg.Products(simplify_m=1),
    ):
        with pytest.warns(GeosegWarning), pytest.raises(OptionError, match=said):
            run(path, tmp_path / "no", loaded, products=products)


@pytest.mark.parametrize(
    ("crs", "x", "y", "step"),
    [
        ("EPSG:32631", 500_000, -3_600_000, 5),  # the southern half of the Earth, counted on
        ("EPSG:32631", 0, 0, 1),
        ("EPSG:32631", 300_000, 5_000_000, 5),
        ("EPSG:4326", 179.999, 0, 1e-4),
        ("EPSG:4326", 359.99, 0, 1e-4),
        ("EPSG:4807", 1.0, 30.0, 1e-4),
        ("EPSG:3413", -1000, 1000, 10),
        (SITE, 0, 0, 0.05),
    ],
)
def test_coordinates_that_fit_are_not_remarked_on(
    tmp_path: Path, crs: str, x: float, y: float, step: float
) -> None:
    path = make(tmp_path / "s.tif", rgb(), crs=crs, transform=from_origin(x, y, step, step))
    with warnings.catch_warnings():
        warnings.simplefilter("error", GeosegWarning)
        grid = Scene.open(path).grid
    assert grid.misfit is None
    assert grid.pixel_area_m2() == pytest.approx(grid.gsd_m**2, rel=0.05)


def test_the_crs_can_be_said(tmp_path: Path, loaded: geoseg.Model) -> None:
    path = make(tmp_path / "s.tif", rgb(), crs=None)
    with pytest.warns(GeosegWarning, match="no CRS.*--crs"):
        Scene.open(path)
    reading = geoseg.Reading(crs="EPSG:32631")
    report = run(path, tmp_path / "out", loaded, reading=reading).report
    assert report["crs"] == "EPSG:32631"
    assert sum(entry["area_m2"] for entry in report["classes"]) == pytest.approx(2000, rel=0.01)
    with rasterio.open(tmp_path / "out" / "labels.tif") as dataset:
        assert dataset.crs == CRS.from_epsg(32631)
    other = geoseg.Reading(crs="EPSG:32632")
    with pytest.raises(GeosegError, match="other input or options"):
        run(path, tmp_path / "out", loaded, reading=other, resume=True)
    placed = make(tmp_path / "p.tif", rgb(), crs="EPSG:32632")
    with pytest.warns(GeosegWarning, match="says that its CRS is EPSG:32632; --crs EPSG:32631"):
        assert Scene.open(placed, crs="32631").grid.crs == CRS.from_epsg(32631)
    with pytest.raises(OptionError, match="no coordinate system that PROJ knows"):
        Scene.open(path, crs="EPSG:1")


def test_oblong_pixels_get_a_word(tmp_path: Path) -> None:
    path = make(tmp_path / "s.tif", rgb(), transform=from_origin(500000, 5000000, 10, 5))
    with pytest.warns(GeosegWarning, match="10 m wide and 5 m high.*--gsd 7.07 squares them"):
        Scene.open(path)
    with warnings.catch_warnings():
        warnings.simplefilter("error", GeosegWarning)
        Scene.open(path, gsd=7.07)


# -- off the Earth --------------------------------------------------------------------------------


def test_a_local_grid_is_measured_in_its_own_metres(tmp_path: Path, loaded: geoseg.Model) -> None:
    path = make(tmp_path / "s.tif", rgb(), crs=SITE, transform=from_origin(1000, 2000, 0.5, 0.5))
    report = run(
        path, tmp_path / "out", loaded, products=geoseg.Products(min_area_m2=1, simplify_m=0.5)
    ).report
    total = 40 * 50 * 0.25
    assert sum(entry["area_m2"] for entry in report["classes"]) == pytest.approx(total)
    polygons = gpd.read_file(tmp_path / "out" / "polygons.gpkg")
    assert polygons.area_m2.sum() == pytest.approx(total, rel=1e-6)
    np.testing.assert_allclose(polygons.area_m2, polygons.geometry.area, rtol=1e-6)
    np.testing.assert_allclose(polygons.perimeter_m, polygons.geometry.length, rtol=1e-6)
    with pytest.raises(OptionError, match="its CRS, Site grid, is a local grid"):
        run(path, tmp_path / "no", loaded, products=geoseg.Products(polygons="geojson"))


@pytest.mark.parametrize(
    ("crs", "said"),
    [("EPSG:4978", "counts from the Earth's centre"), (ROTATED, "no GeoTIFF can hold its CRS")],
)
def test_a_crs_that_no_map_can_have_is_refused_before_the_work(
    tmp_path: Path, loaded: geoseg.Model, crs: str, said: str
) -> None:
    path = make(tmp_path / "s.tif", rgb(), crs=crs, transform=from_origin(1, 2, 1e-4, 1e-4))
    with pytest.raises(SceneError, match=said):
        run(path, tmp_path / "out", loaded, progress=lambda state: pytest.fail("work began"))


def test_an_unplaced_photo_and_its_polygons_lie_on_each_other(
    tmp_path: Path, loaded: geoseg.Model
) -> None:
    """GIS software shows an image without transform with its rows going down from 0."""
    path = make(tmp_path / "s.png", rgb(), driver="PNG", crs=None, transform=Affine.identity())
    with pytest.warns(GeosegWarning, match="no CRS and no transform"):
        run(path, tmp_path / "out", loaded)
    polygons = gpd.read_file(tmp_path / "out" / "polygons.gpkg")
    assert tuple(polygons.total_bounds) == (0, -40, 50, 0)
    # Rows would go up if an identity stood in the file: software obeys what is there.
    with (
        pytest.warns(NotGeoreferencedWarning),
        rasterio.open(tmp_path / "out" / "labels.tif") as dataset,
    ):
        labels = dataset.read(1)
    burnt = rasterio.features.rasterize(
        zip(polygons.geometry, polygons.class_id, strict=True),
        out_shape=labels.shape,
        transform=Affine.scale(1, -1),
        fill=255,
    )
    np.testing.assert_array_equal(burnt, labels)
    assert polygons.geometry.map(lambda shape: shapely.is_ccw(shape.exterior)).all()


@pytest.mark.parametrize("box", ["10,5,30,25", "10,-25,30,-5"])
def test_a_part_of_an_unplaced_photo_lies_on_it(
    tmp_path: Path, loaded: geoseg.Model, box: str
) -> None:
    path = make(tmp_path / "s.png", rgb(), driver="PNG", crs=None, transform=Affine.identity())
    reading = geoseg.Reading(aoi=box)
    with pytest.warns(GeosegWarning, match="no CRS and no transform"):
        run(path, tmp_path / "out", loaded, reading=reading, products=geoseg.Products())
    with rasterio.open(tmp_path / "out" / "labels.tif") as dataset:
        assert tuple(dataset.bounds) == (10, -25, 30, -5)
    polygons = gpd.read_file(tmp_path / "out" / "polygons.gpkg")
    assert tuple(polygons.total_bounds) == (10, -25, 30, -5)


def test_a_box_on_both_sides_of_an_unplaced_photos_edge_is_refused() -> None:
    grid = Grid(None, Affine.identity(), 40, 50)
    for box in ("10,-25,30,-5", "10,5,30,25"):
        assert Aoi.open(box, grid).window == Window(5, 10, 20, 20)
    assert Aoi.open("-9,-99,99,0", grid).window == grid.window
    with pytest.raises(OptionError, match=r"give y from -40 to 0, as its map lies, or rows from"):
        Aoi.open("10,-5,30,25", grid)
    with pytest.raises(OptionError, match=r"does not cover any pixel .*\(0.00,-40.00,50.00,0.00"):
        Aoi.open("60,-5,90,0", grid)


def test_a_transform_that_is_none_is_named() -> None:
    grid = Grid(CRS.from_epsg(32631), Affine(0, 0, 500000, 0, 0, 5000000), 4, 4)
    assert "without a size" in str(grid.misfit)
    grid = Grid(CRS.from_epsg(32631), Affine(1, 0, float("nan"), 0, -1, 5000000), 4, 4)
    assert "no number" in str(grid.misfit)
