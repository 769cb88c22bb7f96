"""A setting of the whole process that several threads may want changed at the same time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Generic, TypeVar

V = TypeVar("V")


class Setting(Generic[V]):
    """Something that can be read and written, and is put back.

    Parameters
    ----------
    read, write
        How the process has it.
    """

    def __init__(self, read: Callable[[], V], write: Callable[[V], None]) -> None:
        self._read, self._write = read, write
        self._lock = threading.RLock()
        self._open = 0
        self._before: V | None = None

    def usual(self) -> V:
        """Return the value that it has where nobody has changed it."""
        with self._lock:
            return self._read() if self._before is None else self._before

    @contextmanager
    def changed_to(self, value: V) -> Iterator[None]:
        """Change it while this is open; the last one to close puts back what the first found."""
        with self._lock:
            if self._open == 0:
                self._before = self._read()
            self._open += 1
            self._write(value)
        try:
            yield
        finally:
            with self._lock:
                self._open -= 1
                if self._open == 0 and self._before is not None:
                    self._write(self._before)
                    self._before = None
