"""Is this still the file that it was? Told from a little of it, not from all.

A local file counts with its size, its time and a digest of samples: its first and last 64 KiB
and 256 pieces of 4 KiB, evenly spread. A file of up to 1 MiB is read whole. A file at an address
counts with what its server says of it: size, and ETag or Last-Modified. Somebody who changes
single bytes between the samples and puts the time back is not noticed.
"""

from __future__ import annotations

import hashlib
import urllib.error
from contextlib import suppress
from email.message import Message
from http.client import HTTPException
from pathlib import Path

from geoseg._address import holds_secret
from geoseg._remote import ask, http_address

_END_BYTES = 64 * 2**10
_PIECE_BYTES = 4 * 2**10
_PIECES = 256
_WHOLE_BYTES = 2**20


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


def server_mark(address: str) -> dict[str, str]:
    """What a server says of a file: size, ETag, Last-Modified; nothing if it does not answer."""
    told = _headers(address)
    if told is None:
        return {}
    found = {name: told[name] for name in ("ETag", "Last-Modified") if told[name] is not None}
    # "bytes 0-0/1234" where the server gives one byte, else the size is the content's.
    size = (told["Content-Range"] or "").rpartition("/")[2] or told["Content-Length"]
    return found | ({} if size is None else {"Content-Length": size})


def _headers(address: str) -> Message | None:
    # An address that is signed for reading may not be asked in any other way.
    for method, more in (("HEAD", {}), ("GET", {"Range": "bytes=0-0"})):
        with suppress(OSError, ValueError, HTTPException), ask(address, method, more) as answer:
            return answer.headers
    return None


def server_complaint(path: str) -> str | None:
    """What hinders a file at an address from being read, if it is not the file; else None."""
    address = http_address(path)
    if address is None:
        return None
    try:
        ask(address, headers={"Range": "bytes=0-0"}).close()
    except urllib.error.HTTPError as error:
        words = f"the server answers {error.code} ({error.reason})"
        if error.code in (401, 403) and holds_secret(address):
            return f"{words}; its signature may have expired: give a new address"
        return f"{words}; try again later" if error.code >= 500 else words
    except (OSError, ValueError, HTTPException) as error:
        reason = getattr(error, "reason", error)
        return f"the server cannot be reached ({getattr(reason, 'strerror', None) or reason})"
    return None
