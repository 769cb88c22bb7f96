"""Around every command: errors to one line and an exit code, warnings, progress."""

from __future__ import annotations

import functools
import math
import re
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any, TextIO

import typer

from geoseg_cli import _signals

if TYPE_CHECKING:
    from pathlib import Path

    from rich.console import Console

    from geoseg.run.result import Progress

FAILED, USAGE, NONE_DONE, INTERRUPTED = 1, 2, 3, 130
"""Exit codes: the input, the run or some of several scenes failed; wrong usage; each of several
scenes failed; interrupted. What is terminated ends with 143."""


def reported(command: Callable[..., None]) -> Callable[..., None]:
    """Run a command inside of `reporting`, in a process that is geoseg's own."""
    from geoseg.runtime.allocator import own_process
    from geoseg.runtime.quiet import native_lines

    @functools.wraps(command)
    def run(**values: Any) -> None:
        with (
            _signals.stoppable(),
            _logging(as_json=values.get("log_json", False)),
            reporting(
                debug=values["debug"],
                quiet=values.get("quiet", False),
                as_json=values.get("as_json", False),
            ),
            own_process(),
            native_lines(shown=values["debug"]),
        ):
            command(**values)

    return run


@contextmanager
def _logging(*, as_json: bool) -> Iterator[None]:
    global _log
    before, _log = _log, _JsonLog() if as_json else None
    try:
        yield
    finally:
        _log = before


def started() -> tuple[str, Callable[[], float]]:
    """When the command began, and a clock of its seconds, the start of Python included."""
    from geoseg.run.times import now
    from geoseg_cli.start import CLOCK

    return now(), lambda: time.perf_counter() - CLOCK


@contextmanager
def reporting(*, debug: bool, quiet: bool = False, as_json: bool = False) -> Iterator[None]:
    """Turn errors into one line on stderr and an exit code, see `code_of`.

    ``debug`` shows the traceback as well; with ``as_json`` what stands on stdout is JSON all the
    same.
    """
    from geoseg.errors import GeosegError, on_command_line
    from geoseg.run.result import in_a_line

    with warnings.catch_warnings(), on_command_line():
        _install_warnings(debug=debug, quiet=quiet)
        try:
            yield
        except GeosegError as error:
            fail(str(error), code_of(error), debug=debug, as_json=as_json)
        except KeyboardInterrupt as stop:
            words = [str(stop) or "interrupted", *getattr(stop, "__notes__", ())]
            code = getattr(stop, "code", INTERRUPTED)
            fail("; ".join(words), code, debug=debug, as_json=as_json)
        except (typer.Exit, typer.Abort, BrokenPipeError):
            raise
        except Exception as error:
            fail(in_a_line(error), FAILED, debug=debug, as_json=as_json)


def code_of(error: Exception) -> int:
    """Exit code for an error: wrong usage, or a failure."""
    from geoseg.errors import OptionError

    return USAGE if isinstance(error, OptionError) else FAILED


def fail(message: str, code: int, *, debug: bool, as_json: bool = False) -> None:
    """Print one error line, with ``as_json`` also an object on stdout, and leave with ``code``."""
    if debug and sys.exc_info()[0] is not None:
        import traceback

        from geoseg._address import shown_address

        sys.stderr.write(shown_address(traceback.format_exc()))
    say_error(message)
    if as_json:
        print_json({"error": " ".join(message.split()), "exit_code": code})
    raise typer.Exit(code)


def say_error(message: str, *, error: Exception | None = None) -> None:
    """Print one error line on stderr, after the traceback of ``error``, and go on."""
    if error is not None:
        import traceback

        from geoseg._address import shown_address

        sys.stderr.write(shown_address("".join(traceback.format_exception(error))))
    _say("error", " ".join(message.split()), "bold red")


