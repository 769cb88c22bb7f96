"""Polygons of any label array: a partition, whatever the strips."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
import shapely
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from rasterio import features
from vectors import (
    VOID,
    assert_partition,
    blobs,
    in_pixels,
    pixel_measures,
    same,
    spiral,
    trace,
)

from geoseg.vector import trace as trace_module
from geoseg.vector.scores import Scores
from geoseg.vector.trace import Polygoniser

small_labels = hnp.arrays(
    np.uint8,
    st.tuples(st.integers(1, 14), st.integers(1, 14)),
    elements=st.sampled_from([0, 1, 2, VOID]),
)
checkerboard = (np.indices((9, 12)).sum(axis=0) % 2).astype(np.uint8)
nested = np.zeros((21, 21), np.uint8)
for ring in range(1, 10):
    nested[ring : 21 - ring, ring : 21 - ring] = ring % 3
many = np.arange(300, dtype=np.uint16).reshape(15, 20)
DRAWN = {
    "checkerboard": checkerboard,
    "checkerboard with nodata": np.where(checkerboard == 1, VOID, 0).astype(np.uint8),
    "spiral": spiral(25),
    "nested": nested,
    "blobs": blobs(70, 90, 4, seed=1),
    "noise": blobs(40, 30, 3, seed=2, sigma=0.1),
    "one pixel": np.zeros((1, 1), np.uint8),
    "one row": np.array([[0, 0, 1, 1, VOID, 2]], np.uint8),
    "one column": np.array([[0], [0], [1], [VOID], [2]], np.uint8),
    "one class": np.zeros((66, 5), np.uint8),
    "only nodata": np.full((5, 6), VOID, np.uint8),
    "300 classes": many,
}


@pytest.mark.parametrize("connectivity", [4, 8])
@pytest.mark.parametrize("values", DRAWN.values(), ids=DRAWN.keys())
def test_drawn_rasters_are_partitioned(values: np.ndarray, connectivity: int) -> None:
    void = VOID if values.dtype == np.uint8 else 65535
    whole = trace(values, void=void, connectivity=connectivity)
    assert_partition(values, whole, void)
    for rows in (1, 7, 64):
        assert same(whole, trace(values, rows, void=void, connectivity=connectivity))


@pytest.mark.parametrize("connectivity", [4, 8])
def test_each_polygon_has_the_most_frequent_value_of_a_second_raster(connectivity: int) -> None:
    values = blobs(70, 90, 4, seed=1)
    values[20:30, 40:60] = VOID
    second = blobs(70, 90, 5, seed=2, sigma=1)
    known = np.random.default_rng(3).random(values.shape) < 0.9
    whole = trace(values, connectivity=connectivity, second=Scores(second, known))
    shapes = [(polygon, i + 1) for i, polygon in enumerate(whole.geometry)]
    number = features.rasterize(shapes, out=np.zeros(values.shape, np.int32))
    assert len(whole) > 20
    for i, (value, found) in enumerate(zip(whole.tallies.value, whole.second, strict=True)):
        votes = np.bincount(second[(number == i + 1) & known & (second != value)], minlength=5)
        assert found == (votes.argmax() if votes.any() else -1)
    for rows in (1, 7, 64):
        again = trace(values, rows, connectivity=connectivity, second=Scores(second, known))
        assert same(whole, again)
        assert again.second.tolist() == whole.second.tolist()


@pytest.mark.parametrize("connectivity", [4, 8])
@pytest.mark.parametrize("at_once", [1, 2, 5, 100])
def test_points_are_written_as_geos_writes_them(
    at_once: int, connectivity: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trace_module, "_AT_ONCE", at_once)
    for name in ("spiral", "nested", "noise", "checkerboard"):
        polygons = trace(DRAWN[name], 7, connectivity=connectivity)
        assert polygons.wkb.tolist() == shapely.to_wkb(polygons.geometry).tolist()
        assert_partition(DRAWN[name], polygons)


@pytest.mark.parametrize("side", [254, 255, 256, 65_535, 65_536])
def test_the_last_corner_of_a_long_raster_is_there(side: int) -> None:
    values = np.zeros((2, side), np.uint8)
    values[1, -2:] = 1
    for turned in (values, values.T):
        assert_partition(turned, trace(turned, 4096))


@given(small_labels, st.sampled_from([4, 8]), st.integers(1, 5))
@settings(max_examples=100)
def test_any_raster_is_partitioned(values: np.ndarray, connectivity: int, rows: int) -> None:
    whole = trace(values, connectivity=connectivity)
    assert_partition(values, whole)
    assert same(whole, trace(values, rows, connectivity=connectivity))
    gdal = features.shapes(values, mask=values != VOID, connectivity=connectivity)
    assert len(whole) == sum(1 for _ in gdal)


def test_polygons_come_in_the_order_in_which_they_end() -> None:
    values = np.array([[0, 1, 0], [0, 1, 0], [0, 2, 2]], np.uint8)
    polygons = trace(values)
    assert polygons.tallies.value.tolist() == [1, 0, 0, 2]
    assert polygons.tallies.last.tolist() == [4, 5, 6, 8]


def test_neighbours_get_each_others_corners() -> None:
    # The long side of the upper polygon needs the vertex where the two lower ones meet.
    values = np.array([[0, 0, 0, 0], [1, 1, 2, 2]], np.uint8)
    upper = trace(values).geometry[0]
    assert (2.0, 1.0) in upper.exterior.coords
    assert len(upper.exterior.coords) == 6


def test_holes_are_holes() -> None:
    values = np.zeros((7, 7), np.uint8)
    values[1:6, 1:6] = 1
    values[2:5, 2:5] = 0
    values[3, 3] = VOID
    polygons = trace(values)
    holes = {
        (int(v), int(shapely.area(g))): shapely.get_num_interior_rings(g)
        for g, v in zip(polygons.geometry, polygons.tallies.value, strict=True)
    }
    assert holes == {(0, 24): 1, (1, 16): 1, (0, 8): 1}


def test_a_ring_that_touches_itself_becomes_shell_and_hole() -> None:
    # The zero inside the ones meets the zeros outside in a corner only.
    values = np.array([[1, 1, 1, 0], [1, 0, 1, 0], [1, 1, 0, 0], [0, 0, 0, 0]], np.uint8)
    values[2, 2] = 0
    polygons = trace(values)
    assert_partition(values, polygons)
    ones = polygons.geometry[polygons.tallies.value == 1]
    assert [len(g.interiors) for g in ones] == [1]
    assert ones[0].interiors[0].length == 4


def test_corners_join_only_with_eight_neighbours() -> None:
    values = np.array([[0, 1], [1, 0]], np.uint8)
    assert len(trace(values)) == 4
    joined = trace(values, connectivity=8)
    assert len(joined) == 2
    assert (shapely.get_num_geometries(joined.geometry) == 2).all()


def test_touching_the_edge_or_nodata_is_told() -> None:
    values = np.zeros((7, 9), np.uint8)
    values[2, 2] = 1
    values[4, 5] = 2
    values[4, 6] = VOID
    values[0, 4] = 3
    polygons = trace(values)
    told = dict(
        zip(polygons.tallies.value.tolist(), polygons.tallies.touches.tolist(), strict=True)
    )
    assert told == {0: True, 1: False, 2: True, 3: True}


def test_every_value_can_be_a_label() -> None:
    values = np.arange(256, dtype=np.int32).reshape(16, 16)
    assert_partition(values, trace(values, void=-1), void=-1)


def test_memory_holds_only_what_is_open() -> None:
    # Rows of pixels that end at once: nothing of them may stay behind.
    def peak(rows: int) -> int:
        tracer = Polygoniser((rows, 200), void=VOID, place=in_pixels, measure=pixel_measures)
        line = (np.arange(200, dtype=np.uint8) % 7)[None]
        tracemalloc.start()
        for row in range(0, rows, 10):
            tracer.feed(np.repeat((line + row // 10 % 7) % 7, 10, axis=0))
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(100)
    assert peak(4000) < 1.1 * peak(1000)


def test_a_polygon_that_spans_the_raster_is_not_copied_over_and_over(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # A background with combs for holes: its points are there as corners of pixels, and at the end
    # as what is written and a copy of that; what is known of each arc comes on top.
    comb = np.zeros((10, 40), np.uint8)
    comb[1, 1:-1] = comb[2:-1, 1:-1:2] = 1
    strip = np.tile(comb, (2, 8))
    tracer = Polygoniser((2000, strip.shape[1]), void=VOID, place=in_pixels, measure=pixel_measures)
    monkeypatch.setattr(trace_module, "_AT_ONCE", 1000)
    tracemalloc.start()
    for _ in range(100):
        tracer.feed(strip)
    (written,) = tracer.finish().wkb
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 3 * len(written)
