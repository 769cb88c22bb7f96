"""Areas and lengths on the ellipsoid, against PROJ and against cases worked out by hand."""

from __future__ import annotations

import math
from pathlib import Path

import geopandas as gpd
import numpy as np
import pyproj
import pytest
import shapely
from affine import Affine
from rasterio.crs import CRS
from vectors import blobs, label_file

from geoseg.io.grid import Grid
from geoseg.types import Window
from geoseg.vector import vectorize
from geoseg.vector.ground import Ground
from geoseg.vector.measure import Ellipsoid

# PROJ's own areas are off by this much, however small the polygon (turn a square around the pole,
# and its area takes steps of 5e-4 m2 a vertex); see the test with more digits.
PROJ_NOISE_M2 = 1e-3
ROTATED = Affine.translation(400_000, 5_300_000) @ Affine.rotation(31) @ Affine.scale(7, -5)
GRIDS = {
    "UTM": ("EPSG:32631", Affine(10, 0, 500_000, 0, -10, 5_000_000)),
    "UTM far off its meridian": ("EPSG:32631", Affine(30, 0, 900_000, 0, -30, 7_000_000)),
    "web mercator": ("EPSG:3857", Affine(19, 0, -8_000_000, 0, -19, 6_200_000)),
    "geographic": ("EPSG:4326", Affine(0.0008, 0, -74.7, 0, -0.0008, -8.2)),
    "geographic, coarse": ("EPSG:4326", Affine(0.25, 0, 5, 0, -0.25, 60)),
    "Albers": ("EPSG:5070", Affine(30, 0, -1_200_000, 0, -30, 2_100_000)),
    "polar stereographic": ("EPSG:3031", Affine(500, 0, -600_000, 0, -500, 900_000)),
    "rotated": ("EPSG:32632", ROTATED),
    "south up": ("EPSG:26914", Affine(5, 0, 600_000, 0, 5, 5_200_000)),
    "NAD27": ("EPSG:26711", Affine(60, 0, 440_720, 0, -60, 3_751_320)),
    "feet": ("EPSG:2229", Affine(3, 0, 6_400_000, 0, -3, 1_900_000)),
}


@pytest.mark.parametrize(("crs", "transform"), GRIDS.values(), ids=GRIDS.keys())
def test_attributes_agree_with_pyproj(tmp_path: Path, crs: str, transform: Affine) -> None:
    values = blobs(40, 50, 4, seed=3, sigma=1.0)
    values[5:9, 20:30] = 255
    labels = label_file(tmp_path / "labels.tif", values, crs=crs, transform=transform)
    summary = vectorize(labels, tmp_path / "out.gpkg")
    frame = gpd.read_file(tmp_path / "out.gpkg", layer="segments")
    system = pyproj.CRS.from_user_input(crs)
    geod, degrees = system.get_geod(), frame.to_crs(system.geodetic_crs).geometry
    assert geod is not None
    for row, polygon in zip(frame.itertuples(), degrees, strict=True):
        oriented = shapely.orient_polygons(polygon)
        area, _ = geod.geometry_area_perimeter(oriented)
        assert row.area_m2 == pytest.approx(abs(area), rel=1e-9, abs=PROJ_NOISE_M2)
        lengths = [geod.geometry_length(ring) for ring in _rings(oriented)]
        assert row.perimeter_m == pytest.approx(sum(lengths), rel=1e-9)
    assert summary.area_m2 is not None
    assert sum(summary.area_m2.values()) == pytest.approx(frame.area_m2.sum())


def _rings(polygon: shapely.Geometry) -> list[shapely.Geometry]:
    return [
        ring for part in shapely.get_parts(polygon) for ring in (part.exterior, *part.interiors)
    ]


