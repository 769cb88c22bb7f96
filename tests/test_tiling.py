"""The lattice covers every pixel by the original's rule; tiles never change what a pixel sees."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from geoseg.errors import TilingError
from geoseg.tiling.lattice import Lattice, axis_starts
from geoseg.tiling.tiles import TilePlan, wide_tile
from geoseg.types import Window

sizes = st.integers(1, 400)


def coverage(lattice: Lattice, windows: tuple[Window, ...]) -> np.ndarray:
    """How many of these windows cover each pixel."""
    counts = np.zeros((lattice.height, lattice.width), dtype=int)
    for window in windows:
        counts[window.slices()] += 1
    return counts


@st.composite
def lattices(draw: st.DrawFn) -> Lattice:
    window = draw(st.integers(1, 120))
    return Lattice(draw(sizes), draw(sizes), window, draw(st.integers(max(1, window // 6), window)))


@given(sizes, st.integers(1, 120), st.data())
def test_starts_follow_the_sliding_rule(length: int, window: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, window))
    starts = axis_starts(length, window, stride)
    # The rule as the method states it, one position at a time.
    expected = []
    for i in range(max(length - window + stride - 1, 0) // stride + 1):
        stop = min(i * stride + window, length)
        expected.append(max(stop - window, 0))
    assert starts.tolist() == expected
    assert starts[-1] + min(window, length) == length
    assert len(set(starts.tolist())) == len(starts)


@given(lattices())
def test_every_pixel_is_covered(lattice: Lattice) -> None:
    windows = lattice.touching(Window(0, 0, lattice.height, lattice.width))
    assert len(windows) == lattice.count
    assert coverage(lattice, windows).min() >= 1


def test_counts_of_the_paper_setting() -> None:
    lattice = Lattice(448, 448, 224, 112)
    counts = coverage(lattice, lattice.touching(Window(0, 0, 448, 448)))
    assert lattice.count == 9
    assert (counts[0, 0], counts[0, 224], counts[224, 224]) == (1, 2, 4)


@given(lattices(), st.integers(1, 500), st.data())
def test_cores_partition_the_region_and_see_all_their_windows(
    lattice: Lattice, tile: int, data: st.DataObject
) -> None:
    row = data.draw(st.integers(0, lattice.height - 1))
    col = data.draw(st.integers(0, lattice.width - 1))
    region = Window(
        row,
        col,
        data.draw(st.integers(1, lattice.height - row)),
        data.draw(st.integers(1, lattice.width - col)),
    )
    margin = data.draw(st.integers(0, 40))
    plan = TilePlan(lattice, tile, region, margin=margin)
    whole = coverage(lattice, lattice.touching(Window(0, 0, lattice.height, lattice.width)))
    owned = np.zeros((lattice.height, lattice.width), dtype=int)
    runs = 0
    for tile_ in plan:
        owned[tile_.core.slices()] += 1
        runs += len(tile_.windows)
        seen, grown = coverage(lattice, tile_.windows), tile_.grown
        assert np.array_equal(seen[grown.slices()], whole[grown.slices()])
        assert tile_.read.intersection(grown) == grown
        windows = tile_.windows
        assert (tile_.read.row, tile_.read.col) == (windows[0].row, windows[0].col)
        stop = max(window.row_stop for window in windows)
        assert tile_.read.row_stop == min(stop + margin, lattice.height)
        assert tile_.read.col_stop == max(window.col_stop for window in windows)
        rows, cols = (slice(max(s.start - margin, 0), s.stop + margin) for s in tile_.core.slices())
        assert whole[grown.slices()].shape == whole[rows, cols].shape
        assert grown.intersection(tile_.core) == tile_.core
        assert all(tile_.read.intersection(w) == w for w in tile_.windows)
    inside = np.zeros_like(owned)
    inside[region.slices()] = 1
    assert np.array_equal(owned, inside)
    assert runs >= plan.window_runs >= plan.windows


@given(
    lattices(),
    st.tuples(st.integers(1, 300), st.integers(1, 300)),
    st.sampled_from([0, 0, 7, 40]),
    st.data(),
)
def test_a_lane_runs_each_of_its_windows_once_and_in_order(
    lattice: Lattice, tile: tuple[int, int], margin: int, data: st.DataObject
) -> None:
    plan = TilePlan(lattice, tile, margin=margin)
    todo = data.draw(st.sets(st.integers(0, len(plan) - 1), min_size=1))
    lanes = plan.lanes(todo)
    assert sorted(index for lane in lanes for index in lane) == sorted(todo)
    runs = 0
    for indices in lanes:
        lane = plan.lane(indices)
        assert plan.windows_of(indices) == [len(each.windows) for each in lane.tiles]
        windows = [window for each in lane.tiles for window in each.windows]
        assert windows == list(lattice.touching(lane.grown))
        runs += len(windows)
        for above, below in itertools.pairwise(lane.tiles):
            assert below.core.row == above.core.row_stop
            assert below.read.row >= above.read.row
            assert below.read.row_stop >= above.read.row_stop
            # What a tile leaves open is all that is missing of the next one but its own windows.
            assert all(window.row >= above.core.row_stop for window in below.windows)
        for each in lane.tiles:
            assert each.read.intersection(each.grown) == each.grown
            assert all(each.read.intersection(w) == w for w in each.windows)
    if len(todo) == len(plan):
        assert runs == plan.window_runs


@pytest.mark.parametrize(("window", "stride"), [(224, 112), (320, 156), (448, 224), (336, 112)])
def test_few_windows_run_twice_in_wide_lanes(window: int, stride: int) -> None:
    lattice = Lattice(40_000, 40_000, window, stride)
    plan = TilePlan(lattice, wide_tile(lattice, queries=12))
    assert plan.windows == lattice.count
    assert plan.window_runs <= 1.03 * lattice.count
    assert len(plan.lanes(range(len(plan)))) == plan.cols


def test_tile_is_rounded_to_the_lattice() -> None:
    assert TilePlan(Lattice(9000, 9000, 224, 112), 2048).tile == (2016, 2016)
    assert TilePlan(Lattice(9000, 9000, 224, 112), 50).tile == (112, 112)


def test_tiles_are_numbered_as_a_sequence_is() -> None:
    plan = TilePlan(Lattice(100, 150, 50, 50), 50)
    assert (len(plan), plan.rows, plan.cols) == (6, 2, 3)
    assert [tile.index for tile in plan] == list(range(6))
    assert plan[-1] == plan[5]
    assert plan[4].core == plan.core(4) == Window(50, 50, 50, 50)
    for index in (6, -7):
        with pytest.raises(IndexError):
            plan[index]


def test_one_pass_is_one_tile() -> None:
    plan = TilePlan(Lattice(300, 260, 0, 0), 64)
    assert len(plan) == 1
    assert plan[0].windows == (Window(0, 0, 300, 260),)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ((100, 100, 64, 65), "stride 65 with window 64"),
        ((100, 100, 64, 0), "stride 0"),
        ((0, 10, 64, 32), "no windows"),
        ((10, 10, -1, 1), "0 for one pass"),
    ],
)
def test_impossible_lattices_are_refused(args: tuple[int, int, int, int], message: str) -> None:
    with pytest.raises(TilingError, match=message):
        Lattice(*args)


def test_impossible_tiles_are_refused() -> None:
    lattice = Lattice(100, 100, 64, 32)
    with pytest.raises(TilingError, match="2048"):
        TilePlan(lattice, 0)
    with pytest.raises(TilingError, match="outside"):
        TilePlan(lattice, 64, Window(200, 0, 10, 10))
