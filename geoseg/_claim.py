"""Who is at work on a folder or a file: one run at a time, also across machines where that holds.

A claim is a small file beside what is claimed. Whoever holds it has an exclusive lock on it
(``flock``), which ends with the process, however it ends, so that nothing has to be cleaned up
after a kill. Linux carries that lock to other machines on NFS and most cluster file systems. Where
it does not reach, or there is no ``flock`` (Windows), the file's time says whether its owner is
alive: the owner renews it, and a claim that nobody has renewed for `STALE_SECONDS` is free.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from geoseg.errors import OutputError

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

log = logging.getLogger(__name__)

STALE_SECONDS = 120.0
_RENEW_SECONDS = 20.0


@contextmanager
def claimed(claim: Path, what: Path) -> Iterator[None]:
    """Hold a claim while this is open; its file is gone afterwards.

    Parameters
    ----------
    claim
        File of the claim; its folder exists.
    what
        What is claimed, for messages.

    Raises
    ------
    OutputError
        If somebody else holds it; the message says which process on which machine, and since
        when.
    """
    handle = _take(claim, what)
    ended = threading.Event()
    renewing = threading.Thread(
        target=_renew, args=(handle, ended), name="geoseg-claim", daemon=True
    )
    renewing.start()
    try:
        yield
    finally:
        ended.set()
        renewing.join()
        with suppress(OSError):
            claim.unlink()
        os.close(handle)


def _take(claim: Path, what: Path) -> int:
    while True:
        try:
            handle = os.open(claim, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise OutputError(f"{what}: cannot be written ({error.strerror})") from error
        try:
            locked = _lock(handle)
            owner = _owner(handle)
            if locked is False or _alive_elsewhere(handle, owner, locks_reach=locked is True):
                raise OutputError(
                    f"{what}: another run is at work there ({_words(owner)}); wait for it to "
                    "end, or give another place"
                )
            if _is_still(handle, claim):
                _sign(handle)
                return handle
        except OSError as error:
            os.close(handle)
            if isinstance(error, OutputError):
                raise
            raise OutputError(f"{what}: cannot be claimed ({error.strerror})") from error
        os.close(handle)  # its last owner has just removed it; take the new one


def _lock(handle: int) -> bool | None:
    """Whether the lock was free; None where there are no locks."""
    try:
        if fcntl is not None:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    except BlockingIOError:
        return False
    except OSError as error:
        log.debug("no locks here: %s", error)
    return None


def _owner(handle: int) -> dict[str, Any]:
    try:
        os.lseek(handle, 0, os.SEEK_SET)
        return dict(json.loads(os.read(handle, 4096) or b"{}"))
    except (ValueError, TypeError):
        return {}


def _alive_elsewhere(handle: int, owner: dict[str, Any], *, locks_reach: bool) -> bool:
    """Whether an owner that the lock may not show has renewed the claim lately."""
    if not owner or (locks_reach and owner.get("host") == socket.gethostname()):
        return False
    return time.time() - os.fstat(handle).st_mtime < STALE_SECONDS


def _is_still(handle: int, claim: Path) -> bool:
    """Whether the file that was opened is the one that lies there now."""
    try:
        return os.path.samestat(os.fstat(handle), claim.stat())
    except FileNotFoundError:
        return False


def _sign(handle: int) -> None:
    mark = {"process": os.getpid(), "host": socket.gethostname(), "since": time.time()}
    os.ftruncate(handle, 0)
    os.lseek(handle, 0, os.SEEK_SET)
    os.write(handle, json.dumps(mark).encode())


def _renew(handle: int, ended: threading.Event) -> None:
    while not ended.wait(_RENEW_SECONDS):
        with suppress(OSError):
            os.utime(handle)


def _words(owner: dict[str, Any]) -> str:
    if not {"process", "host", "since"} <= owner.keys():
        return "just started"
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(float(owner["since"])))
    return f"process {owner['process']} on {owner['host']} since {since}"
