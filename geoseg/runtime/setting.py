"""A setting of the whole process that several threads may want changed at the same time."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar

V = TypeVar("V")


@dataclass(frozen=True, eq=False)
class _Change(Generic[V]):
    """One block that has the setting changed."""

    value: V
    place: int | None
    """The thread that alone is concerned; None is the process."""


class Setting(Generic[V]):
    """Something that can be read and written, and is put back.

    Of the changes that are open, the latest holds, whichever of them end before. Once none is, the
    setting is what the first one found.

    Parameters
    ----------
    read, write
        How the process has it.
    per_thread
        A write reaches the thread that makes it and those that start later, as PyTorch's number of
        threads does. Each thread then gets back by itself what the first change found.
    """

    def __init__(
        self, read: Callable[[], V], write: Callable[[V], None], *, per_thread: bool = False
    ) -> None:
        self._read, self._write, self._per_thread = read, write, per_thread
        self._lock = threading.RLock()
        self._changes: list[_Change[V]] = []
        self._usual: V

    def usual(self) -> V:
        """Return the value that it has where nobody has changed it."""
        with self._lock:
            return self._usual if self._changes else self._read()

    @contextmanager
    def changed_to(self, value: V) -> Iterator[None]:
        """Change it while this is open."""
        change = _Change(value, threading.get_ident() if self._per_thread else None)
        with self._lock:
            self._usual = self.usual()
            self._write(value)
            self._changes.append(change)
        try:
            yield
        finally:
            with self._lock:
                self._changes.remove(change)
                left = [other.value for other in self._changes if other.place == change.place]
                self._write(left[-1] if left else self._usual)