def test_utm_square_by_hand() -> None:
    # On the central meridian UTM shrinks lengths by 0.9996.
    grid = Grid(CRS.from_epsg(32631), Affine(100, 0, 499_950, 0, -100, 5_000_000), 1, 1)
    ring = np.array([(0, 0), (0, 1), (1, 1), (1, 0), (0, 0)], np.float64)
    lines = Ground(grid).measure(ring, np.array([0, 5]))
    assert lines.area[0] == pytest.approx(100**2 / 0.9996**2, rel=1e-8)
    assert lines.length[0] == pytest.approx(400 / 0.9996, rel=1e-8)


def test_geographic_cell_by_hand() -> None:
    # Between two parallels the ellipsoid has a closed form; small cells follow it closely.
    grid = Grid(CRS.from_epsg(4326), Affine(1e-4, 0, 8, 0, -1e-4, 47), 1, 1)
    ring = np.array([(0, 0), (0, 1), (1, 1), (1, 0), (0, 0)], np.float64)
    area = Ground(grid).measure(ring, np.array([0, 5])).area[0]
    semi, flat = 6_378_137.0, 1 / 298.257223563
    e = math.sqrt(flat * (2 - flat))

    def zone(degrees: float) -> float:
        s = math.sin(math.radians(degrees))
        return (semi * (1 - flat)) ** 2 / 2 * (s / (1 - (e * s) ** 2) + math.atanh(e * s) / e)

    assert area == pytest.approx((zone(47) - zone(47 - 1e-4)) * math.radians(1e-4), rel=1e-8)


@pytest.mark.skipif(np.finfo(np.longdouble).eps > 1e-18, reason="no wider floats here")
@pytest.mark.parametrize("latitude", [-60.0, 0.0, 45.0])
@pytest.mark.parametrize("size", [1e-5, 1e-4, 1e-3])
def test_small_polygons_keep_their_digits(latitude: float, size: float) -> None:
    # A metre or less across: the areas that PROJ gives are wrong in the sixth digit already.
    geod = pyproj.Geod(ellps="WGS84")
    angle = np.sort(np.random.default_rng(5).uniform(0, 2 * np.pi, 12))
    angle = np.append(angle, angle[0])
    lon, lat = 170 + size * np.cos(angle), latitude + size * np.sin(angle)
    _, areas = Ellipsoid(geod, latitude).edges(lon, lat)
    assert areas.sum() == pytest.approx(_with_more_digits(geod, lon, lat), rel=2e-9)


def _with_more_digits(geod: pyproj.Geod, lon: np.ndarray, lat: np.ndarray) -> float:
    wide = np.longdouble
    radian = np.arctan(wide(1)) / 45
    phi, turn = lat.astype(wide) * radian, np.diff(lon.astype(wide)) * radian
    e2, sine = wide(geod.es), np.sin(phi)
    e = np.sqrt(e2)
    across = wide(geod.a) / np.sqrt(1 - e2 * sine**2)
    meridian, parallel = across**3 * (1 - e2) / wide(geod.a) ** 2, across * np.cos(phi)
    tail = np.arctanh(e * sine) / e
    authalic = wide(geod.b) ** 2 / 2 * (sine / (1 - e2 * sine**2) + tail)
    authalic -= authalic[0]

    def between(v: np.ndarray) -> np.ndarray:
        return (v[1:] + v[:-1]) / 2

    squares = 3 * (between(meridian) * np.diff(phi)) ** 2 + (between(parallel) * turn) ** 2
    return -float((between(authalic) * turn + between(sine) * turn * squares / 12).sum())


@pytest.mark.parametrize("latitude", [-89.99, -60.0, 0.0, 45.0, 89.9])
@pytest.mark.parametrize("size", [1e-4, 1e-2, 1.0, 20.0])
def test_any_ring_agrees_with_pyproj(latitude: float, size: float) -> None:
    geod = pyproj.Geod(ellps="WGS84")
    rng = np.random.default_rng(5)
    angle = np.sort(rng.uniform(0, 2 * np.pi, 12))
    lon = 170 + size * np.cos(angle) / max(0.2, math.cos(math.radians(latitude)))
    lat = np.clip(latitude + 0.4 * size * np.sin(angle), -89.9999, 89.9999)
    lon, lat = np.append(lon, lon[0]), np.append(lat, lat[0])
    lon = (lon + 180) % 360 - 180
    area, length = geod.polygon_area_perimeter(lon, lat)
    lengths, areas = Ellipsoid(geod, latitude).edges(lon, lat)
    assert areas.sum() == pytest.approx(area, rel=1e-9, abs=PROJ_NOISE_M2)
    assert lengths.sum() == pytest.approx(length, rel=1e-9)


