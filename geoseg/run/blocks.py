"""Maps as dask arrays, which are planned anew for the part that is asked for.

Chunks are tiles, and every tile is one task for all products. A slice of such an array is not cut
out of its tiles: it gets tiles of its own, so that it costs the windows that it touches. Small
tiles share theirs, several to a task.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, cast

import dask.array as da
import numpy as np
import numpy.typing as npt
from dask.array.slicing import normalize_index
from dask.highlevelgraph import HighLevelGraph

from geoseg.errors import GeosegError
from geoseg.inference.lane import TileResult
from geoseg.inference.refine.scene import Pieces, places_to_measure, with_measures
from geoseg.io.array import ArrayScene, stacked_sample
from geoseg.io.scene import Scene
from geoseg.options import Options
from geoseg.run.journal import digest
from geoseg.run.tiles import TileJob
from geoseg.tiling.tiles import TilePlan
from geoseg.types import Window

_MORE = math.sqrt(1.5) - 1
"""Windows along one axis, by which those of a task may be more than those of its pixels."""
_SHARED_BYTES = 2**28
"""Of a dask array whose chunks may stay in memory from the measuring to the mapping."""

_KEPT = 64
_looked_at: dict[str, Scene] = {}
"""Scenes of files whose pixels this process has looked at, so that slices do not do it again."""


@dataclass(frozen=True, eq=False)
class LazyMap:
    """The map of one scene, any part of which can be planned.

    Parameters
    ----------
    job
        What all tiles have in common; its scene is None where the pixels are dask's, and its plan
        is the one of the whole region.
    token
        What tells it from other maps.
    pixels
        The scene, where its pixels are dask's.
    measured
        Graph and key of the scene with its stretch, where that is still to be measured.
    turned
        Whether rows and columns are given back in another order, see `ArrayScene`.
    refine
        Graph and key of the refiners with what they need of the scene, where they need something.
    """

    job: TileJob
    token: str
    pixels: ArrayScene | None = None
    measured: tuple[HighLevelGraph, str] | None = None
    turned: tuple[bool, bool] = (False, False)
    refine: tuple[HighLevelGraph, str] | None = None

    @property
    def plan(self) -> TilePlan:
        """Tiles as the chunks show them, not turned."""
        return self.job.plan

    def part(self, region: Window) -> LazyMap:
        """The same map of some pixels, counted in the order in which they are given back."""
        whole, (rows, cols) = self.plan.region, self.turned
        row = whole.height - region.row_stop if rows else region.row
        col = whole.width - region.col_stop if cols else region.col
        here = Window(whole.row + row, whole.col + col, *region.shape)
        plan = TilePlan(
            self.plan.lattice, self.plan.tile, here, margin=self.plan.margin, alone=True
        )
        return replace(self, job=replace(self.job, plan=plan))

    @cached_property
    def _times(self) -> tuple[int, int]:
        """Chunks of a task down and across, so that few windows run twice."""
        plan, lattice = self.plan, self.plan.lattice
        if not lattice.window:
            return 1, 1
        seen = math.ceil(lattice.window / lattice.stride) - 1
        seen += math.ceil(2 * plan.margin / lattice.stride)
        down, across = (
            min(max(1, math.ceil(seen / (_MORE * (side // lattice.stride)))), most)
            for side, most in zip(plan.tile, (plan.rows, plan.cols), strict=True)
        )
        return down, across

    @cached_property
    def _tasks(self) -> TilePlan:
        """What is computed at once."""
        plan, (down, across) = self.plan, self._times
        tile = plan.tile[0] * down, plan.tile[1] * across
        return TilePlan(plan.lattice, tile, plan.region, margin=plan.margin, alone=True)

    @cached_property
    def name(self) -> str:
        """Of the tasks."""
        plan = self._tasks
        region = plan.region
        cut = [region.row, region.col, *region.shape, *plan.tile, *self.job.rasters]
        return f"geoseg-tile-{digest([self.token, cut])[:32]}"

    @cached_property
    def graph(self) -> HighLevelGraph:
        """Tasks ``(name, index)`` that give a `TileResult` each."""
        job, plan = replace(self.job, plan=self._tasks), self._tasks
        about = f"geoseg-run-{self.name.removeprefix('geoseg-tile-')}"
        layers: dict[str, Any] = {about: {about: job}}
        if self.pixels is None:
            graph, key = self.measured or (HighLevelGraph({}, {}), None)
            layers[self.name] = {
                (self.name, index): (_run_whole, about, index, key) for index in range(len(plan))
            }
            needs = {about} if key is None else {about, key}
            return HighLevelGraph(
                {**graph.layers, **layers},
                {**graph.dependencies, about: set(), self.name: needs},
            )
        reads = [_in_one(self.pixels.pixels(tile.read)) for tile in plan]
        later = [one for one in (self.measured, self.refine) if one is not None]
        refine = self.refine and self.refine[1]
        scene: Any = self.measured[1] if self.measured else f"{about}-scene"
        if not self.measured:
            layers[scene] = {scene: self.pixels.without_pixels()}
        layers[self.name] = {
            (self.name, index): (_run_block, about, index, scene, _only_key(read), refine)
            for index, read in enumerate(reads)
        }
        needs = {about, scene, *(read.name for read in reads), *(key for _, key in later)}
        below = [read.dask for read in reads] + [graph for graph, _ in later]
        merged = HighLevelGraph.merge(*below)
        return HighLevelGraph(
            {**merged.layers, **layers},
            {
                **merged.dependencies,
                **{key: set() for key in layers if key != self.name},
                self.name: needs,
            },
        )

    def blocks(self, product: str, *, stacked: bool) -> list[list[tuple[Any, ...]]]:
        """Tasks of the chunks of a product, row by row in the order in which they are given."""
        plan, (down, across), tasks = self.plan, self._times, self._tasks
        rows, cols = (
            range(count)[::-1] if turn else range(count)
            for count, turn in zip((plan.rows, plan.cols), self.turned, strict=True)
        )

        def block(row: int, col: int) -> tuple[Any, ...]:
            index = row // down * tasks.cols + col // across
            inside = plan.core(row * plan.cols + col).relative_to(tasks.core(index))
            return (_take, (self.name, index), product, inside, self.turned, stacked)

        return [[block(row, col) for col in cols] for row in rows]

    def chunks(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Heights and widths of the chunks, in the order in which they are given."""
        plan, (rows, cols) = self.plan, self.turned
        heights = [plan.core(row * plan.cols).height for row in range(plan.rows)]
        widths = [plan.core(col).width for col in range(plan.cols)]
        return tuple(heights[:: -1 if rows else 1]), tuple(widths[:: -1 if cols else 1])


