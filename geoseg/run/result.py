"""What a run says while it goes on, and what it leaves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from geoseg._address import shown_address, without_secrets
from geoseg._files import complaint, lacks_room
from geoseg._html import table
from geoseg.errors import GeosegError

Status = Literal["done", "resumed", "skipped", "failed"]
"""Mapped now; finished now; was there already, the same; not mapped, or not all of it."""


@dataclass(frozen=True)
class Progress:
    """How far a run is."""

    stage: str
    """``segment``, then the names of the products being made."""
    tiles_done: int
    tiles: int
    pixels_done: int
    """Scene pixels mapped in this run."""
    pixels: int
    """Scene pixels to map in this run."""
    windows_done: int = 0
    """Encoder windows that have run in this run, or need not."""
    windows: int = 0
    """Encoder windows of the tiles to map in this run."""


ProgressCallback = Callable[[Progress], None]


@dataclass(frozen=True)
class Run:
    """What a run left."""

    out: Path | str
    """On this machine, or an address."""
    files: tuple[Path | str, ...]
    report: dict[str, Any] = field(repr=False)
    """The content of ``run.json``."""
    status: Status = "done"

    @property
    def names(self) -> tuple[str, ...]:
        """Of the files, without the folder."""
        return tuple(str(file).replace("\\", "/").rsplit("/", 1)[-1] for file in self.files)

    def __repr__(self) -> str:
        names = ", ".join(self.names)
        return f"Run({self.status}: {self.out}: {names})"

    def _repr_html_(self) -> str:
        rows = [
            (one["name"], f"{one['per_cent']:.1f} %", _hectares(one["area_m2"]))
            for one in self.report.get("classes", ())
        ]
        names = ", ".join(self.names)
        return table(f"{self.out}: {names}", ("class", "share", "ha"), rows)

    @property
    def complaint(self) -> str | None:
        """What went wrong where parts of the scene could not be mapped; None if all is well."""
        holes = self.report.get("holes") or []
        more = f" (and {len(holes) - 1} more)" if len(holes) > 1 else ""
        return f"{self.report['scene']}: {holes[0]['error']}{more}" if holes else None


def _hectares(area_m2: float | None) -> str:
    return "" if area_m2 is None else f"{area_m2 / 1e4:,.2f}"


@dataclass(frozen=True)
class Outcome:
    """How a scene ended."""

    scene: str
    out: Path | str
    seconds: float
    warnings: tuple[str, ...] = ()
    run: Run | None = None
    error: Exception | None = None

    @property
    def status(self) -> Status:
        """In a word."""
        return "failed" if self.run is None or self.run.complaint else self.run.status

    def record(self) -> dict[str, Any]:
        """Return the same as a line of a manifest says it: plain JSON values, no secrets."""
        report = {} if self.run is None else self.run.report
        complaint = in_a_line(self.error) if self.error else self.run and self.run.complaint
        told: dict[str, Any] = without_secrets(
            {
                "scene": self.scene,
                "out": str(self.out),
                "status": self.status,
                "seconds": round(self.seconds, 3),
                "files": [str(file) for file in (self.run.files if self.run else ())],
                "areas_m2": {c["name"]: c["area_m2"] for c in report.get("classes", ())},
                "warnings": list(self.warnings),
                "error": complaint,
            }
        )
        return told


@dataclass(frozen=True)
class Batch:
    """What the runs of several scenes left."""

    outcomes: tuple[Outcome, ...]
    """In the order of the scenes."""

    @property
    def runs(self) -> tuple[Run | None, ...]:
        """In the order of the scenes; None for one that failed."""
        return tuple(outcome.run for outcome in self.outcomes)

    @property
    def errors(self) -> dict[str, Exception]:
        """What went wrong, by scene."""
        return {one.scene: one.error for one in self.outcomes if one.error is not None}


def in_a_line(error: Exception) -> str:
    """Say in one line what went wrong, expected or not."""
    if isinstance(error, GeosegError):
        return str(error)
    if lacks_room(error):
        return complaint(Path(getattr(error, "filename", None) or "standard output"), error)
    what = f"{type(error).__name__}: {shown_address(str(error))}".splitlines()[0]
    return f"unexpected failure ({what}); run again with --debug and report what it shows"
