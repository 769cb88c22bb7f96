"""Files that are whole or not there, and paths that hold in any folder."""

from __future__ import annotations

import glob
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def whole_file(final: Path) -> Iterator[Path]:
    """Give a path to write to; its file gets the final name once the block has ended well.

    The path lies beside the final one, hidden, with the same suffix, which some libraries go by,
    and every process and thread has one of its own. After an exception nothing is left of it, nor
    of files that a library has put beside it under longer names.
    """
    owner = f"{os.getpid()}-{threading.get_ident()}"
    part = final.with_name(f".{final.stem}.{owner}.part{final.suffix}")
    try:
        yield part
        part.replace(final)
    finally:
        for leftover in final.parent.glob(f"{glob.escape(part.stem)}*"):
            with suppress(OSError):
                leftover.unlink()


def absolute(path: str | Path) -> str:
    """Return a path as a process in another folder finds it; as it is where nothing lies there."""
    return str(Path(path).absolute()) if Path(path).exists() else str(path)