class MapArray(da.Array):
    """One product of a map, ``([time,] [class,] y, x)``, as a dask array.

    What is computed of it, or saved and opened again, is an ordinary one.
    """

    _maps: tuple[LazyMap, ...]
    _product: str
    _stacked: bool
    _own: str
    """Its name as long as nobody has set values."""

    def __getitem__(self, index: Any) -> Any:
        """Part of the map; basic slices are planned anew."""
        found = self._planned(index if isinstance(index, tuple) else (index,))
        return super().__getitem__(index) if found is None else found

    def copy(self) -> MapArray:
        """The same array; as xarray copies what it holds with every change beside it."""
        made = MapArray(self.dask, self.name, self.chunks, self.dtype, self._meta)
        made._maps, made._product, made._stacked = self._maps, self._product, self._stacked
        made._own = self._own
        return made

    def __deepcopy__(self, memo: Any) -> MapArray:
        return self.copy()

    def _planned(self, index: tuple[Any, ...]) -> Any:
        if self.name != self._own:  # somebody has set values
            return None
        basic = (slice, int, np.integer, type(Ellipsis))
        if not all(isinstance(one, basic) and not isinstance(one, bool) for one in index):
            return None
        *lead, rows, cols = normalize_index(index, self.shape)
        down, across = (
            _span(one, size) for one, size in zip((rows, cols), self.shape[-2:], strict=True)
        )
        maps, stacked, left = self._maps, self._stacked, lead[int(self._stacked) :]
        if stacked:
            maps = maps[lead[0]] if isinstance(lead[0], slice) else (maps[lead[0]],)
            stacked = isinstance(lead[0], slice)
        if down is None or across is None or not maps:
            return None
        whole = (0, self.shape[-2]), (0, self.shape[-1])
        if (down[:2], across[:2]) != whole:
            region = Window(down[0], across[0], down[1] - down[0], across[1] - across[0])
            maps = tuple(one.part(region) for one in maps)
        elif len(maps) == len(self._maps) and stacked == self._stacked:
            return None  # nothing of it is a smaller map
        made = map_array(maps, self._product, self.dtype, self._classes, stacked=stacked)
        rest = (*([slice(None)] if stacked else []), *left, down[2], across[2])
        if all(isinstance(one, slice) and one == slice(None) for one in rest):
            return made
        return da.Array.__getitem__(made, rest)

    @property
    def _classes(self) -> int | None:
        return int(self.shape[-3]) if self.ndim - self._stacked == 3 else None


