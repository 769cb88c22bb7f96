"""Dask clusters: worker processes on this machine, or a scheduler that is already running."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Any

from geoseg.errors import GeosegError, OptionError
from geoseg.runtime.cpus import available_cpus

_CONNECT_SECONDS = 15
_HERE = "127.0.0.1"

_IGNORE_CTRL_C = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)"
"""A terminal sends Ctrl-C to the workers too, but it is the run that ends them."""


@contextmanager
def connect(
    *,
    workers: int = 0,
    scheduler: str | None = None,
    threads: int | None = None,
    dashboard: bool = False,
) -> Iterator[Any]:
    """Give a ``distributed.Client`` for the time of a run, or None to stay in this process.

    Parameters
    ----------
    workers
        Start this many worker processes here, each with one tile at a time. GPUs go round among
        them.
    scheduler
        Address of a running scheduler, e.g. ``tcp://10.0.0.5:8786``. Its workers need geoseg, and
        scene, model and class files under the same paths as here.
    threads
        Cores that each started worker computes with; by default all, shared out.
    dashboard
        Serve Dask's dashboard for started workers, to this machine alone.

    Raises
    ------
    OptionError
        If both are given, ``workers`` is negative, nothing answers at the address, or no worker
        is there that could run geoseg.
    """
    if workers < 0:
        raise OptionError(f"--workers is {workers}; give 0 for this process, or more")
    if workers and scheduler:
        raise OptionError("--workers starts a cluster and --scheduler uses one; give one of them")
    if dashboard and not workers:
        raise OptionError("--dashboard shows what started workers do; give --workers too")
    if not workers and not scheduler:
        yield None
        return
    local = _local(workers, threads, dashboard=dashboard)
    with _running(scheduler) if scheduler else local as client:
        yield client


def client_there() -> Any:
    """The ``distributed.Client`` that a program has made its own; None in a task of one."""
    distributed = sys.modules.get("distributed")
    if distributed is None:
        return None
    try:
        distributed.get_worker()
        return None  # a task that asked the cluster it runs on would wait for itself
    except (ValueError, AttributeError):
        pass
    try:
        client = distributed.default_client()
    except (ValueError, AttributeError):
        return None
    return client if client.status == "running" else None


@contextmanager
def _running(scheduler: str) -> Iterator[Any]:
    """Client of a cluster that somebody else has started and will end."""
    import distributed
    from distributed.comm.core import CommClosedError

    try:
        # A client that becomes Dask's default and then finds nobody would break later computing.
        client = distributed.Client(scheduler, timeout=_CONNECT_SECONDS, set_as_default=False)
    except (OSError, TimeoutError, ValueError) as error:
        raise OptionError(
            f"no Dask scheduler answers at {scheduler}; start one with `dask scheduler` "
            "and workers with `dask worker ADDRESS`"
        ) from error
    with client:
        try:
            client.wait_for_workers(1, timeout=_CONNECT_SECONDS)
        except TimeoutError as error:
            raise OptionError(
                f"the Dask scheduler at {scheduler} has no workers; start some with "
                f"`dask worker {scheduler}`"
            ) from error
        try:
            found = set(client.run(_geoseg_version).values())
        except (CommClosedError, TimeoutError) as error:
            raise GeosegError(f"the Dask scheduler at {scheduler} is gone") from error
        except ImportError as error:
            raise OptionError(
                f"the Dask workers at {scheduler} cannot import geoseg ({error}); install the "
                "same version of geoseg on their machines"
            ) from error
        if found != {_geoseg_version()}:
            raise OptionError(
                f"the Dask workers at {scheduler} have geoseg {' and '.join(sorted(found))}, this "
                f"is geoseg {_geoseg_version()}; install the same version on their machines"
            )
        yield client


def _geoseg_version() -> str:
    """Version here; fails where a worker has no geoseg, since it is pickled by name."""
    return version("geoseg")


@contextmanager
def _local(workers: int, threads: int | None, *, dashboard: bool) -> Iterator[Any]:
    """Worker processes on this machine; ended with the run."""
    import distributed

    gpus, cores = _gpu_count(), (threads or 0) * workers or available_cpus()
    # Nothing listens where another machine could reach it: who speaks to a worker can run code.
    here = {
        "host": _HERE,
        "dashboard_address": f"{_HERE}:0",
        "dashboard": dashboard,
        "silence_logs": logging.CRITICAL,
    }
    with tempfile.TemporaryDirectory(prefix="geoseg-workers-") as scratch:
        workers_spec = {
            number: {
                "cls": distributed.Nanny,
                "options": {
                    **here,
                    "nthreads": 1,
                    # geoseg bounds what a worker needs; Dask's limit would pause or end workers
                    # that have a share of the memory's size in weights.
                    "memory_limit": 0,
                    "env": worker_environment(number, workers, gpus, cores),
                    "preload": [_IGNORE_CTRL_C],
                    "local_directory": scratch,
                },
            }
            for number in range(workers)
        }
        del here["silence_logs"]
        scheduler_spec = {"cls": distributed.Scheduler, "options": {**here, "port": 0}}
        with (
            distributed.SpecCluster(
                workers=workers_spec, scheduler=scheduler_spec, silence_logs=logging.CRITICAL
            ) as cluster,
            distributed.Client(cluster) as client,
        ):
            client.wait_for_workers(workers)
            yield client


def worker_environment(number: int, workers: int, gpus: int, cores: int) -> dict[str, str]:
    """Return the environment of one local worker, also of one that takes a dead one's place.

    Parameters
    ----------
    number, workers
        Which worker of how many.
    gpus, cores
        What the machine has.
    """
    threads = str(max(cores // workers, 1))
    environment = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), threads)
    # A worker's warnings would stand between the lines of the run that it works for.
    environment["PYTHONWARNINGS"] = "ignore"
    if gpus > 1:
        given = os.environ.get("CUDA_VISIBLE_DEVICES")  # of those that this process may use
        names = given.split(",") if given else [str(k) for k in range(gpus)]
        environment["CUDA_VISIBLE_DEVICES"] = names[number % gpus]
    return environment


def _gpu_count() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0
