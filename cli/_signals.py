"""Ctrl-C and SIGTERM: a command stops between two steps, says so and leaves."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
_USUAL: dict[int, Any] = {signal.SIGINT: signal.default_int_handler, signal.SIGTERM: signal.SIG_DFL}
_asked: list[int] = []
"""Numbers of the signals that have come."""


class Stopped(KeyboardInterrupt):
    """A signal asked this process to end."""

    def __init__(self, number: int) -> None:
        super().__init__(_WORDS[signal.Signals(number)])
        self.code = 128 + number


@contextmanager
def stoppable() -> Iterator[None]:
    """Raise `Stopped` for signals whose handling nobody has changed."""
    mine = [number for number, usual in _USUAL.items() if signal.getsignal(number) is usual]
    if threading.current_thread() is not threading.main_thread():
        mine = []

    def stop(number: int, frame: FrameType | None) -> None:
        _asked.append(number)
        # What is raised here may be dropped, in a finaliser or a garbage collection, and libraries
        # that are stopped while they start or end stumble on their way out: one line is enough.
        sys.unraisablehook = lambda _: None
        raise Stopped(number)

    for number in mine:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in mine:
            signal.signal(number, _USUAL[number])
        _asked.clear()


def check() -> None:
    """Raise `Stopped` where a signal came to nothing.

    Python drops what is raised in a finaliser or a garbage collection.
    """
    if _asked:
        raise Stopped(_asked[0])
