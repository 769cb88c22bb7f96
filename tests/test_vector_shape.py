"""Merged, simplified and smoothed polygons: still a coverage, whatever the strips."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import geopandas as gpd
import numpy as np
import pytest
import shapely
from affine import Affine
from hypothesis import given, settings
from hypothesis import strategies as st
from rasterio import features
from scipy import ndimage
from vectors import VOID, blobs, label_file, same, trace

from geoseg.vector import VectorOptions, merge, vectorize
from geoseg.vector.merge import SmallMerger
from geoseg.vector.shape import Shaper

SQUARE = np.eye(2)
SKEWED = np.array([[1.3, 0.2], [-0.1, 0.7]])


@given(
    seed=st.integers(0, 10_000),
    sigma=st.sampled_from([0.1, 0.7, 1.2, 2.5]),
    tolerance=st.sampled_from([0.0, 0.5, 0.8, 1.0, 1.5, 2.5, 6.0]),
    smooth=st.integers(0, 3),
    metres=st.sampled_from([SQUARE, SKEWED]),
    connectivity=st.sampled_from([4, 8]),
    rows=st.integers(1, 9),
)
@settings(max_examples=60)
def test_shaped_polygons_are_a_coverage(
    seed: int,
    sigma: float,
    tolerance: float,
    smooth: int,
    metres: np.ndarray,
    connectivity: int,
    rows: int,
) -> None:
    rng = np.random.default_rng(seed)
    height, width = rng.integers(2, 35, 2)
    values = blobs(height, width, int(rng.integers(2, 5)), seed, sigma)
    if seed % 2:
        values[values == 0] = VOID
    options = {"shape_arcs": Shaper(tolerance, metres, smooth), "connectivity": connectivity}
    polygons = trace(values, **options)
    assert shapely.is_valid(polygons.geometry).all()
    assert shapely.coverage_is_valid(polygons.geometry)
    # No gap, no overlap, and the map covers the same ground as before.
    assert shapely.area(polygons.geometry).sum() == pytest.approx((values != VOID).sum())
    plain = trace(values, connectivity=connectivity)
    assert polygons.tallies.value.tolist() == plain.tallies.value.tolist()
    assert same(polygons, trace(values, rows, **options))


@pytest.mark.parametrize("tolerance", [0.8, 1.5, 4.0])
def test_simplified_boundaries_stay_within_the_tolerance(tolerance: float) -> None:
    values = blobs(80, 90, 4, seed=8, sigma=3)
    plain = shapely.boundary(trace(values).geometry)
    simple = trace(values, shape_arcs=Shaper(tolerance, SQUARE, 0)).geometry
    away = shapely.hausdorff_distance(plain, shapely.boundary(simple))
    assert 0 < away.max() <= tolerance + 1e-9
    fewer = shapely.get_num_coordinates(simple).sum()
    assert fewer < 0.5 * shapely.get_num_coordinates(plain).sum()


def test_more_tolerance_means_fewer_points() -> None:
    values = blobs(80, 90, 4, seed=8, sigma=3)
    counts = [
        shapely.get_num_coordinates(
            trace(values, shape_arcs=Shaper(tolerance, SQUARE, 0)).geometry
        ).sum()
        for tolerance in (0.0, 0.8, 1.5, 3.0, 6.0)
    ]
    assert counts == sorted(counts, reverse=True)


def test_a_chord_jumps_over_nothing() -> None:
    # A small island in the bay of a flat arc: without a look at it, the chord would cut it off.
    values = np.zeros((12, 30), np.uint8)
    values[6:] = 1
    values[4:6, 5:25] = 1
    values[6:8, 6:24] = 0
    values[7, 14] = 2
    polygons = trace(values, shape_arcs=Shaper(5.0, SQUARE, 2))
    assert shapely.coverage_is_valid(polygons.geometry)
    island = polygons.geometry[polygons.tallies.value == 2]
    around = polygons.geometry[polygons.tallies.value == 0]
    assert shapely.touches(island[0], shapely.union_all(around))


def test_smoothing_turns_corners_and_keeps_the_outline() -> None:
    values = np.zeros((20, 20), np.uint8)
    values[5:15, 5:15] = 1
    outer, inner = trace(values, shape_arcs=Shaper(0.0, SQUARE, 3)).geometry[[1, 0]]
    assert shapely.box(0, 0, 20, 20).equals(shapely.union(outer, inner))
    assert inner.area < 100
    x, y = np.array(inner.exterior.coords).T
    step = np.unwrap(np.arctan2(np.diff(y), np.diff(x)))
    assert np.abs(np.diff(step)).max() < np.pi / 6


@pytest.mark.parametrize(
    ("crs", "transform"),
    [
        ("EPSG:32631", Affine(10, 0, 500_000, 0, -10, 5_000_000)),
        ("EPSG:4326", Affine(1.8e-4, 0, 8, 0, -9e-5, 60)),
        ("EPSG:3857", Affine(20, 0, 1_000_000, 0, -20, 8_399_000)),
        ("EPSG:32632", Affine.translation(4e5, 5.3e6) @ Affine.rotation(31) @ Affine.scale(10)),
    ],
    ids=["UTM", "geographic", "web mercator at 60 degrees", "rotated and south up"],
)
def test_tolerance_is_in_metres_everywhere(tmp_path: Path, crs: str, transform: Affine) -> None:
    # Pixels of some ten metres each, whatever the unit of the coordinates.
    labels = label_file(
        tmp_path / "labels.tif", blobs(60, 70, 3, 5, sigma=3), crs=crs, transform=transform
    )
    frames = {}
    for metres in (0, 25):
        out = tmp_path / f"{metres}.gpkg"
        vectorize(labels, out, options=VectorOptions(simplify_m=metres))
        frames[metres] = gpd.read_file(out, layer="segments")
        assert shapely.coverage_is_valid(frames[metres].geometry.values)
    utm = frames[0].estimate_utm_crs()
    plain, simple = (frames[metres].to_crs(utm).boundary for metres in (0, 25))
    away = plain.hausdorff_distance(simple)
    assert 10 < away.max() <= 25.2
    points = [frames[metres].get_coordinates().shape[0] for metres in (25, 0)]
    assert points[0] < 0.4 * points[1]


def merged(values: np.ndarray, min_area: float, rows: int = 1000, connectivity: int = 4):
    """Labels after merging, with pixels of one square metre."""
    merger = SmallMerger(
        values.shape[1],
        void=VOID,
        pixel_area=lambda row, col: np.ones(len(row)),
        pixel_size=(1.0, 1.0),
        min_area=min_area,
        connectivity=connectivity,
    )
    parts = range(0, len(values), rows)
    for row in parts:
        merger.count(values[row : row + rows])
    merger.decide()
    return np.concatenate([merger.relabel(values[row : row + rows]) for row in parts])


def test_small_goes_to_the_longest_boundary() -> None:
    values = np.array(
        [[0, 0, 0, 1, 1, 1], [0, 0, 2, 2, 1, 1], [0, 0, 0, 2, 1, 1], [0, 0, 0, 1, 1, 1]], np.uint8
    )
    # The two-shape has four sides with zeros and four with ones; one pixel more decides.
    values[1, 1] = 2
    result = merged(values, 5)
    assert (result[values == 2] == 0).all()
    np.testing.assert_array_equal(result[values != 2], values[values != 2])
    np.testing.assert_array_equal(merged(values, 4), values)


def test_what_stands_alone_in_nodata_stays() -> None:
    values = np.full((5, 5), VOID, np.uint8)
    values[2, 2] = 1
    np.testing.assert_array_equal(merged(values, 100), values)


@given(
    seed=st.integers(0, 10_000),
    sigma=st.sampled_from([0.1, 0.7, 1.5]),
    min_area=st.sampled_from([0, 2, 5, 12, 40, 10_000]),
    connectivity=st.sampled_from([4, 8]),
    rows=st.integers(1, 7),
)
@settings(max_examples=60)
def test_nothing_small_is_left(
    seed: int, sigma: float, min_area: int, connectivity: int, rows: int
) -> None:
    values = blobs(18, 22, 3, seed, sigma)
    if seed % 3 == 0:
        values[values == 2] = VOID
    result = merged(values, min_area, connectivity=connectivity)
    np.testing.assert_array_equal(
        result, merged(values, min_area, rows=rows, connectivity=connectivity)
    )
    np.testing.assert_array_equal(result == VOID, values == VOID)
    structure = np.ones((3, 3)) if connectivity == 8 else None
    for value in np.unique(result[result != VOID]):
        parts, count = ndimage.label(result == value, structure)
        for part in range(1, count + 1):
            inside = parts == part
            beside = ndimage.binary_dilation(inside) & ~inside
            assert inside.sum() >= min_area or (result[beside] == VOID).all()


def test_edges_may_lie_on_the_disk_and_be_sorted_in_pieces(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    values = np.random.default_rng(0).integers(0, 6, (60, 50)).astype(np.uint8)
    in_memory = merged(values, 9, rows=7)
    monkeypatch.setattr(merge, "_SPOOL_BYTES", 10)
    monkeypatch.setattr(merge, "_AT_ONCE", 40)
    np.testing.assert_array_equal(in_memory, merged(values, 9, rows=7))


def test_noise_costs_little_memory_a_pixel() -> None:
    values = np.random.default_rng(0).integers(0, 6, (1500, 500)).astype(np.uint8)
    tracemalloc.start()
    merged(values, 20, rows=50)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    edges = merge._SPOOL_BYTES  # which would be on the disk
    assert peak < edges + 60 * values.size


def test_min_area_merges_and_drop_small_leaves_holes(tmp_path: Path) -> None:
    values = np.zeros((20, 20), np.uint8)
    values[3, 3] = values[10, 10:12] = 1
    values[14:19, 14:19] = 1
    labels = label_file(tmp_path / "labels.tif", values)
    merge, drop = VectorOptions(min_area_m2=300), VectorOptions(min_area_m2=300, drop_small=True)
    assert vectorize(labels, tmp_path / "merged.gpkg", options=merge).count == 2
    assert vectorize(labels, tmp_path / "dropped.gpkg", options=drop).count == 2
    full = gpd.read_file(tmp_path / "merged.gpkg", layer="segments")
    holes = gpd.read_file(tmp_path / "dropped.gpkg", layer="segments")
    assert full.area.sum() == 40_000
    assert holes.area.sum() == 40_000 - 300
    back = features.rasterize(
        zip(full.geometry, full.class_id, strict=True),
        out_shape=(20, 20),
        transform=Affine(10, 0, 500_000, 0, -10, 5_000_000),
    )
    assert back.sum() == 25


def test_min_area_is_in_square_metres_on_the_ground(tmp_path: Path) -> None:
    # Web mercator at 60 degrees north: a pixel of 20 units covers 10 m by 10 m.
    values = np.zeros((20, 20), np.uint8)
    values[3, 3:6] = 1
    labels = label_file(
        tmp_path / "labels.tif",
        values,
        crs="EPSG:3857",
        transform=Affine(20, 0, 1_000_000, 0, -20, 8_399_738),
    )
    for min_area, count in ((295, 2), (305, 1)):
        out = tmp_path / f"{min_area}.gpkg"
        assert vectorize(labels, out, options=VectorOptions(min_area_m2=min_area)).count == count


def test_shaping_takes_nobody_below_the_least_area(tmp_path: Path) -> None:
    values = blobs(150, 150, 4, seed=3, sigma=1.2)
    points = []
    for metres in (0.1, 30.0):
        labels = label_file(
            tmp_path / "labels.tif", values, transform=Affine(metres, 0, 5e5, 0, -metres, 5e6)
        )
        out, least = tmp_path / f"{metres}.gpkg", 30 * metres**2
        options = VectorOptions(min_area_m2=least, simplify_m=2.5 * metres, smooth=2)
        vectorize(labels, out, options=options)
        found = gpd.read_file(out, layer="segments")
        assert least * (1 - 1e-6) <= found.area.min() < 1.5 * least
        points.append(found.get_coordinates().shape[0])
    # Nor do boundaries keep more corners for that where a metre is more or fewer pixels.
    assert points[0] == pytest.approx(points[1], rel=0.02)
