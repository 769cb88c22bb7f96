"""Is this still the file that it was? Told from a little of it, not from all.

A local file counts with its size and a digest of its bytes, so that one that was fetched again is
the same. Where size, time and samples (its first and last 64 KiB and 256 pieces of 4 KiB, evenly
spread) are those of a file whose digest is known, it is not read again: somebody who changes single
bytes between the samples and puts the time back is not noticed. Of scenes of more than 4 GiB the
time counts in place of the digest. A file at an address counts with what its server says of it:
size, and ETag or Last-Modified.
"""

from __future__ import annotations

import hashlib
import urllib.error
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from email.message import Message
from http.client import HTTPException
from pathlib import Path
from typing import Any

from geoseg._address import holds_secret, lasting_address
from geoseg._remote import ask, http_address, store

_END_BYTES = 64 * 2**10
_PIECE_BYTES = 4 * 2**10
_PIECES = 256
_WHOLE_BYTES = 2**20
_DIGESTED_BYTES = 2**32
_ASKED_AT_ONCE = 8

_known: dict[tuple[str, int, int, str], str] = {}
"""Digests of files that were read before, by path, size, time and samples."""


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


def file_records(
    files: Sequence[tuple[str, int, int]], *, whole: bool = True
) -> list[dict[str, Any]]:
    """What a record of a run says of local files, given with size in bytes and time in ns.

    ``sha256`` is None where they are too large to be read, or are not to be read as a ``whole``.
    """
    read = whole and sum(size for _, size, _ in files) <= _DIGESTED_BYTES
    found = []
    for path, size, time in files:
        sample = sample_digest(path)
        record = {"path": path, "bytes": size, "modified_ns": time, "sample_sha256": sample}
        record["sha256"] = (_digest(path, size, time, sample) if read else "") or None
        found.append(record)
    return found


def remember(records: Iterable[Any]) -> None:
    """Take in what an earlier run has recorded, so that files need not be read again."""
    for record in records:
        with suppress(KeyError, TypeError):
            if record["sha256"]:
                key = (record["path"], record["bytes"], record["modified_ns"])
                _known[*key, record["sample_sha256"]] = record["sha256"]


def identities(records: Iterable[dict[str, Any]]) -> list[list[Any]]:
    """What makes files the same: size and digest, or samples and time where there is none."""
    return [
        [one["path"], one["bytes"], one["sha256"] or [one["modified_ns"], one["sample_sha256"]]]
        for one in records
    ]


def _digest(path: str, size: int, time: int, sample: str) -> str:
    try:
        stat = Path(path).stat()
        if (stat.st_size, stat.st_mtime_ns) != (size, time):
            return ""  # it is no longer the file that was opened
        if size <= _WHOLE_BYTES:
            return sample
        key = (path, size, time, sample)
        if key not in _known:
            with Path(path).open("rb") as file:
                _known[key] = hashlib.file_digest(file, "sha256").hexdigest()
        return _known[key]
    except OSError:
        return ""


def server_marks(addresses: Sequence[str]) -> dict[str, dict[str, str]]:
    """What servers say of files, by their lasting addresses."""
    with ThreadPoolExecutor(_ASKED_AT_ONCE) as pool:
        marks = list(pool.map(server_mark, addresses))
    return dict(zip(map(lasting_address, addresses), marks, strict=True))


def server_mark(address: str) -> dict[str, str]:
    """What a server says of a file: size, ETag, Last-Modified; nothing if it does not answer.

    Object stores are asked where the package that reaches them is installed.
    """
    if http_address(address) is None:
        return _store_mark(address)
    told = _headers(address)
    if told is None:
        return {}
    found = {name: told[name] for name in ("ETag", "Last-Modified") if told[name] is not None}
    # "bytes 0-0/1234" where the server gives one byte, else the size is the content's.
    size = (told["Content-Range"] or "").rpartition("/")[2] or told["Content-Length"]
    return found | ({} if size is None else {"Content-Length": size})


def _store_mark(address: str) -> dict[str, str]:
    with suppress(Exception):  # every store has errors of its own
        files, path = store(address, "a scene")
        info = {name.lower().replace("_", ""): value for name, value in files.info(path).items()}
        names = {"etag": "ETag", "lastmodified": "Last-Modified", "updated": "Last-Modified"}
        told = {shown: str(info[name]) for name, shown in names.items() if info.get(name)}
        return told | {"Content-Length": str(info["size"])}
    return {}


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
