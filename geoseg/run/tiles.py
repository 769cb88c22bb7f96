"""The only Dask code: a tile is one task, wherever it runs.

A task reads its own pixels, runs its windows and returns small blocks, so pixels do not travel.
The same tasks run on local threads, on a ``dask.distributed`` cluster, and as blocks of a lazy
array.
"""

from __future__ import annotations

import threading
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent import futures
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from dask.delayed import Delayed, delayed

from geoseg.errors import GeosegError, SceneError, TileError
from geoseg.inference.recipe import Recipe
from geoseg.inference.segmenter import Segmenter, TileResult
from geoseg.runtime.allocator import keep_freed_memory
from geoseg.runtime.gdal import bounded_cache
from geoseg.tiling.tiles import Tile, TilePlan
from geoseg.types import PER_CENT_NODATA, BoolArray, PixelBlock, Window, label_nodata


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


_device_locks: defaultdict[Any, threading.Lock] = defaultdict(threading.Lock)
"""One tile computes at a time on a device; threads overlap reading and writing with it."""
_THREADS = {"cpu": 2, "cuda": 4}
"""Threads that work on tiles."""


@dataclass(frozen=True)
class TileJob:
    """What every tile of a run has in common; pickles to a few kilobytes."""

    scene: PixelSource | None
    """None if the pixels come as arguments, see `run_block`."""
    segmenter: Segmenter | Recipe
    plan: TilePlan
    area: Area | None = None
    probabilities: bool = False

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

    def known_empty(self, index: int) -> bool:
        """Whether a tile has nothing to label, as far as that is known without reading it."""
        return self.scene is not None and self.scene.known_empty(self.plan.core(index))

    def run(self, index: int, stop: threading.Event | None = None) -> TileResult | None:
        """Read one tile and label its core; None if no pixel of it is valid and wanted.

        What fails is tried once more, one window at a time where memory was the cause.
        """
        assert self.scene is not None
        tile = self.plan[index]
        inside = self.area.mask(tile.core) if self.area is not None else None
        if inside is not None and not inside.any():
            return None
        for last in (False, True):
            try:
                return self._read_and_label(tile, inside, stop)
            except (SceneError, TileError):
                if last:
                    raise  # otherwise what hindered it may be over
            except (MemoryError, RuntimeError) as error:
                if not _lacks_memory(error):
                    raise
                if last:
                    raise TileError(
                        f"{words_of(tile.core)} do not fit into memory, one window at a time; "
                        "give a smaller --tile or --window, or fewer --workers, and go on with "
                        "--resume"
                    ) from None
                self._segmenter().need_less_memory()
        raise AssertionError("the second try has ended")

    def _read_and_label(
        self, tile: Tile, inside: BoolArray | None, stop: threading.Event | None
    ) -> TileResult | None:
        assert self.scene is not None
        with bounded_cache():
            return self._label(tile, self.scene.read(tile.read), inside, stop)

    def run_block(self, index: int, block: PixelBlock) -> TileResult:
        """Label a tile whose pixels are there already; blocks of nodata if none is wanted."""
        tile = self.plan[index]
        inside = self.area.mask(tile.core) if self.area is not None else None
        return self._label(tile, block, inside, None) or self._nodata(tile.core)

    def run_whole(self, index: int) -> TileResult:
        """Read and label a tile; blocks of nodata if none of its pixels is wanted."""
        known = None if self.known_empty(index) else self.run(index)
        return known or self._nodata(self.plan.core(index))

    def _label(
        self, tile: Tile, block: PixelBlock, inside: BoolArray | None, stop: threading.Event | None
    ) -> TileResult | None:
        wanted = block.valid[tile.core.relative_to(tile.read).slices()]
        if inside is not None:
            wanted = wanted & inside
        margin = self.plan.margin
        needed = tuple(w for w in tile.windows if _reaches(w.grown(margin), tile.core, wanted))
        if not needed:
            return None
        segmenter = self._segmenter()
        sent = segmenter.send(block)
        with _device_locks[segmenter.device]:
            result = segmenter.segment_tile(
                block,
                replace(tile, windows=needed),
                probabilities=self.probabilities,
                stop=stop,
                sent=sent,
            )
        return result if inside is None or inside.all() else _keep(result, inside)

    def _segmenter(self) -> Segmenter:
        made = self.segmenter
        return made if isinstance(made, Segmenter) else made.segmenter()

    def _nodata(self, core: Window) -> TileResult:
        classes = len(self.segmenter.vocabulary.names)
        return TileResult.empty(core, classes, probabilities=self.probabilities)


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


def _keep(result: TileResult, inside: BoolArray) -> TileResult:
    """Blocks with nodata outside the area."""
    blocks: dict[str, Any] = {}
    for name, block in vars(result).items():
        if isinstance(block, np.ndarray):
            nodata = label_nodata(block.dtype) if name == "labels" else PER_CENT_NODATA
            blocks[name] = np.where(inside, block, block.dtype.type(nodata))
    return replace(result, **blocks)


