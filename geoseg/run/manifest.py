"""What became of every scene, one JSON object a line, there as soon as the scene has ended."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from geoseg._files import local_target, writing_to
from geoseg.run.result import Outcome
from geoseg.run.times import now


class Manifest:
    """A file that grows by a line a scene; what stands in it stays, also after a kill.

    The last line of a scene is what holds.

    Parameters
    ----------
    path
        The file; None for none.

    Raises
    ------
    OutputError
        When it is opened and cannot be written.
    """

    def __init__(self, path: str | Path | None) -> None:
        self._path = None if path is None else local_target(path)
        self._file: IO[bytes] | None = None

    def __enter__(self) -> Self:
        if self._path is not None:
            with writing_to(self._path):
                self._file = self._path.open("a+b")
                if self._file.tell() and not self._ends_a_line():
                    self._file.write(b"\n")  # the last line was cut off
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._file is not None:
            self._file.close()

    def add(self, outcome: Outcome) -> None:
        """Write a line, and have it on the disk."""
        if self._file is None or self._path is None:
            return
        line = json.dumps({"time": now(), **outcome.record()}, allow_nan=False)
        with writing_to(self._path):
            self._file.write(f"{line}\n".encode())
            self._file.flush()
            os.fsync(self._file.fileno())

    def _ends_a_line(self) -> bool:
        assert self._file is not None
        self._file.seek(-1, os.SEEK_END)
        return self._file.read(1) == b"\n"
