"""Files that are whole or not there, and paths that hold in any folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def whole_file(final: Path) -> Iterator[Path]:
    """Give a path to write to; its file gets the final name once the block has ended well.

    The path lies beside the final one, with the same suffix, which some libraries go by. After an
    exception nothing is left of it.
    """
    part = final.with_name(f".{final.stem}.{os.getpid()}.part{final.suffix}")
    try:
        yield part
        part.replace(final)
    finally:
        part.unlink(missing_ok=True)


def absolute(path: str | Path) -> str:
    """Return a path as a process in another folder finds it; as it is where nothing lies there."""
    return str(Path(path).absolute()) if Path(path).exists() else str(path)
