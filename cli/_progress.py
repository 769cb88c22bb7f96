"""How far a command is: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import typer

from geoseg_cli import _run, _signals

if TYPE_CHECKING:
    from geoseg.run.result import Progress


@contextmanager
def progress_bar(*, quiet: bool) -> Iterator[Callable[[Progress], None]]:
    """Bar with rate and time left on a terminal; a line now and then elsewhere."""
    with _shown(quiet=quiet) as show:

        def update(state: Progress) -> None:
            _signals.check()
            show(state)

        yield update


@contextmanager
def share_bar(what: str, *, quiet: bool) -> Iterator[Callable[[float], None] | None]:
    """Bar over a share that is done, 0 to 1, on a terminal only."""
    if quiet or not sys.stderr.isatty():
        yield None
        return
    from rich.progress import Progress

    with Progress(console=_run.console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=1.0)
        yield lambda share: bar.update(task, completed=share)


@contextmanager
def _shown(*, quiet: bool) -> Iterator[Callable[[Progress], None]]:
    if _run.log is not None:
        yield _run.log
    elif quiet:
        yield lambda state: None
    elif sys.stderr.isatty():
        with _rich_bar() as callback:
            yield callback
    else:
        yield _PlainProgress()


@contextmanager
def _rich_bar() -> Iterator[Callable[[Progress], None]]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    with Progress(
        TextColumn("{task.description:<14}"),
        BarColumn(),
        TextColumn("{task.fields[count]}"),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
        transient=False,
    ) as bar:
        task = bar.add_task("", total=None, count="", rate="")

        def update(state: Any) -> None:
            if not state.pixels:
                bar.update(task, description=state.stage)
                return
            speed = (bar.tasks[0].speed or 0) * state.pixels / max(state.windows, 1)
            bar.update(
                task,
                description=state.stage,
                total=state.windows,
                completed=state.windows_done,
                count=f"{state.windows_done}/{state.windows} windows",
                rate=f"{speed / 1e6:.2f} Mpx/s" if speed else "",
            )

        yield update


class _PlainProgress:
    """Lines for logs: at most one every ten per cent or half a minute, with rate and time left."""

    def __init__(self) -> None:
        self._clock = time.monotonic
        self._start = self._clock()
        self._last_time = self._start
        self._last_share = 0.0

    def __call__(self, state: Progress) -> None:
        now = self._clock()
        if not state.pixels:
            return
        if state.windows_done == 0:
            self._start, self._last_share = now, 0.0
            return
        share = state.windows_done / state.windows
        if share < 1 and share - self._last_share < 0.1 and now - self._last_time < 30:
            return
        self._last_share, self._last_time = share, now
        seconds = max(now - self._start, 1e-9)
        rate, left = share * state.pixels / seconds, seconds * (1 / share - 1)
        line = (
            f"{100 * share:3.0f} %  tile {state.tiles_done} of {state.tiles}, "
            f"window {state.windows_done} of {state.windows}  "
            f"{rate / 1e6:.2f} Mpx/s  {_duration(left)} left"
        )
        typer.echo(_run.stamped(line), err=True)


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