def test_a_ring_around_the_pole_has_an_inside() -> None:
    geod = pyproj.Geod(ellps="WGS84")
    # Seen from anywhere near the pole: a raster around it has its centre where it likes.
    for pole, reference in ((90, 90.0), (-90, -90.0), (90, 82.5), (-90, -82.5)):
        lon = np.arange(-180.0, 181, 10)
        lat = np.full(lon.shape, pole * 0.99)
        area, _ = geod.polygon_area_perimeter(lon, lat)
        _, areas = Ellipsoid(geod, reference).edges(lon, lat)
        assert abs(areas.sum()) == pytest.approx(abs(area), rel=1e-9)


def test_off_the_earth_there_is_no_area(tmp_path: Path) -> None:
    crs = CRS.from_proj4("+proj=geos +h=35785831 +lon_0=-75 +sweep=x")
    grid = Grid(crs, Affine(20_000, 0, -5_430_000, 0, -20_000, 5_430_000), 543, 543)
    ring = np.array([(0, 0), (0, 1), (1, 1), (1, 0), (0, 0)], np.float64)
    corner, centre = ring, ring + 271
    lines = Ground(grid).measure(np.concatenate([corner, centre]), np.array([0, 5, 10]))
    assert np.isnan(lines.area[0])
    assert lines.area[1] == pytest.approx(20_000**2, rel=0.01)


def test_a_crs_without_a_transform_measures_nothing() -> None:
    assert not Ground(Grid(CRS.from_epsg(32631), Affine.identity(), 20, 20)).measures


def test_a_ring_around_the_earth_has_the_area_of_its_pixels() -> None:
    grid = Grid(CRS.from_epsg(4326), Affine(1, 0, -180, 0, -1, 90), 180, 360)
    band = np.array([(0, 30), (0, 70), (360, 70), (360, 30), (0, 30)], np.float64)
    small = np.array([(3, 30), (3, 31), (4, 31), (4, 30), (3, 30)], np.float64)
    measured = Ground(grid).measure(np.concatenate([band, small]), np.array([0, 5, 10]))
    rows = [grid.pixel_area_m2(Window(row, 0, 1, 1)) for row in range(30, 70)]
    assert abs(measured.area[0]) == pytest.approx(360 * sum(rows), rel=1e-4)
    assert abs(measured.area[1]) == pytest.approx(rows[0], rel=1e-4)
    assert measured.length[0] > 2 * 2e7


@pytest.mark.parametrize("shape", [(1, 1), (3, 200), (400, 7)])
def test_the_area_of_a_pixel_is_that_of_its_own_place(shape: tuple[int, int]) -> None:
    grid = Grid(CRS.from_epsg(4326), Affine(0.05, 0, 5, 0, -0.05, 70), *shape)
    ground = Ground(grid)
    rows, cols = np.indices(shape)
    areas = ground.pixel_area(rows.ravel() + 0.5, cols.ravel() + 0.5).reshape(shape)
    assert np.allclose(areas, ground.pixel_areas(Window(0, 0, *shape)), rtol=1e-9)
    for row in (0, shape[0] // 2, shape[0] - 1):
        south, north = 70 - 0.05 * (row + 1), 70 - 0.05 * row
        box = shapely.box(5, south, 5.05, north)
        area, _ = pyproj.Geod(ellps="WGS84").geometry_area_perimeter(shapely.orient_polygons(box))
        assert np.allclose(areas[row], area, rtol=1e-5)
