"""Dask clusters: worker processes on this machine, or a scheduler that is already running."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from geoseg._optional import require
from geoseg.errors import OptionError

_CONNECT_SECONDS = 15


@contextmanager
def connect(*, workers: int = 0, scheduler: str | None = None) -> Iterator[Any]:
    """Give a ``distributed.Client`` for the time of a run, or None to stay in this process.

    Parameters
    ----------
    workers
        Start this many worker processes here, one thread each; cores are shared out among them.
    scheduler
        Address of a running scheduler, e.g. ``tcp://10.0.0.5:8786``.

    Raises
    ------
    OptionError
        If both are given, ``workers`` is negative, or nothing answers at the address.
    MissingExtraError
        If ``distributed`` is not installed.
    """
    if workers < 0:
        raise OptionError(f"--workers is {workers}; give 0 for this process, or more")
    if workers and scheduler:
        raise OptionError("--workers starts a cluster and --scheduler uses one; give one of them")
    if not workers and not scheduler:
        yield None
        return
    require("distributed", extra="distributed", feature="--workers and --scheduler")
    import distributed

    if scheduler:
        try:
            client = distributed.Client(scheduler, timeout=_CONNECT_SECONDS)
        except (OSError, TimeoutError, ValueError) as error:
            raise OptionError(
                f"no Dask scheduler answers at {scheduler}; start one with `dask scheduler` "
                "and workers with `dask worker ADDRESS`"
            ) from error
        with client:
            yield client
        return
    threads = max((os.cpu_count() or 1) // workers, 1)
    with (
        distributed.LocalCluster(
            n_workers=workers, threads_per_worker=1, processes=True, dashboard_address=":0"
        ) as cluster,
        distributed.Client(cluster) as client,
    ):
        client.run(_limit_threads, threads)
        yield client


def _limit_threads(threads: int) -> None:
    """Give a worker's torch its share of the cores."""
    import torch

    torch.set_num_threads(threads)
