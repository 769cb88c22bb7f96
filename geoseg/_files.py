"""Files that are whole or not there, and paths that hold in any folder."""

from __future__ import annotations

import errno
import glob
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from geoseg.errors import OutputError


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


_NO_ROOM = {errno.ENOSPC, errno.EDQUOT}
_LITTLE_ROOM_BYTES = 2**20


@contextmanager
def writing_to(path: Path) -> Iterator[None]:
    """Turn an error of the system while writing a file into one line.

    Raises
    ------
    OutputError
        That names the file, and says so where there is no room.
    """
    try:
        yield
    except OutputError:
        raise
    except OSError as error:
        raise OutputError(complaint(path, error)) from error


def complaint(path: Path, error: BaseException | str) -> str:
    """Say why a file could not be written, also where a library does not tell."""
    number = getattr(error, "errno", None)
    if number in _NO_ROOM or (number is None and _is_full(path)):
        return f"{path}: cannot be written, there is no room on the disk; make room and go on"
    if number == errno.EFBIG or (number is None and _is_at_limit()):
        return f"{path}: cannot be written, it would be larger than files may be here (ulimit -f)"
    return f"{path}: cannot be written ({getattr(error, 'strerror', None) or error})"


def _is_full(path: Path) -> bool:
    try:
        return shutil.disk_usage(path.parent).free < _LITTLE_ROOM_BYTES
    except OSError:
        return False


def _is_at_limit() -> bool:
    """Whether files may not grow for ever; the size of one that failed says little."""
    try:
        import resource
    except ImportError:  # not on Windows
        return False
    return resource.getrlimit(resource.RLIMIT_FSIZE)[0] != resource.RLIM_INFINITY