def map_array(
    maps: Sequence[LazyMap],
    product: str,
    dtype: np.dtype[Any],
    classes: int | None = None,
    *,
    stacked: bool = False,
) -> MapArray:
    """Make the dask array of one product.

    Parameters
    ----------
    maps
        Of one scene, or with ``stacked`` of all dates of a stack.
    product, dtype
        Which raster, and its type.
    classes
        How many planes it has, where it has some.
    """
    name = f"geoseg-{product}-{digest([[one.name, one.plan.tile] for one in maps])[:32]}"
    lead = (0,) if classes is not None else ()
    layer: Any = {
        (name, *([date] if stacked else []), *lead, row, col): block
        for date, one in enumerate(maps)
        for row, blocks in enumerate(one.blocks(product, stacked=stacked))
        for col, block in enumerate(blocks)
    }
    below = HighLevelGraph.merge(*(one.graph for one in maps))
    graph = HighLevelGraph(
        {**below.layers, name: layer},
        {**below.dependencies, name: {one.name for one in maps}},
    )
    chunks = (
        *([(1,) * len(maps)] if stacked else []),
        *([(classes,)] if classes is not None else []),
        *maps[0].chunks(),
    )
    made = MapArray(graph, name, chunks, dtype=dtype)
    made._maps, made._product, made._stacked = tuple(maps), product, stacked
    made._own = name
    return made


def measured_later(scenes: Sequence[ArrayScene], token: str) -> tuple[HighLevelGraph, str]:
    """Graph and key of the first scene with the stretch of all of them, without pixels."""
    sample = stacked_sample(scenes)
    if sum(scene.array.nbytes for scene in scenes) > _SHARED_BYTES:
        # Chunks that the measuring shares with the mapping would stay in memory until that.
        from dask.graph_manipulation import clone

        sample = clone(sample, seed=token)
    sample = _in_one(sample)
    name = f"geoseg-limits-{token[:32]}"
    graph = HighLevelGraph.from_collections(
        name,
        {name: (_measure, scenes[0].without_pixels(), _only_key(sample))},
        dependencies=cast(Any, [sample]),
    )
    return graph, name


