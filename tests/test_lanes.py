"""Tiles below one another run their windows once, and give the map that each gives alone."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from geoseg.errors import GeosegError, SceneError
from geoseg.inference.lane import TileResult
from geoseg.inference.segmenter import Segmenter
from geoseg.model.loading import Model, load_model
from geoseg.options import Options
from geoseg.run.tiles import TileJob, run_tiles, tasks_of
from geoseg.testing import drawn_rgb, tiny_random_model
from geoseg.tiling.lattice import Lattice
from geoseg.tiling.tiles import TilePlan, wide_tile
from geoseg.types import BoolArray, PixelBlock, Window

WORDS = "building,roof; road; water; forest"
HEIGHT, WIDTH = 330, 150


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return load_model(tiny_random_model(tmp_path_factory.mktemp("model"), layers=2), device="cpu")


@dataclass
class Memory:
    """A scene in memory that counts what is read."""

    block: PixelBlock
    broken: range = range(0)
    """Rows that cannot be read."""
    tries: int = 1000
    """How many times they cannot."""
    read_rows: list[Window] = field(default_factory=list)

    def read(self, window: Window) -> PixelBlock:
        self.read_rows.append(window)
        if window.row < self.broken.stop and window.row_stop > self.broken.start and self.tries:
            self.tries -= 1
            raise SceneError("rows cannot be read")
        rows, cols = window.slices()
        return PixelBlock(self.block.rgb[:, rows, cols], self.block.valid[rows, cols])

    def known_empty(self, window: Window) -> bool:
        return False


@dataclass
class Mask:
    inside: BoolArray

    def mask(self, window: Window) -> BoolArray:
        return self.inside[window.slices()]


def scene(holes: list[Window] = []) -> PixelBlock:  # noqa: B006
    rgb = drawn_rgb(Window(0, 0, HEIGHT, WIDTH), seed=5).astype(np.float32) / 255
    valid = np.ones((HEIGHT, WIDTH), np.bool_)
    for hole in holes:
        valid[hole.slices()] = False
    return PixelBlock(np.where(valid, rgb, 0).astype(np.float32), valid)


def segmenter(model: Model, **chosen: object) -> Segmenter:
    return Segmenter(
        model, WORDS, Options(templates="none", **({"window": 64, "stride": 32} | chosen))
    )


def mapped(job: TileJob, *, keep_going: bool = False) -> dict[str, np.ndarray]:
    """Products of a whole plan; nodata where nothing came."""
    region = job.plan.region
    names = ("labels", "confidence", "margin")
    found = {name: np.full(region.shape, 255, np.uint8) for name in names}
    seen = []
    for index, result in run_tiles(job, range(len(job.plan)), keep_going=keep_going):
        seen.append(index)
        if isinstance(result, TileResult):
            for name, array in found.items():
                array[result.core.relative_to(region).slices()] = getattr(result, name)
    assert sorted(seen) == list(range(len(job.plan)))
    return found


def alone(segmenter: Segmenter, block: PixelBlock) -> dict[str, np.ndarray]:
    """The scene as one tile."""
    (tile,) = segmenter.plan(block.valid.shape, 1000)
    result = segmenter.segment_tile(block, tile)
    return {name: getattr(result, name) for name in ("labels", "confidence", "margin")}


@settings(max_examples=12, deadline=None)
@given(
    tile=st.tuples(st.sampled_from([32, 64, 96, 128]), st.sampled_from([64, 96, 200])),
    holes=st.lists(
        st.builds(
            Window,
            st.integers(0, 300), st.integers(0, 140), st.integers(1, 200), st.integers(1, 160),
        ),
        max_size=3,
    ),
    refine=st.sampled_from([(), (), ("pamr:iterations=2,dilations=1+3",)]),
    batch=st.sampled_from([1, 3, None]),
    upsampler=st.sampled_from(["none", "jbu"]),
)  # fmt: skip
def test_a_lane_gives_what_one_tile_gives(
    model: Model,
    tile: tuple[int, int],
    holes: list[Window],
    refine: tuple[str, ...],
    batch: int | None,
    upsampler: str,
) -> None:
    one = segmenter(model, refine=refine, batch_size=batch, upsampler=upsampler)
    block = scene(holes)
    margin = one.plan(block.valid.shape, 1000).margin
    plan = TilePlan(one.lattice(*block.valid.shape), tile, margin=margin)
    found, whole = mapped(TileJob(Memory(block), one, plan)), alone(one, block)
    for name, array in whole.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def test_windows_run_once_and_rows_are_read_once(model: Model) -> None:
    one, source = segmenter(model), Memory(scene())
    plan = TilePlan(one.lattice(HEIGHT, WIDTH), (64, 200))
    found = list(run_tiles(TileJob(source, one, plan), range(len(plan))))
    assert sum(result.windows for _, result in found) == one.lattice(HEIGHT, WIDTH).count
    assert source.read_rows[0].row == 0
    for above, below in itertools.pairwise(source.read_rows):
        assert below.row == above.row_stop


def test_an_area_of_interest_needs_its_own_windows_only(model: Model) -> None:
    one, block = (
        segmenter(model, refine=("pamr:iterations=2,dilations=1+3",)),
        scene([Window(100, 0, 30, 90)]),
    )
    inside = np.zeros((HEIGHT, WIDTH), np.bool_)
    inside[20:60, 10:50] = inside[250:290, 90:140] = inside[120:124, 70] = True
    margin = one.plan((HEIGHT, WIDTH), 1000).margin
    plan = TilePlan(one.lattice(HEIGHT, WIDTH), (32, 96), margin=margin)
    job = TileJob(Memory(block), one, plan, Mask(inside))
    found, whole = mapped(job), alone(one, block)
    for name, array in whole.items():
        np.testing.assert_array_equal(found[name], np.where(inside, array, 255), err_msg=name)
    runs = sum(r.windows for _, r in run_tiles(job, range(len(plan))) if r is not None)
    assert runs < plan.windows


def test_a_tile_that_fails_once_is_tried_again(model: Model) -> None:
    one, block = segmenter(model), scene()
    plan = TilePlan(one.lattice(HEIGHT, WIDTH), (64, 200))
    found = mapped(TileJob(Memory(block, range(150, 151), tries=1), one, plan))
    for name, array in alone(one, block).items():
        np.testing.assert_array_equal(found[name], array)
    job = TileJob(Memory(block, range(150, 151), tries=1), one, plan)
    retried = [index for index, result in run_tiles(job, range(len(plan))) if result.retried]
    # The first one whose windows see row 150; those above it are whole.
    assert retried == [next(t.index for t in plan if t.read.row_stop > 150)]


def test_what_refiners_reach_into_is_not_whole(model: Model) -> None:
    """A tile whose refiner needs rows that cannot be read fails with them."""
    one, block = segmenter(model, refine=("pamr:iterations=2,dilations=1+3",)), scene()
    margin = one.plan(block.valid.shape, 1000).margin
    plan = TilePlan(one.lattice(HEIGHT, WIDTH), (64, 200), margin=margin)
    found = mapped(TileJob(Memory(block, range(150, 151)), one, plan), keep_going=True)
    whole = alone(one, block)
    kept = found["labels"] != 255
    assert 0 < kept.sum() < kept.size
    for name, array in whole.items():
        np.testing.assert_array_equal(found[name][kept], array[kept])


def test_a_lane_goes_on_below_a_tile_that_fails(model: Model) -> None:
    one, block = segmenter(model), scene()
    plan = TilePlan(one.lattice(HEIGHT, WIDTH), (64, 200))
    job = TileJob(Memory(block, range(150, 151)), one, plan)
    with pytest.raises(SceneError, match="cannot be read"):
        mapped(job)
    failed = [
        index
        for index, result in run_tiles(job, range(len(plan)), keep_going=True)
        if isinstance(result, GeosegError)
    ]
    # Those whose windows see row 150.
    assert failed == [t.index for t in plan if t.read.row <= 150 < t.read.row_stop]
    found, whole = mapped(job, keep_going=True), alone(one, block)
    for tile in plan:
        if tile.index not in failed:
            here = tile.core.slices()
            np.testing.assert_array_equal(found["labels"][here], whole["labels"][here])


@pytest.mark.parametrize(("window", "stride"), [(224, 112), (320, 156), (448, 224), (336, 112)])
def test_tasks_of_workers_run_few_windows_twice(window: int, stride: int) -> None:
    lattice = Lattice(40_000, 40_000, window, stride)
    plan = TilePlan(lattice, wide_tile(lattice, queries=12))
    tasks = list(tasks_of(plan.lanes(range(len(plan))), plan, threads=4))
    assert sorted(index for some in tasks for index in some) == list(range(len(plan)))
    assert len(tasks) >= 16
    runs = sum(len(tile.windows) for some in tasks for tile in plan.lane(some).tiles)
    assert runs <= 1.06 * lattice.count
