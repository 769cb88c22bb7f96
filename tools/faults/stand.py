"""The test stand: small inputs, what undisturbed runs make of them, and one try after another."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shlex
import shutil
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tools.faults.process import Ended, Process, at_file_event

CLASSES = "water; tree, wood; road; roof"
_SEGMENT = "segment {scene} {method} --tile 64 --out {out}"
_MAP = "{refs}/segment/labels.tif"
JOBS = {
    "segment": _SEGMENT,
    "other scene": _SEGMENT.replace("{scene}", "{other}"),
    "regrid": f"{_SEGMENT} --gsd 0.8",
    "all products": f"{_SEGMENT} --probabilities --margin --polygons fgb",
    "geojson": f"{_SEGMENT} --polygons geojson --no-preview",
    "parquet": f"{_SEGMENT} --polygons parquet --no-preview",
    "labels alone": f"{_SEGMENT} --polygons none --no-preview",
    "vectorize": f"vectorize {_MAP} --confidence {{refs}}/segment/confidence.tif -o {{out}}/p.gpkg",
    "vectorize other": "vectorize {refs}/regrid/labels.tif -o {out}/p.gpkg",
    "vectorize fgb": f"vectorize {_MAP} --out {{out}}/p.fgb",
    "stats": f"stats {_MAP} --zones {{refs}}/segment/polygons.gpkg --out {{out}}/s.csv",
    "evaluate": f"evaluate {_MAP} {{refs}}/regrid/labels.tif --out {{out}}",
    "tune": f"tune {{scene}} --truth {_MAP} {{method}} --out {{out}}/t.toml",
    "preview": f"preview {{scene}} {_MAP} --out {{out}}/p.png",
}


class LostError(Exception):
    """Work that cannot be had back: the run does not end, or is not finished by --resume."""


class WrongError(Exception):
    """Exit 0, or a file under its final name, with other content than it should have."""


@dataclass
class Stand:
    """Inputs and references in one folder."""

    root: Path
    seconds: dict[str, float] = field(default_factory=dict)
    events: dict[str, int] = field(default_factory=dict)
    """File events of an undisturbed run."""

    def build(self, jobs: Iterable[str]) -> None:
        """Draw the scenes and run every job undisturbed, one of them in both ways."""
        from geoseg.testing import tiny_random_model, write_scene

        model = self.root / "model"
        _in_fork(lambda: tiny_random_model(model))
        for seed, name in enumerate(("scene", "other")):
            _in_fork(lambda n=name, s=seed: write_scene(self.root / f"{n}.tif", 192, 256, seed=s))
        (self.root / "classes.toml").write_text(
            "".join(f'[[class]]\nname = "{name}"\n' for name in ("water", "tree", "road", "roof"))
        )
        for job in dict.fromkeys(("segment", "regrid", *jobs)):
            t = Try(self, "reference", 0, random.Random(0))
            out, start = self.reference(job), time.monotonic()
            ended = t.run(job, out, event=(0, signal.SIGKILL))
            if ended.code != 0:
                raise RuntimeError(f"an undisturbed run of {job} fails: {ended}")
            self.seconds[job] = time.monotonic() - start
            self.events[job] = t.count.stat().st_size
            if job == "segment" and (t.run(job, t.here / "o", forked=False).code or
                                     differences(t.here / "o", out)):  # fmt: skip
                raise RuntimeError("a forked run and one in a fresh interpreter differ")
            shutil.rmtree(t.here)

    def reference(self, job: str) -> Path:
        """Folder with what an undisturbed run has made."""
        return self.root / "refs" / job.replace(" ", "-")

    def arguments(self, job: str, out: Path, model: Path | None = None) -> list[str]:
        """Words of a job's command line."""
        model = model or self.root / "model"
        words = JOBS[job].format(
            scene=self.root / "scene.tif",
            other=self.root / "other.tif",
            method=f"--classes '{CLASSES}' --templates none --model local-dir:{model}",
            refs=self.root / "refs",
            out=out,
        )
        return shlex.split(words)


