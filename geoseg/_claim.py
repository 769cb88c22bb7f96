"""Who is at work on a folder or a file: one run at a time, also across machines where that holds.

A claim is a small file beside what is claimed. Whoever holds it has an exclusive lock on it
(``flock``), which ends with the process, however it ends, so that nothing has to be cleaned up
after a kill. Linux carries that lock to other machines on NFS and most cluster file systems. Where
it does not reach, the file's time says whether its owner is alive: the owner renews it, and a claim
that nobody has renewed for `STALE_SECONDS` is free. Where there is no ``flock``, whoever makes the
file has it, or takes it over when it is abandoned.
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
        target=_renew, args=(claim, ended), name="geoseg-claim", daemon=True
    )
    renewing.start()
    try:
        yield
    finally:
        ended.set()
        renewing.join()
        _release(handle, claim)


def _take(claim: Path, what: Path) -> int:
    while True:
        try:
            handle, made = _open(claim)
        except OSError as error:
            raise OutputError(f"{what}: cannot be written ({error.strerror})") from error
        try:
            locked, owner = _lock(handle), _owner(handle)
            age = time.time() - os.fstat(handle).st_mtime
            elsewhere = owner.get("host", socket.gethostname()) != socket.gethostname()
            if locked is None and not made:
                mine = age >= STALE_SECONDS and _take_over(claim, handle)
            else:  # on this machine the lock would show its owner
                mine = locked is not False and (age >= STALE_SECONDS or not elsewhere)
            if not mine:
                killed = "" if locked is False else f" ({STALE_SECONDS:.0f} s if it was killed)"
                raise OutputError(
                    f"{what}: another run is at work there ({_words(owner)}); wait for it to "
                    f"end{killed}, or give another place"
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


def _open(claim: Path) -> tuple[int, bool]:
    """Open a claim's file; say whether it is new."""
    try:
        return os.open(claim, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644), True
    except FileExistsError:
        return os.open(claim, os.O_RDWR | os.O_CREAT, 0o644), False


def _take_over(claim: Path, handle: int) -> bool:
    """Whether an abandoned claim is this process's now; of several that try at once, one gets it.

    Whoever makes the mark signs the claim while it is there, unless somebody has done so before.
    """
    mark = claim.with_name(f"{claim.name}-taken")
    try:
        os.close(os.open(mark, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o644))
    except FileExistsError:
        with suppress(OSError):
            if time.time() - mark.stat().st_mtime >= STALE_SECONDS:
                mark.unlink()  # its maker was killed right there
        return False
    try:
        if time.time() - os.fstat(handle).st_mtime < STALE_SECONDS:
            return False
        _sign(handle)
        return True
    finally:
        mark.unlink(missing_ok=True)


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
    except (ValueError, TypeError, RecursionError):
        return {}


def _is_still(handle: int, claim: Path) -> bool:
    """Whether the file that was opened is the one that lies there now."""
    try:
        return os.path.samestat(os.fstat(handle), claim.stat())
    except FileNotFoundError:
        return False


def _release(handle: int, claim: Path) -> None:
    mine = False
    with suppress(OSError):
        mine = _is_still(handle, claim)
    if os.name == "nt":
        os.close(handle)  # it removes no file that is open
    if mine:
        with suppress(OSError):
            claim.unlink()
    if os.name != "nt":
        os.close(handle)  # the lock goes after the file, so that nobody takes a removed one


def _sign(handle: int) -> None:
    mark = {"process": os.getpid(), "host": socket.gethostname(), "since": time.time()}
    os.ftruncate(handle, 0)
    os.lseek(handle, 0, os.SEEK_SET)
    os.write(handle, json.dumps(mark).encode())


def _renew(claim: Path, ended: threading.Event) -> None:
    while not ended.wait(_RENEW_SECONDS):
        with suppress(OSError):
            os.utime(claim)


def _words(owner: dict[str, Any]) -> str:
    try:
        since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(float(owner["since"])))
        return f"process {owner['process']} on {owner['host']} since {since}"
    except (KeyError, TypeError, ValueError, OverflowError, OSError):
        return "just started"
