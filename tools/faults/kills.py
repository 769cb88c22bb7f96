"""Kills at random moments and at random file events; then --resume, or the command again."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

from tools.faults.stand import Try, is_segment

TRIES, SHORT_TRIES = 120, 8
_ALONE = ("segment", "vectorize", "regrid", "stats", "overwrite", "evaluate", "all products",
          "tune", "geojson", "preview", "parquet", "vectorize fgb")  # fmt: skip
_CASES = (*_ALONE, "workers", "scheduler", "scheduler")
USES = tuple(name for name in _ALONE if name != "overwrite") + ("other scene", "labels alone")
_SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
_MEMORY = ("150MiB", "300MiB", "450MiB", "600MiB")
"""From less than the imports take to about what a tile needs."""


def attempt(t: Try, *, short: bool) -> None:
    """Kill one run, or it and its continuation, and finish it."""
    case = (_ALONE if short else _CASES)[t.number % len(_ALONE if short else _CASES)]
    t.fault, out = f"kill: {case}", t.here / "out"
    if case in ("workers", "scheduler"):
        (_workers if case == "workers" else _scheduler)(t, out)
        return
    job, earlier, more = case, "", list[str]()
    if case == "overwrite":
        job, earlier, more = "segment", "other scene", ["--overwrite"]
        shutil.copytree(t.stand.reference(earlier), out)
    for _ in range(t.rng.choice((1, 1, 2))):
        sent = t.rng.choice(_SIGNALS)
        if t.rng.random() < 0.5:
            number = t.rng.randint(1, t.stand.events[job])
            t.detail += f"{sent.name} at file event {number}, "
            ended = t.run(job, out, *more, event=(number, sent))
        else:
            process = t.start(job, out, *more)
            pause = t.rng.uniform(0.05, t.stand.seconds[job])
            t.detail += f"{sent.name} after {pause:.2f} s, "
            time.sleep(pause)
            process.signal(sent)
            ended = t.ended(process)
        if ended.code == 0:
            break
        t.expect_ended(job, out, ended, earlier)
        more = ["--resume" if is_segment(job) and not earlier else "--overwrite"]
    t.finish(job, out, ended, earlier=earlier)


def _workers(t: Try, out: Path) -> None:
    """End the main process of --workers 2, or a worker, from outside."""
    process = t.start("labels alone", out, "--workers", "2", forked=False)
    victim = t.rng.choice(("main", "worker"))
    t.fault += f", {victim}"
    _until(lambda: not process.running() or (out / ".geoseg-work").exists(), 60)
    time.sleep(t.rng.uniform(0, 1.5))
    sent, t.detail = t.rng.choice(_SIGNALS), "at work" if process.running() else "too late"
    if victim == "main":
        process.signal(sent)
    elif found := _workers_below(process.pid):
        _kill(t.rng.choice(found), t.rng.choice((signal.SIGKILL, signal.SIGTERM)))
    ended = t.ended(process)
    t.finish("labels alone", out, ended)


def _scheduler(t: Try, out: Path) -> None:
    """End the scheduler, a nanny or a worker of a cluster of one's own, or give it no memory."""
    victims = ("scheduler", "memory", "nanny", "worker")
    turn = 2 * (t.number // len(_CASES)) + t.number % 2
    victim = victims[turn % len(victims)]
    t.fault += f", {victim}"
    cluster = _Cluster(t)
    limit = ""
    if victim == "memory":
        limit = _MEMORY[turn // len(victims) % len(_MEMORY)]
    try:
        where = ["--scheduler", cluster.begin(limit)]
        process = t.start("labels alone", out, *where, forked=False)
        _until(lambda: not process.running() or (out / ".geoseg-work").exists(), 60)
        time.sleep(t.rng.uniform(0, 1.5))
        t.detail = "at work" if process.running() else "too late"
        if victim == "memory":
            t.detail = limit
        elif victim == "worker":
            for pid in _workers_below(cluster.nanny.pid)[:1]:
                _kill(pid, signal.SIGKILL)
        else:
            getattr(cluster, victim).kill()
        if victim == "nanny":
            cluster.begin_nanny()  # the run may wait for workers
        ended = t.ended(process)
        if ended.code != 0:
            cluster.end()
            where = ["--scheduler", cluster.begin()]
        t.finish("labels alone", out, ended, *where, forked=False)
    finally:
        cluster.end()


class _Cluster:
    """A scheduler and a worker with its nanny, as somebody starts them by hand."""

    def __init__(self, t: Try) -> None:
        self._here, self._turn = t.here, 0
        self._started: list[subprocess.Popen[bytes]] = []

    def begin(self, memory: str = "") -> str:
        """Start both, the worker with a limit on its memory; return the address."""
        self._turn += 1
        self._file = self._here / f"scheduler-{self._turn}.json"
        self.scheduler = self._start(
            "scheduler", "--port", "0", "--host", "127.0.0.1", "--no-dashboard"
        )
        _until(lambda: self._file.exists() and self._file.read_text().endswith("}"), 60)
        self.begin_nanny(memory)
        return str(json.loads(self._file.read_text())["address"])

    def begin_nanny(self, memory: str = "") -> None:
        """Start a worker."""
        limit = ["--memory-limit", memory] if memory else []
        self.nanny = self._start("worker", "--nthreads", "1", "--no-dashboard", *limit)

    def _start(self, what: str, *more: str) -> subprocess.Popen[bytes]:
        words = [sys.executable, "-m", "distributed.cli.dask_" + what,
                 "--scheduler-file", str(self._file), *more]  # fmt: skip
        nothing = subprocess.DEVNULL
        made = subprocess.Popen(words, cwd=self._here, stdout=nothing, stderr=nothing)
        self._started.append(made)
        return made

    def end(self) -> None:
        """End all processes."""
        for made in reversed(self._started):
            for pid in _workers_below(made.pid):
                _kill(pid, signal.SIGKILL)
            made.kill()
            made.wait()
        self._started.clear()


def _workers_below(pid: int) -> list[int]:
    with suppress(psutil.Error):
        below = psutil.Process(pid).children(recursive=True)
        return sorted(p.pid for p in below if "spawn_main" in " ".join(p.cmdline()))
    return []


def _kill(pid: int, sent: int) -> None:
    with suppress(psutil.Error):
        psutil.Process(pid).send_signal(sent)


def _until(done: Callable[[], bool], seconds: float) -> None:
    last = time.monotonic() + seconds
    while not done() and time.monotonic() < last:
        time.sleep(0.05)