def _run_away(job: TileJob, index: int) -> TileResult | None:
    """Run a tile in another process; its error comes back without its causes.

    GDAL's errors, which are among the causes, do not survive the way.
    """
    keep_freed_memory()
    try:
        return job.run(index)
    except GeosegError as error:
        plain = type(error)(str(error))
    raise plain


def tile_task(run: Callable[..., TileResult | None], *arguments: Any) -> Delayed:
    """One tile as a Dask task; ``run`` is a method of a `TileJob`.

    Dask collections among the arguments are computed first.
    """
    task: Delayed = delayed(run, pure=False, traverse=False)(*arguments)
    return task


def run_tiles(
    job: TileJob, indices: Iterable[int], *, client: Any = None, keep_going: bool = False
) -> Generator[tuple[int, TileResult | GeosegError | None], None, None]:
    """Run tiles and yield each as it is finished, in any order.

    Parameters
    ----------
    job
        What to run.
    indices
        Which tiles of the job's plan; taken one by one, so there may be many.
    client
        A ``distributed.Client``; None runs on local threads, where reading of the next tiles and
        writing of the last ones overlap the computing of one.
    keep_going
        Yield the error of a tile that fails, instead of raising it, and go on.

    Yields
    ------
    index, result
        The result is None for a tile that has nothing to label.

    Raises
    ------
    GeosegError
        What a tile raised, in whichever process; or that the cluster is lost.
    """
    where = _on_threads(job) if client is None else _on_cluster(job, client)
    with where as pool:
        waiting = iter(indices)
        running: dict[Any, int] = {}
        while True:
            limit = pool.limit()
            while len(running) < limit and (index := next(waiting, None)) is not None:
                if job.known_empty(index):
                    yield index, None
                else:
                    running[pool.submit(index)] = index
            if not running:
                return
            for future in sorted(pool.finished(running), key=lambda f: running[f]):
                index = running.pop(future)
                try:
                    found = pool.result(future)
                except (SceneError, TileError) as error:
                    if not keep_going:
                        raise
                    error.__cause__ = error.__context__ = None
                    yield index, error.with_traceback(None)  # which would hold the tile's pixels
                else:
                    yield index, found


@dataclass(frozen=True)
class _Pool:
    """Where tiles run; what local threads and a cluster have in common."""

    limit: Callable[[], int]
    """How many tiles may be under way or waiting to be taken at once: the bound on memory."""
    submit: Callable[[int], Any]
    finished: Callable[[dict[Any, int]], Iterable[Any]]
    """Waits until at least one is."""
    result: Callable[[Any], TileResult | None]


@contextmanager
def _on_threads(job: TileJob) -> Iterator[_Pool]:
    """One thread computes, the others read ahead: several where a GPU is faster than they are."""
    stop = threading.Event()
    threads = _THREADS.get(job.device_type, 2)

    def run(index: int) -> TileResult | None:
        task = tile_task(job.run, index, stop)
        result: TileResult | None = task.compute(scheduler="synchronous")
        return result

    pool = futures.ThreadPoolExecutor(max_workers=threads, thread_name_prefix="geoseg-tile")
    try:
        yield _Pool(
            limit=lambda: threads + 1,
            submit=lambda index: pool.submit(run, index),
            finished=lambda running: futures.wait(running, return_when="FIRST_COMPLETED").done,
            result=lambda future: future.result(),
        )
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


@contextmanager
def _on_cluster(job: TileJob, client: Any) -> Iterator[_Pool]:
    """The workers of a client; twice as many tiles as threads, so that none waits for the next."""
    import distributed
    from distributed.comm.core import CommClosedError

    def finished(running: dict[Any, int]) -> Iterable[Any]:
        with client.as_current():  # waiting asks for the current client, which it need not be
            return distributed.wait(list(running), return_when="FIRST_COMPLETED").done

    open_futures: set[Any] = set()

    def submit(index: int) -> Any:
        future = client.compute(tile_task(_run_away, job, index))
        open_futures.add(future)
        return future

    def result(future: Any) -> TileResult | None:
        try:
            found: TileResult | None = future.result()
        except distributed.KilledWorker as error:
            raise TileError(
                "a tile ended every worker that tried it, most likely for lack of memory; give a "
                "smaller --tile or fewer --workers, and go on with --resume"
            ) from error
        finally:
            open_futures.discard(future)
            future.release()
        return found

    try:
        yield _Pool(
            limit=lambda: max(2 * sum(client.nthreads().values()), 2),
            submit=submit,
            finished=finished,
            result=result,
        )
    except (futures.CancelledError, CommClosedError, TimeoutError) as error:
        raise GeosegError(
            "the Dask scheduler is gone; finished tiles are kept, go on with --resume"
        ) from error
    finally:
        if open_futures and client.status == "running":
            client.cancel(list(open_futures))
