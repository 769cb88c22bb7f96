"""Around every command: errors to one line and an exit code, warnings, what is said and printed."""

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
    global log
    before, log = log, _JsonLog() if as_json else None
    try:
        yield
    finally:
        log = before


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


log: _JsonLog | None = None


def say_scene(scene: str, folder: Path | str, *, quiet: bool) -> None:
    """Say which of several scenes begins."""
    if log is not None:
        log.scene = scene
        log.say("scene", out=str(folder))
    elif not quiet:
        typer.echo(stamped(printable(f"{scene} -> {folder}")), err=True)


def _say(kind: str, message: str, style: str) -> None:
    """One line on stderr: coloured on a terminal, plain elsewhere, never wrapped in a pipe."""
    message = printable(message)
    if log is not None:
        log.say(kind, message=message)
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


def stamped(line: str) -> str:
    """A line with the time before it, where no person watches it come."""
    if sys.stderr.isatty():
        return line
    return f"{datetime.now().astimezone().isoformat(timespec='seconds')}  {line}"
