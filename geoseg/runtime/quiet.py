"""Lines that native libraries write to the terminal past Python.

GDAL and libtiff, of which every wheel brings its own, tell of a full disk on file descriptor 2, in
words that help nobody and beside the one line that geoseg says. The command line hides them; a
program that geoseg is only a part of keeps its standard error as it is.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TextIO

from geoseg.runtime.allocator import is_own_process
from geoseg.runtime.setting import Setting


class _Screen:
    """Standard error with Python's part of it on a descriptor of its own."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._usual = os.dup(2)
        self._nowhere = os.open(os.devnull, os.O_WRONLY)
        self._descriptor = Setting(lambda: self._usual, lambda other: _point_stderr_to(other))
        sys.stderr = open(  # noqa: SIM115 - it stays open as long as the screen
            self._usual,
            "w",
            buffering=1,
            encoding=stream.encoding,
            errors=stream.errors,
            closefd=False,
        )
        self._python = sys.stderr

    @contextmanager
    def hiding(self) -> Iterator[None]:
        """Hide what is not Python's; several threads may ask for it."""
        with self._descriptor.changed_to(self._nowhere):
            yield

    def close(self) -> None:
        """Leave everything as it was."""
        with suppress(OSError, ValueError):
            self._python.flush()
        if sys.stderr is self._python:
            sys.stderr = self._stream
        _point_stderr_to(self._usual)  # a signal may have come between two steps of hiding
        os.close(self._usual)
        os.close(self._nowhere)


def _point_stderr_to(descriptor: int) -> None:
    os.dup2(descriptor, 2)


_screen: _Screen | None = None


@contextmanager
def native_lines(*, shown: bool) -> Iterator[None]:
    """Say whether lines of native libraries may reach the terminal; they may where nobody says.

    They cannot be hidden in a process that is not geoseg's own, nor where Python's standard error
    does not go to descriptor 2.
    """
    global _screen
    if shown or _screen is not None or not is_own_process() or not _stderr_is_descriptor_2():
        yield
        return
    screen = _screen = _Screen(sys.stderr)
    try:
        yield
    finally:
        _screen = None
        screen.close()


@contextmanager
def hushed() -> Iterator[None]:
    """Hide lines of native libraries while this is open, if they shall not be shown.

    What Python writes to standard error, in whatever thread, still appears.
    """
    if _screen is None:
        yield
        return
    with _screen.hiding():
        yield


def _stderr_is_descriptor_2() -> bool:
    try:
        return sys.stderr.fileno() == 2
    except (AttributeError, OSError, ValueError):  # none, or a stand-in
        return False
