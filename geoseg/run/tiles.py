"""Lanes of tiles, wherever they run: on threads here, on a Dask cluster, as blocks of lazy arrays.

A lane reads its own pixels, ahead of its windows, and gives small blocks tile by tile, so pixels do
not travel. On a ``dask.distributed`` cluster some tiles of a lane are one task; a lazy array has a
task for each tile.
"""

from __future__ import annotations

import itertools
import math
import threading
from collections import defaultdict, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent import futures
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from geoseg.errors import GeosegError, SceneError, TileError
from geoseg.inference.lane import USUAL, TilePixels, TileResult
from geoseg.inference.recipe import Recipe
from geoseg.inference.runners.area import Watch
from geoseg.inference.segmenter import Segmenter
from geoseg.io.regions import GivenRegions
from geoseg.run.regions import Sums
from geoseg.runtime.allocator import keep_freed_memory
from geoseg.runtime.gdal import bounded_cache
from geoseg.tiling.tiles import Lane, Tile, TilePlan
from geoseg.types import BoolArray, PixelBlock, Window


class PixelSource(Protocol):
    """Where a task gets its pixels from; `geoseg.io.scene.Scene` is one."""

    def read(self, window: Window) -> PixelBlock:
        """Pixels of a window of the scene."""

    def known_empty(self, window: Window) -> bool:
        """Whether no pixel of a window is valid, as far as that is known without reading it."""


class Area(Protocol):
    """Part of a scene to keep; `geoseg.io.aoi.Aoi` is one."""

    def mask(self, window: Window) -> BoolArray:
        """Which pixels of a window lie inside."""


Found = tuple[int, "TileResult | GeosegError | None"]
"""A tile's index and its result: None if it has nothing to label, or the error that it failed with.
"""

_device_locks: defaultdict[Any, threading.Lock] = defaultdict(threading.Lock)
"""One lane computes at a time on a device; threads overlap reading and writing with it."""
_READERS = {"cpu": 1, "cuda": 3}
"""Threads that read ahead."""
_SAID_EVERY_S = 0.5
"""Seconds, after which is said how many windows have run."""
_TASKS_A_THREAD = 4
"""Tasks for each thread of a cluster, at least, so that all end at about the same time."""
_TASK_PIXELS = 80 * 2**20
"""Pixels of a task at most: its labels wait for it to end."""