@dataclass
class Try:
    """One try of a kind of fault; everything random in it comes from ``rng``."""

    stand: Stand
    kind: str
    number: int
    rng: random.Random
    fault: str = ""
    """Row of the table."""
    detail: str = ""
    ends: list[Ended] = field(default_factory=list)
    litter: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.here = self.stand.root / f"{self.kind}-{self.number}"
        self.here.mkdir()
        self.count = self.here / "events"
        self.fault = self.fault or self.kind

    def start(
        self,
        job: str,
        out: Path,
        *more: str,
        event: tuple[int, int] | None = None,
        prepare: Callable[[], None] = lambda: None,
        args: list[str] | None = None,
        forked: bool = True,
        env: dict[str, str] | None = None,
    ) -> Process:
        """Start a job; ``event`` is the number of a file event and the signal sent there."""
        if not is_segment(job):
            out.mkdir(exist_ok=True)
        if event is not None:
            prepare = at_file_event(out, event[0] or None, event[1], self.count)
        number = len(list(self.here.glob("*.log")))
        places = {"GEOSEG_CACHE": str(self.here / "cache")} | (env or {})
        words = [*(args or self.stand.arguments(job, out)), *more]
        log = self.here / f"{number}.log"
        return Process(words, log, env=places, prepare=prepare, forked=forked)

    def ended(self, process: Process) -> Ended:
        """Wait for a process and keep how it ended."""
        self.ends.append(process.wait())
        return self.ends[-1]

    def run(self, job: str, out: Path, *more: str, **settings: Any) -> Ended:
        """Run a job to its end."""
        return self.ended(self.start(job, out, *more, **settings))

    def finish(
        self, job: str, out: Path, first: Ended, *more: str, earlier: str = "", **how: Any
    ) -> None:
        """Go on after a fault, and hold what is there then against the reference.

        Commands without --resume are given again. Where that is refused in one line because a
        file is there, or a map of an ``earlier`` job was to be replaced, --overwrite is the way.
        """
        self.expect_ended(job, out, first, earlier)
        again = first
        if again.code != 0:
            again = self.run(job, out, *["--resume"][: is_segment(job)], *more, **how)
        if again.code in (1, 2) and (earlier or not is_segment(job)):
            again = self.run(job, out, "--overwrite", *more, **how)
        if again.code != 0:
            raise LostError(f"cannot go on, {again}")
        self.expect_whole(job, out)

    def expect_whole(self, job: str, out: Path) -> None:
        """Fail unless a folder holds what an undisturbed run leaves."""
        reference = self.stand.reference(job)
        if found := differences(out, reference):
            raise WrongError(f"exit 0 and {'; '.join(found)}")
        wanted = {file.name for file in reference.iterdir()}
        self.litter += sorted(file.name for file in out.iterdir() if file.name not in wanted)

    def expect_ended(self, job: str, out: Path, ended: Ended, earlier: str = "") -> None:
        """Fail if a run did not end, or left a file with a final name and not its whole content."""
        if ended.code is None:
            raise LostError(f"does not end: {ended.command}")
        jobs = [name for name in (job, earlier) if name and ended.code != 0]
        names = {file.name for job in jobs for file in self.stand.reference(job).iterdir()}
        for name in sorted(names):
            if (out / name).exists():
                allowed = [self.stand.reference(job) / name for job in jobs]
                if content(out / name) not in [content(a) for a in allowed if a.exists()]:
                    raise WrongError(f"{name} is there and not whole")


def is_segment(job: str) -> bool:
    """Whether a job can be resumed."""
    return JOBS[job].startswith("segment")


def differences(out: Path, reference: Path) -> list[str]:
    """Say which files of a reference are missing in a folder or have another content."""
    found = []
    for wanted in sorted(reference.iterdir()):
        if not (out / wanted.name).is_file():
            found.append(f"{wanted.name} is missing")
        elif content(out / wanted.name) != content(wanted):
            found.append(f"{wanted.name} differs")
    return found


def content(path: Path) -> str:
    """Digest of what a file says, without times and such."""
    try:
        return hashlib.sha256(_content(path)).hexdigest()
    except Exception as error:  # whatever a library raises for a damaged file
        return f"unreadable: {type(error).__name__}"


def _content(path: Path) -> bytes:
    if path.suffix == ".tif":
        import rasterio

        with rasterio.open(path) as raster:
            return repr((raster.profile, raster.tags(1))).encode() + raster.read().tobytes()
    if path.suffix == ".gpkg":
        import pyogrio

        meta, _, shapes, fields = pyogrio.raw.read(path, layer=pyogrio.list_layers(path)[0, 0])
        values = [list(column) for column in (shapes, *fields)]
        return repr((meta["crs"], list(meta["fields"]), values)).encode()
    if path.name == "run.json":
        report = json.loads(path.read_text())
        said = ("size", "crs", "gsd_m", "classes", "nodata_pixels", "tiles", "holes", "polygons")
        return json.dumps([report.get(name) for name in said]).encode()
    return path.read_bytes()


def _in_fork(work: Callable[[], Any]) -> None:
    """Do something that may start threads, away from the process that is forked."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    if os.waitpid(pid, 0)[1]:
        raise RuntimeError("the inputs cannot be made")
