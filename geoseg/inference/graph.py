"""The only Dask code: a tile is one task, wherever it runs.

A task reads its own pixels, runs its windows and returns small blocks, so pixels do not travel.
The same tasks run on local threads, on a ``dask.distributed`` cluster, and as blocks of a lazy
array.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Protocol

import numpy as np
from dask.delayed import Delayed, delayed

from geoseg.inference.segmenter import PER_CENT_NODATA, Segmenter, TileResult
from geoseg.tiling.tiles import Tile
from geoseg.types import BoolArray, PixelBlock, Window, label_dtype, label_nodata


class PixelSource(Protocol):
    """Where a task gets its pixels from; `geoseg.io.scene.Scene` is one."""

    def read(self, window: Window) -> PixelBlock:
        """Pixels of a window of the scene."""

    def is_empty(self, window: Window) -> bool:
        """Whether a window holds no valid pixel."""


class Area(Protocol):
    """Part of a scene to keep; `geoseg.io.aoi.Aoi` is one."""

    def mask(self, window: Window) -> BoolArray:
        """Which pixels of a window lie inside."""


@dataclass(frozen=True)
class TileJob:
    """What every tile of a run has in common; pickles to a few kilobytes."""

    scene: PixelSource
    segmenter: Segmenter
    area: Area | None = None
    probabilities: bool = False

    def run(self, tile: Tile) -> TileResult:
        """Read one tile, label its core and return the blocks."""
        inside = self.area.mask(tile.core) if self.area is not None else None
        if (inside is not None and not inside.any()) or self.scene.is_empty(tile.core):
            return self._empty(tile)
        block = self.scene.read(tile.read)
        with _device_lock:
            result = self.segmenter.segment_tile(block, tile, probabilities=self.probabilities)
        return result if inside is None or inside.all() else _keep(result, inside)

    def _empty(self, tile: Tile) -> TileResult:
        """All nodata, without reading or inferring anything."""
        classes = len(self.segmenter.vocabulary.names)
        dtype = label_dtype(classes)
        shape = tile.core.shape
        per_cent = np.full(shape, PER_CENT_NODATA, dtype=np.uint8)
        shares = np.broadcast_to(per_cent, (classes, *shape)) if self.probabilities else None
        labels = np.full(shape, label_nodata(dtype), dtype=dtype)
        return TileResult(tile.core, labels, per_cent, shares, windows=0)


_RETRIES = 2
"""How often a tile whose worker failed is tried again elsewhere."""

_device_lock = threading.Lock()
"""One tile computes at a time in a process; threads overlap reading and writing with it."""


def _keep(result: TileResult, inside: BoolArray) -> TileResult:
    """Blocks with nodata outside the area."""
    labels, confidence = result.labels.copy(), result.confidence.copy()
    labels[~inside] = label_nodata(labels.dtype)
    confidence[~inside] = PER_CENT_NODATA
    shares = result.probabilities
    if shares is not None:
        shares = shares.copy()
        shares[:, ~inside] = PER_CENT_NODATA
    return replace(result, labels=labels, confidence=confidence, probabilities=shares)


def tile_task(job: TileJob, tile: Tile) -> Delayed:
    """One tile as a Dask task that gives a `TileResult`."""
    task: Delayed = delayed(job.run, pure=False, traverse=False)(tile)
    return task


def run_tiles(
    job: TileJob, tiles: Iterable[Tile], *, client: Any = None, in_flight: int = 3
) -> Iterator[tuple[Tile, TileResult]]:
    """Run tiles and yield each as it is finished, in any order.

    Parameters
    ----------
    job
        What to run.
    tiles
        Which tiles; taken one by one, so the plan may be long.
    client
        A ``distributed.Client``; None runs on local threads, where reading of the next tiles
        overlaps the computing of one.
    in_flight
        How many tiles may be under way or waiting to be taken at once: the bound on memory.
    """
    if client is None:
        with ThreadPoolExecutor(max_workers=2, thread_name_prefix="geoseg-tile") as pool:
            yield from _bounded(
                tiles,
                lambda tile: pool.submit(tile_task(job, tile).compute, scheduler="synchronous"),
                in_flight,
            )
    else:
        yield from _distributed(job, tiles, client, in_flight)


def _bounded(
    tiles: Iterable[Tile], submit: Any, in_flight: int
) -> Iterator[tuple[Tile, TileResult]]:
    waiting = iter(tiles)
    running: dict[Future[TileResult], Tile] = {}
    try:
        while True:
            for tile in islice(waiting, in_flight - len(running)):
                running[submit(tile)] = tile
            if not running:
                return
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in sorted(done, key=lambda f: running[f].index):
                yield running.pop(future), future.result()
    finally:
        for future in running:
            future.cancel()


def _distributed(
    job: TileJob, tiles: Iterable[Tile], client: Any, in_flight: int
) -> Iterator[tuple[Tile, TileResult]]:
    import distributed

    waiting = iter(tiles)
    running: dict[str, Tile] = {}

    def submit(tile: Tile) -> Any:
        future = client.compute(tile_task(job, tile), retries=_RETRIES)
        running[future.key] = tile
        return future

    finished: Any = distributed.as_completed([submit(t) for t in islice(waiting, in_flight)])
    for future in finished:
        tile, result = running.pop(future.key), future.result()
        future.release()
        for following in islice(waiting, 1):
            finished.add(submit(following))
        yield tile, result
