"""Text files as people save them: UTF-8 with any line ends, or one clear error."""

from __future__ import annotations

import difflib
import re
from pathlib import Path

from geoseg._address import as_given, is_address
from geoseg._inputs import is_clutter, looks_like, named_path, read_at_most, shown
from geoseg._remote import read_at_most as read_address
from geoseg.errors import VocabularyError, not_found

LARGEST_FILE_BYTES = 4 * 2**20
"""Of class and template files: every word that 65,534 classes need, and read in an instant."""

_CLASS_FILES = {".txt", ".toml", ".json", ".csv", ".tsv"}
_LINE_END = re.compile(r"\r\n|\r|\n")
_COMMENT = re.compile(r"(?:^|\s)#.*$")


def read_utf8(path: str | Path, what: str) -> str:
    r"""Return the text of a UTF-8 file, a byte order mark dropped and line ends as ``\n``.

    Parameters
    ----------
    path
        The file, or its address.
    what
        What the file holds, for messages ("class file").

    Raises
    ------
    VocabularyError
        If there is no such file, it is not a regular one, cannot be read or is too large, or it
        is not UTF-8.
    """
    path = as_given(path)
    if is_address(path):
        data = read_address(path, what, VocabularyError, LARGEST_FILE_BYTES)
    else:
        data = _local_bytes(path, what)
    if said := looks_like(data):
        raise VocabularyError(f"{what} {shown(path)} is none: {said}")
    # A NUL byte in the first line is what UTF-16 without a byte order mark looks like.
    if data.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in data[:64]:
        raise VocabularyError(
            f"{what} {shown(path)}, line 1: this is UTF-16 text; save the file as UTF-8"
        )
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = len(_LINE_END.findall(data[: error.start].decode("latin-1"))) + 1
        raise VocabularyError(
            f"{what} {shown(path)}, line {line}: byte 0x{data[error.start]:02x} is not UTF-8; "
            "save the file as UTF-8"
        ) from None
    return _LINE_END.sub("\n", text)


def _local_bytes(path: str, what: str) -> bytes:
    found = named_path(path, what, VocabularyError)
    if found is None:
        words = f"{what} {shown(path)} does not exist{_neighbours(Path(path))}"
        raise not_found(VocabularyError)(words)
    if found.is_dir():
        raise VocabularyError(f"{what} {shown(path)} is a folder, not a file")
    return read_at_most(found, what, VocabularyError, LARGEST_FILE_BYTES)


def content_lines(path: str | Path, what: str) -> list[tuple[int, str]]:
    """Return the lines that say something, with their numbers; comments and blanks dropped.

    A comment is a ``#`` at the start of a line or after white space, and what follows it.

    Raises
    ------
    VocabularyError
        If the file cannot be read (see `read_utf8`) or no line is left.
    """
    lines = [
        (number, collapse(_COMMENT.sub("", line)))
        for number, line in enumerate(read_utf8(path, what).split("\n"), start=1)
    ]
    kept = [(number, line) for number, line in lines if line]
    if not kept:
        raise VocabularyError(
            f"{what} {shown(path)} is empty: it has no line but comments and blanks"
        )
    return kept


def collapse(text: str) -> str:
    """Strip white space at both ends and make one space of every run inside."""
    return " ".join(text.split())


def _neighbours(path: Path) -> str:
    """Name the files beside a missing one that the user may have meant."""
    try:
        names = sorted(
            entry.name
            for entry in path.parent.iterdir()
            if entry.suffix in _CLASS_FILES and not is_clutter(entry)
        )
    except (OSError, ValueError):
        return f" (and neither does its folder {shown(path.parent)})"
    near = difflib.get_close_matches(path.name, names, n=3, cutoff=0.5) or names[:3]
    return f"; its folder has {', '.join(map(shown, near))}" if near else ""