@dataclass(frozen=True)
class TileJob:
    """What every tile of a run has in common; pickles to a few kilobytes."""

    scene: PixelSource | None
    """None if the pixels come as arguments, see `run_block`."""
    segmenter: Segmenter | Recipe
    plan: TilePlan
    area: Area | None = None
    rasters: Sequence[str] = USUAL
    """Names of what is wanted of each tile."""
    regions: GivenRegions | None = None
    """What tiles add up their labels by."""
    scored: bool = False
    """Whether they add up scores too."""

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        if isinstance(self.segmenter, Segmenter):
            state["segmenter"] = self.segmenter.recipe
        return state

    @property
    def device_type(self) -> str:
        """``cpu`` or ``cuda``."""
        made = self.segmenter
        return made.device.type if isinstance(made, Segmenter) else made.device

    def refined_by(self, refine: Sequence[str]) -> TileJob:
        """The same job with refiners that know their scene, see `Segmenter.refined_by`."""
        made = self.segmenter
        if isinstance(made, Segmenter):
            return replace(self, segmenter=made.refined_by(refine))
        options = replace(made.options, refine=tuple(refine))
        return replace(self, segmenter=replace(made, options=options))

    def known_empty(self, index: int) -> bool:
        """Whether a tile has nothing to label, as far as that is known without reading it."""
        core = self.plan.core(index)
        if self.area is not None and not self.area.mask(core).any():
            return True
        return self.scene is not None and self.scene.known_empty(core)

    def run(self, indices: Sequence[int], stop: threading.Event | None = None) -> Iterator[Found]:
        """Read and label tiles that lie below one another, from top to bottom.

        A tile that fails is tried once more, by itself, and one window at a time where memory was
        the cause; its second error is its result, and the lane goes on below it.
        """
        left = deque(indices)
        while left:
            try:
                with closing(self._lane(self.plan.lane(left), stop)) as found:
                    for result in found:
                        yield left[0], result
                        left.popleft()
            except (SceneError, TileError, MemoryError, RuntimeError) as error:
                if isinstance(error, RuntimeError) and not _lacks_memory(error):
                    raise
                yield left[0], self._once_more(left[0], error, stop)
                left.popleft()

    def _once_more(
        self, index: int, error: Exception, stop: threading.Event | None
    ) -> TileResult | GeosegError:
        """Run a tile by itself; what hindered it may be over.

        A result says that it was tried again, so that there is one also where nothing is kept.
        """
        why = "too little memory for several windows at a time"
        if isinstance(error, GeosegError):
            why = str(error)
        else:
            self._segmenter().need_less_memory()
        core = self.plan.core(index)
        try:
            with closing(self._lane(self.plan.lane([index]), stop)) as found:
                return replace(next(found) or self._nodata(core), retried=why)
        except (SceneError, TileError) as again:
            again.__cause__ = again.__context__ = None
            return again.with_traceback(None)  # which would hold the tile's pixels
        except (MemoryError, RuntimeError) as again:
            if not _lacks_memory(again):
                raise
            return TileError(
                f"{words_of(core)} do not fit into memory, one window at a time; "
                "give a smaller --tile or --window, or fewer --workers, and go on with --resume"
            )

    def run_whole(self, index: int) -> TileResult:
        """Read and label a tile; blocks of nodata if none of its pixels is wanted.

        Raises
        ------
        GeosegError
            If it fails twice.
        """
        if self.known_empty(index):
            return self._nodata(self.plan.core(index))
        ((_, found),) = self.run([index])
        if isinstance(found, GeosegError):
            raise found
        return found or self._nodata(self.plan.core(index))

    def run_block(self, index: int, block: PixelBlock) -> TileResult:
        """Label a tile whose pixels are there already; blocks of nodata if none is wanted."""
        lane = self.plan.lane([index])
        sent = self._segmenter().send(block)
        pixels = self._wanted(lane, lane.tiles[0], block, sent)
        (found,) = self._labelled(lane, [pixels], None)
        return found or self._nodata(lane.core)

    def _lane(
        self, lane: Lane, stop: threading.Event | None
    ) -> Generator[TileResult | None, None, None]:
        failed: list[SceneError | MemoryError] = []

        def while_readable() -> Iterator[TilePixels]:
            """Tiles above one that cannot be read are whole, unless refiners reach into it."""
            try:
                yield from pixels
            except (SceneError, MemoryError) as error:
                if self.plan.margin:
                    raise
                failed.append(error)

        with closing(self._read(lane)) as pixels:
            yield from self._labelled(lane, while_readable(), stop)
        if failed:
            raise failed[0]

    def _labelled(
        self, lane: Lane, pixels: Iterable[TilePixels], stop: threading.Event | None
    ) -> Generator[TileResult | None, None, None]:
        """Labels of each tile; None for one of which nothing is kept."""
        segmenter, kept, spare = self._segmenter(), deque[bool](), 0

        def noted() -> Iterator[TilePixels]:
            for each in pixels:
                kept.append(bool(each.keep.any()))
                yield each

        wanted = (*self.rasters, *(["scores"] if self.scored else []))
        found = segmenter.segment_lane(lane, noted(), rasters=wanted, stop=stop)
        with closing(found):
            while True:
                with _device_locks[segmenter.device]:
                    result = next(found, None)
                if result is None:
                    return
                spare += result.windows
                if kept.popleft():
                    yield replace(self._added_up(result), windows=spare)
                    spare = 0
                else:
                    yield None

    def _added_up(self, found: TileResult) -> TileResult:
        """A tile with the sums of its regions in place of its scores, which are large."""
        if self.regions is None:
            return found
        classes = len(self.segmenter.vocabulary.names)
        sums = Sums.of(self.regions.numbers_in(found.core), found, classes)
        return replace(found, scores=None, regions=sums)

    def _read(self, lane: Lane) -> Generator[TilePixels, None, None]:
        """Pixels of each tile, read once, and ahead of the tiles that are being labelled."""
        bottoms = [lane.tiles[0].read.row, *(tile.read.row_stop for tile in lane.tiles)]
        rows = [
            Window(top, tile.read.col, stop - top, tile.read.width)
            for tile, (top, stop) in zip(lane.tiles, itertools.pairwise(bottoms), strict=True)
        ]
        ahead = _READERS.get(self.device_type, 1)
        with futures.ThreadPoolExecutor(ahead, "geoseg-read") as pool:
            reading = deque(pool.submit(self._rows, some) for some in rows[:ahead])
            waiting = deque(rows[ahead:])
            try:
                have: _Rows | None = None
                for tile in lane.tiles:
                    new = reading.popleft().result()
                    if waiting:
                        reading.append(pool.submit(self._rows, waiting.popleft()))
                    have = new if have is None else have.followed_by(new, tile.read.row)
                    assert have is not None
                    yield self._wanted(lane, tile, have.block, have.sent)
            finally:
                for future in reading:
                    future.cancel()

    def _rows(self, rows: Window) -> _Rows | None:
        assert self.scene is not None
        if not rows.height:
            return None
        with bounded_cache():
            block = self.scene.read(rows)
            if self.regions is not None and self._segmenter().reads_regions:
                block = replace(block, regions=self.regions.numbers_in(rows))
        return _Rows(rows.row, block, self._segmenter().send(block))

    def _wanted(self, lane: Lane, tile: Tile, block: PixelBlock, sent: Tensor | None) -> TilePixels:
        """A tile with the windows that reach a pixel that is kept, in it or below it."""
        here = lane.core.intersection(tile.read)
        assert here is not None
        wanted = block.valid[here.relative_to(tile.read).slices()]
        if self.area is not None:
            wanted = wanted & self.area.mask(here)
        margin = self.plan.margin
        needed = tuple(w for w in tile.windows if _reaches(w.grown(margin), here, wanted))
        keep = wanted[tile.core.relative_to(here).slices()]
        return TilePixels(replace(tile, windows=needed), block, keep, sent)

    def _segmenter(self) -> Segmenter:
        made = self.segmenter
        return made if isinstance(made, Segmenter) else made.segmenter()

    def _nodata(self, core: Window) -> TileResult:
        classes = len(self.segmenter.vocabulary.names)
        return TileResult.empty(core, classes, self.rasters)


