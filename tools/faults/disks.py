"""Disks without room under the output, the temporary files or the cache; then room is made."""

from __future__ import annotations

import math
import os
import resource
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from tools.faults.stand import LostError, Try

TRIES, SHORT_TRIES = 70, 6
_PLACES = ("output", "file size", "output", "inodes", "temporary", "output", "cache")
_JOBS = ("segment", "vectorize", "all products", "evaluate", "regrid", "tune", "geojson",
         "stats", "parquet", "preview", "vectorize fgb")  # fmt: skip
USES = _JOBS


def attempt(t: Try, *, short: bool) -> None:
    """Run a job where there is too little room, make room and finish it."""
    place, job = _PLACES[t.number % len(_PLACES)], _JOBS[(t.number + t.number // 7) % len(_JOBS)]
    if not can_mount():
        place = "file size"
    t.fault, out = f"no room: {place}", t.here / "out"
    whole = sum(file.stat().st_size for file in t.stand.reference(job).iterdir()) / 1024
    kib = round(math.exp(t.rng.uniform(math.log(8), math.log(max(1.5 * whole, 64)))))
    t.detail = f"{job}, {kib} KiB"
    if place == "file size":
        bounds = (kib * 1024, kib * 1024)
        ended = t.run(job, out, prepare=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, bounds))
        t.finish(job, out, ended)
        return
    inodes = t.rng.randint(4, 14)
    room = f"nr_inodes={inodes}" if place == "inodes" else f"size={kib}k"
    with _small_disk(t.here / "disk", room) as disk:
        env = {}
        if place in ("output", "inodes"):
            t.detail, out = f"{job}, {room}", disk / "out"
        elif place == "cache":
            env = {"GEOSEG_CACHE": str(disk)}
        else:
            env = dict.fromkeys(("TMPDIR", "CPL_TMPDIR", "SQLITE_TMPDIR"), str(disk))
        ended = t.run(job, out, env=env)
        if place == "cache" and ended.code != 0:
            raise LostError(f"no room in the cache, and no map: {ended}")
        t.expect_ended(job, out, ended)
        _mount("-o", "remount,size=64m,nr_inodes=10000", str(disk))
        t.finish(job, out, ended)


@contextmanager
def _small_disk(folder: Path, room: str) -> Iterator[Path]:
    """Mount a file system in memory with so much room."""
    folder.mkdir()
    _mount("-t", "tmpfs", "-o", room, "tmpfs", str(folder))
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def _mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True, capture_output=True)


@cache
def can_mount() -> bool:
    """Whether this process may mount: it is root, and not in a container that forbids it."""
    try:
        with tempfile.TemporaryDirectory() as there, _small_disk(Path(there) / "d", "size=8k"):
            return os.geteuid() == 0
    except (OSError, subprocess.CalledProcessError):
        return False
