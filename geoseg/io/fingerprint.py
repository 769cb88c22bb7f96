"""Is this still the file that it was? Told from a little of it, not from all.

A local file counts with its size, its time and a digest of samples: its first and last 64 KiB
and 256 pieces of 4 KiB, evenly spread. A file of up to 1 MiB is read whole. A file at an address
counts with what its server says of it: size, and ETag or Last-Modified. Somebody who changes
single bytes between the samples and puts the time back is not noticed.
"""

from __future__ import annotations

import hashlib
import urllib.error
import urllib.request
from pathlib import Path

_END_BYTES = 64 * 2**10
_PIECE_BYTES = 4 * 2**10
_PIECES = 256
_WHOLE_BYTES = 2**20
_ANSWER_SECONDS = 10
_PREFIXES = ("/vsicurl/", "/vsicurl_streaming/")


def sample_digest(path: str | Path) -> str:
    """SHA-256 of samples of a local file, in hexadecimal; empty if it cannot be read."""
    digest = hashlib.sha256()
    try:
        with Path(path).open("rb") as file:
            size = file.seek(0, 2)
            step = max((size - 2 * _END_BYTES) // _PIECES, 1)
            places = [(0, size)]
            if size > _WHOLE_BYTES:
                places = [(0, _END_BYTES), (size - _END_BYTES, _END_BYTES)]
                places += [(_END_BYTES + k * step, _PIECE_BYTES) for k in range(_PIECES)]
            for place, count in places:
                file.seek(place)
                digest.update(file.read(count))
    except OSError:
        return ""
    return digest.hexdigest()


def address_of(path: str) -> str | None:
    """HTTP address that a path names, or None."""
    for prefix in _PREFIXES:
        path = path.removeprefix(prefix)
    return path if path.startswith(("http://", "https://")) else None


def server_mark(address: str) -> dict[str, str]:
    """What a server says of a file: size, ETag, Last-Modified; nothing if it does not answer."""
    request = urllib.request.Request(address, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=_ANSWER_SECONDS) as answer:
            told = answer.headers
    except (urllib.error.URLError, OSError, ValueError):
        return {}
    names = ("Content-Length", "ETag", "Last-Modified")
    return {name: told[name] for name in names if told[name] is not None}