@dataclass(frozen=True, eq=False)
class _Rows:
    """Pixels of some rows of a lane."""

    first: int
    block: PixelBlock
    sent: Tensor | None

    def followed_by(self, below: _Rows | None, first: int) -> _Rows:
        """These rows from ``first`` on, and those below them, if there are any."""
        kept = slice(first - self.first, None)
        rgb, valid = self.block.rgb[:, kept], self.block.valid[kept]
        regions = None if self.block.regions is None else self.block.regions[kept]
        sent = None if self.sent is None else self.sent[:, kept]
        if below is not None:
            rgb = np.concatenate([rgb, below.block.rgb], axis=1)
            valid = np.concatenate([valid, below.block.valid])
            if regions is not None and below.block.regions is not None:
                regions = np.concatenate([regions, below.block.regions])
            if sent is not None and below.sent is not None:
                sent = torch.cat([sent, below.sent], dim=1)
        return _Rows(first, PixelBlock(rgb, valid, regions), sent)


def _lacks_memory(error: Exception) -> bool:
    """Whether there was too little; PyTorch's allocator on a CPU has no class for that."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        "not enough memory" in str(error)
    )


def words_of(core: Window) -> str:
    """Say which pixels of a scene a tile has."""
    return (
        f"pixels in rows {core.row} to {core.row_stop - 1}, "
        f"columns {core.col} to {core.col_stop - 1}"
    )


def _reaches(window: Window, core: Window, wanted: BoolArray) -> bool:
    """Whether a window covers a pixel of the core that will be kept."""
    shared = window.intersection(core)
    return shared is not None and bool(wanted[shared.relative_to(core).slices()].any())


def _run_away(job: TileJob, indices: Sequence[int]) -> list[Found]:
    """Run tiles in another process; their errors come back without their causes.

    GDAL's errors, which are among the causes, do not survive the way.
    """
    keep_freed_memory()

    def plain(error: GeosegError) -> GeosegError:
        return type(error)(*error.args)

    try:
        return [
            (index, plain(found) if isinstance(found, GeosegError) else found)
            for index, found in job.run(indices)
        ]
    except GeosegError as error:
        failed = plain(error)
    raise failed


def _itself(job: TileJob) -> TileJob:
    return job


def run_tiles(
    job: TileJob,
    indices: Iterable[int],
    *,
    client: Any = None,
    keep_going: bool = False,
    seen: Callable[[int], None] | None = None,
) -> Generator[Found, None, None]:
    """Run tiles and yield each as it is finished, in any order.

    Parameters
    ----------
    job
        What to run.
    indices
        Which tiles of the job's plan.
    client
        A ``distributed.Client``; None runs on local threads, where reading of the next tiles and
        writing of the last ones overlap the computing of one.
    keep_going
        Yield the error of a tile that fails, instead of raising it, and go on.
    seen
        Called now and then, while a tile is awaited, with the number of windows that have run;
        those of a cluster are only known with their tiles.

    Yields
    ------
    index, result
        The result is None for a tile that has nothing to label.

    Raises
    ------
    GeosegError
        What a tile raised, in whichever process; or that the cluster is lost.
    """
    todo = []
    for index in indices:
        if job.known_empty(index):
            yield index, None
        else:
            todo.append(index)
    lanes = job.plan.lanes(todo)
    run_of = _here(job, lanes, seen) if client is None else _on_cluster(job, lanes, client)
    with closing(run_of) as run:
        for index, found in run:
            if isinstance(found, GeosegError) and not keep_going:
                raise found
            yield index, found


def _here(
    job: TileJob, lanes: Sequence[Sequence[int]], seen: Callable[[int], None] | None
) -> Generator[Found, None, None]:
    """One thread computes the next tile while the last one is written."""
    stop = Watch()

    def run() -> Generator[Found, None, None]:
        for lane in lanes:
            yield from job.run(lane, stop)

    found = run()
    with futures.ThreadPoolExecutor(1, "geoseg-tile") as pool:
        try:
            ready = pool.submit(next, found, None)
            while True:
                while seen is not None and not futures.wait([ready], _SAID_EVERY_S).done:
                    seen(stop.windows)
                if (one := ready.result()) is None:
                    return
                ready = pool.submit(next, found, None)
                yield one
        finally:
            stop.set()
            pool.submit(found.close)


def _on_cluster(
    job: TileJob, lanes: Sequence[Sequence[int]], client: Any
) -> Generator[Found, None, None]:
    """Some tiles of a lane are one task of the workers; no worker waits for its next one."""
    import distributed
    from distributed.comm.core import CommClosedError

    running: dict[Any, list[int]] = {}
    try:
        # A task of its own: what all need travels once, and is there again if its worker dies.
        held = client.submit(_itself, job, pure=False)
        waiting = deque(tasks_of(lanes, job.plan, max(_threads_of(client), 1)))
        while waiting or running:
            limit = max(2 * _threads_of(client), 2)
            while waiting and len(running) < limit:
                some = waiting.popleft()
                running[client.submit(_run_away, held, some, pure=False)] = some
            with client.as_current():  # waiting asks for the current client
                done = distributed.wait(list(running), return_when="FIRST_COMPLETED").done
            for future in sorted(done, key=lambda future: running[future]):
                some = running.pop(future)
                try:
                    yield from future.result()
                except distributed.KilledWorker:
                    # One of them may be too much for a worker, and the others not.
                    if len(some) > 1:
                        waiting.extendleft([index] for index in reversed(some))
                    else:
                        yield (
                            some[0],
                            TileError(
                                "a tile ended every worker that tried it, most likely for lack of "
                                "memory; give a smaller --tile or fewer --workers, and go on with "
                                "--resume"
                            ),
                        )
                finally:
                    future.release()
    except (futures.CancelledError, CommClosedError, TimeoutError) as error:
        raise GeosegError(
            "the Dask scheduler is gone; finished tiles are kept, go on with --resume"
        ) from error
    finally:
        if running and client.status == "running":
            with suppress(CommClosedError, TimeoutError):
                client.cancel(list(running))


def _threads_of(client: Any) -> int:
    from distributed.comm.core import CommClosedError

    try:
        return sum(client.nthreads().values())
    except AttributeError as error:  # a client whose scheduler is gone has none to ask
        raise CommClosedError("the scheduler is gone") from error


def tasks_of(lanes: Sequence[Sequence[int]], plan: TilePlan, threads: int) -> Iterator[list[int]]:
    """Cut lanes into tasks: few enough that little runs twice, enough for all workers."""
    tiles = sum(map(len, lanes))
    most = max(1, min(tiles // (_TASKS_A_THREAD * threads), _TASK_PIXELS // math.prod(plan.tile)))
    for lane in lanes:
        count = -(-len(lane) // most)
        for k in range(count):
            yield list(lane[k * len(lane) // count : (k + 1) * len(lane) // count])
