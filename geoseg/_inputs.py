"""Files that people name: regular ones, of a size that can be right, or one clear line."""

from __future__ import annotations

import re
import stat
from contextlib import suppress
from pathlib import Path

from geoseg.errors import GeosegError, not_found

_SHOWN_LETTERS = 300
_HEAD_BYTES = 1024
_PAGE = re.compile(
    rb"\s*(<\?xml[^>]*>\s*)?<(!doctype\s+html|html|head|body|error)\b", re.IGNORECASE
)
_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
_CLUTTER = re.compile(r"\.DS_Store|\._.*|(eh)?thumbs\.db|desktop\.ini|\.directory", re.IGNORECASE)
"""What macOS, Windows and KDE leave in folders that somebody looks at."""
_MARKS = (b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")
_SPECIAL = (
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


def shown(text: object) -> str:
    """Write what somebody gave into a message: one line, not endless, nothing that acts on it."""
    try:
        whole = str(text)
    except ValueError:  # a whole number with more digits than Python writes
        whole = f"{type(text).__name__} of endless digits"
    start = whole[: _SHOWN_LETTERS + 1]
    line = "".join(
        c if c.isprintable() else c.encode("unicode_escape", "replace").decode() for c in start
    )
    return line if len(line) <= _SHOWN_LETTERS else f"{line[: _SHOWN_LETTERS - 1]}…"


def is_there(path: str | Path) -> bool:
    """Whether there is a file or folder; what can be no name of one (too long, NUL) names none."""
    with suppress(OSError, ValueError):
        return Path(path).exists()
    return False


def is_file(path: str | Path) -> bool:
    """Whether there is a regular file, see `is_there`."""
    return is_there(path) and Path(path).is_file()


def is_folder(path: str | Path) -> bool:
    """Whether there is a folder, see `is_there`."""
    return is_there(path) and Path(path).is_dir()


def is_clutter(path: Path) -> bool:
    """Whether a desktop has left a file in a folder, which is nobody's work."""
    return _CLUTTER.fullmatch(path.name) is not None


def named_path(text: str | Path, what: str, error: type[GeosegError]) -> Path | None:
    """Return what a path names, ``~`` expanded, or None where nothing lies there.

    Parameters
    ----------
    text
        The path.
    what
        What should lie there, for messages ("class file").
    error
        Raised where no file or folder of that name can be used.

    Returns
    -------
    Path or None
        A regular file or a folder.
    """
    try:
        path = Path(text).expanduser()
    except RuntimeError:
        name = str(text).partition("/")[0]
        raise error(f"{what} {shown(text)}: there is no home folder {shown(name)}") from None
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        if path.is_symlink():
            target = shown(path.readlink())
            raise error(f"{what} {shown(path)} is a link to {target}, which is not there") from None
        return None
    except OSError as problem:
        raise error(f"{what} {shown(path)} cannot be read: {problem.strerror}") from None
    except ValueError:  # a NUL, or a letter that the file system cannot write
        raise error(f"{what} {shown(path)} is no name of a file") from None
    for is_one, kind in _SPECIAL:
        if is_one(mode):
            raise error(f"{what} {shown(path)} is {kind}, not a file; save its content in a file")
    return path


def named_file(text: str | Path, what: str, error: type[GeosegError]) -> Path:
    """Return the path of a regular file, ``~`` expanded; see `named_path`."""
    path = named_path(text, what, error)
    if path is None:
        raise not_found(error)(f"{what} {shown(text)} does not exist; check the path")
    if path.is_dir():
        raise error(f"{what} {shown(path)} is a folder, not a file")
    return path


def read_at_most(path: Path, what: str, error: type[GeosegError], most_bytes: int) -> bytes:
    """Return a file's bytes; refuse one that is larger than such a file can be."""
    try:
        with path.open("rb") as file:
            data = file.read(most_bytes + 1)
    except OSError as problem:
        raise error(f"{what} {shown(path)} cannot be read: {problem.strerror}") from None
    if len(data) > most_bytes:
        limit = f"{most_bytes / 2**20:g} MiB"
        raise error(f"{what} {shown(path)} is larger than {limit}, the most that one may have")
    return data


def looks_like(data: bytes) -> str | None:
    """Say what a file begins like that is often saved in place of the one that was wanted."""
    head = data[:_HEAD_BYTES]
    for mark in _MARKS:
        head = head.removeprefix(mark)
    if _PAGE.match(head.replace(b"\0", b"")):
        return "it begins like a web page; download the file itself"
    if head.startswith(_LFS_POINTER):
        return "it is a pointer of Git LFS; fetch the file itself with git lfs pull"
    return None


def file_looks_like(path: str | Path) -> str | None:
    """Say it of a file, see `looks_like`; None where it cannot be read."""
    try:
        with Path(path).open("rb") as file:
            return looks_like(file.read(_HEAD_BYTES))
    except (OSError, ValueError):
        return None