def refined_later(
    scene: ArrayScene,
    options: Options,
    token: str,
    limits: tuple[HighLevelGraph, str] | None,
) -> tuple[HighLevelGraph, str]:
    """Graph and key of `Options.refine` with what refiners need of a scene of dask's.

    Parameters
    ----------
    scene
        Whose pieces are read.
    options
        With the refiners.
    token
        What tells it from others.
    limits
        From `measured_later`, where the stretch has still to be measured.
    """
    places = places_to_measure(options, scene.shape)
    parts = [scene.pixels(place) for place in places]
    if scene.array.nbytes > _SHARED_BYTES:
        from dask.graph_manipulation import clone

        parts = list(clone(*parts, seed=token)) if len(parts) > 1 else [clone(parts[0], seed=token)]
    parts = [_in_one(part) for part in parts]
    name = f"geoseg-refine-{token[:32]}"
    seen = limits[1] if limits else scene.without_pixels()
    task = (_measure_refiners, options, seen, scene.shape, places, [_only_key(p) for p in parts])
    own = HighLevelGraph.from_collections(name, {name: task}, dependencies=cast(Any, parts))
    if limits is None:
        return own, name
    graph, key = limits
    needs = {name: {*own.dependencies[name], key}}
    return HighLevelGraph(
        {**graph.layers, **own.layers}, {**graph.dependencies, **own.dependencies, **needs}
    ), name


def looked_at_later(scene: Scene, token: str) -> tuple[HighLevelGraph, str]:
    """Graph and key of the scene of a file once its pixels have been looked at."""
    name = f"geoseg-limits-{token[:32]}"
    return HighLevelGraph({name: {name: (_look, scene, token)}}, {name: set()}), name


def _span(index: Any, size: int) -> tuple[int, int, Any] | None:
    """First and last pixel of an index, and what is left to do; None for other orders or none."""
    if not isinstance(index, slice):
        return int(index), int(index) + 1, 0
    start, stop, step = index.indices(size)
    if step < 1 or stop <= start:
        return None
    return start, stop, slice(None) if step == 1 else slice(None, None, step)


def _in_one(pixels: da.Array) -> da.Array:
    """The same pixels in one chunk."""
    return pixels.rechunk(pixels.shape)


def _only_key(array: da.Array) -> tuple[Any, ...]:
    return (array.name, *(0,) * array.ndim)


def _plain(error: GeosegError) -> GeosegError:
    """An error without its causes, among which GDAL's do not survive the way from a worker."""
    try:
        return type(error)(*error.args)
    except TypeError:
        return GeosegError(str(error))


def _measure(scene: ArrayScene, sample: npt.NDArray[Any]) -> ArrayScene:
    try:
        return scene.measured(np.asarray(sample))
    except GeosegError as error:
        failed = _plain(error)
    raise failed


def _look(scene: Scene, token: str) -> Scene:
    if token in _looked_at:
        return _looked_at[token]
    try:
        found = _looked_at[token] = scene.measured()
        while len(_looked_at) > _KEPT:
            _looked_at.pop(next(iter(_looked_at)), None)
        return found
    except GeosegError as error:
        failed = _plain(error)
    raise failed


def _run_whole(job: TileJob, index: int, scene: Scene | None) -> TileResult:
    try:
        return (job if scene is None else replace(job, scene=scene)).run_whole(index)
    except GeosegError as error:
        failed = _plain(error)
    raise failed


def _measure_refiners(
    options: Options,
    scene: ArrayScene,
    shape: tuple[int, int],
    places: Sequence[Window],
    parts: Sequence[npt.NDArray[Any]],
) -> tuple[str, ...]:
    blocks = {p: scene.block(np.asarray(part)) for p, part in zip(places, parts, strict=True)}
    return with_measures(options, Pieces(shape, blocks)).refine


def _run_block(
    job: TileJob,
    index: int,
    scene: ArrayScene,
    pixels: npt.NDArray[Any],
    refine: Sequence[str] | None = None,
) -> TileResult:
    try:
        if refine is not None:
            job = job.refined_by(refine)
        data = np.asarray(pixels)
        scene.check_range(data)
        return job.run_block(index, scene.block(data))
    except GeosegError as error:
        failed = _plain(error)
    raise failed


def _take(
    result: TileResult, product: str, inside: Window, turned: tuple[bool, bool], stacked: bool
) -> npt.NDArray[Any]:
    """Pixels of a chunk."""
    rows, cols = inside.slices()
    steps = (slice(None, None, -1 if turn else None) for turn in turned)
    found = np.ascontiguousarray(getattr(result, product)[..., rows, cols][(..., *steps)])
    return found[None] if stacked else found
