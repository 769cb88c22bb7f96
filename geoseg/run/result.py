"""What a run says while it goes on, and what it leaves."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


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


ProgressCallback = Callable[[Progress], None]


@dataclass(frozen=True)
class Run:
    """What a run left."""

    out: Path
    files: tuple[Path, ...]
    report: dict[str, Any] = field(repr=False)
    """The content of ``run.json``."""


@dataclass(frozen=True)
class Batch:
    """What the runs of several scenes left."""

    runs: tuple[Run | None, ...]
    """In the order of the scenes; None for one that failed."""
    errors: dict[str, Exception]
    """What went wrong, by scene."""