def _install_warnings(*, debug: bool, quiet: bool) -> None:
    from geoseg.errors import GeosegWarning

    if not debug:
        warnings.simplefilter("ignore")
    warnings.simplefilter("ignore" if quiet else "always", GeosegWarning)

    said: set[str] = set()

    def show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        if issubclass(category, GeosegWarning):
            text = " ".join(str(message).split())
            if text not in said:
                said.add(text)
                _say("warning", text, "yellow")
        else:
            sys.stderr.write(warnings.formatwarning(message, category, filename, lineno, line))

    warnings.showwarning = show


def warn_of_nameless(labels: Sequence[str], names: Iterable[str]) -> None:
    """Say so where nobody has said what the values of label rasters mean."""
    from geoseg._address import scene_name
    from geoseg.errors import GeosegWarning

    known = list(names)
    if known and all(re.fullmatch(r"class \d+", name) for name in known):
        warnings.warn(
            f"{scene_name(labels[0])}: nothing says what its values mean, so they are called "
            f"{known[0]} and so on; name them with --classes",
            GeosegWarning,
            stacklevel=2,
        )


def printable(text: str) -> str:
    """Show what a terminal would obey, control characters and the like, and no secrets."""
    from geoseg._address import shown_address

    text = shown_address(text)
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape", "replace").decode() for c in text
    )


def console(*, stderr: bool = False) -> Console:
    """Return a console that takes texts as they are, not for markup."""
    from rich.console import Console

    return Console(stderr=stderr, markup=False, emoji=False, highlight=False)


class _JsonLog:
    """Lines of JSON on standard error, in place of lines for people."""

    def __init__(self) -> None:
        self.scene: str | None = None
        self._told: tuple[str, int] | None = None

    def say(self, level: str, **more: Any) -> None:
        """Write a line."""
        import json

        from geoseg._address import without_secrets
        from geoseg.run.times import now

        line = {"time": now(), "level": level, "scene": self.scene} | more
        typer.echo(json.dumps(without_secrets(line), allow_nan=False), err=True)

    def __call__(self, state: Progress) -> None:
        """Say how far a run is, a line a tile."""
        if self._told != (told := (state.stage, state.tiles_done)):
            self._told = told
            self.say("progress", **vars(state))


_log: _JsonLog | None = None


def say_scene(scene: str, folder: Path | str, *, quiet: bool) -> None:
    """Say which of several scenes begins."""
    if _log is not None:
        _log.scene = scene
        _log.say("scene", out=str(folder))
    elif not quiet:
        typer.echo(_stamped(printable(f"{scene} -> {folder}")), err=True)


def _say(kind: str, message: str, style: str) -> None:
    """One line on stderr: coloured on a terminal, plain elsewhere, never wrapped in a pipe."""
    message = printable(message)
    if _log is not None:
        _log.say(kind, message=message)
        return
    if sys.stderr.isatty():
        from rich.text import Text

        console(stderr=True).print(Text(f"{kind}: ", style=style) + Text(message))
    else:
        typer.echo(f"{kind}: {message}", err=True)


def print_json(value: Any) -> None:
    """Print one JSON object on stdout: what pipelines read."""
    import json

    from geoseg._address import without_secrets

    # Letters that the stream does not have are written as JSON writes them, not as Python does.
    ascii_only = "utf" not in (getattr(sys.stdout, "encoding", None) or "utf-8").lower()
    known = _without_nan(without_secrets(value))
    typer.echo(json.dumps(known, indent=2, ensure_ascii=ascii_only, allow_nan=False))


def _without_nan(value: Any) -> Any:
    """The same with null for what is no number, as JSON wants it."""
    if isinstance(value, dict):
        return {key: _without_nan(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


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

    with Progress(console=console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=1.0)
        yield lambda share: bar.update(task, completed=share)


@contextmanager
def _shown(*, quiet: bool) -> Iterator[Callable[[Progress], None]]:
    if _log is not None:
        yield _log
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
        import time

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
        typer.echo(_stamped(line), err=True)


def _stamped(line: str) -> str:
    """A line with the time before it, where no person watches it come."""
    if sys.stderr.isatty():
        return line
    return f"{datetime.now().astimezone().isoformat(timespec='seconds')}  {line}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
