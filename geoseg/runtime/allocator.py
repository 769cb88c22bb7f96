"""When freed memory goes back to the system: three settings of glibc's malloc.

While windows run, the same megabytes come and go with every one of them, and glibc would hand them
to the system and back page by page; in a Dask worker, which is started with
``MALLOC_TRIM_THRESHOLD_=65536``, nearly all of them. Measured on a small model: 59 ms a window
instead of 67, in a worker instead of 100. The logits of windows with many words are larger than
what glibc keeps by its own rule, and would come as new pages each time. The stages after that each
need other memory, and their peaks would add up: 180 MB after the polygons of a scene of 85 million
pixels.

glibc tells nobody what its settings are, so they cannot be put back; they are only made where the
process is geoseg's own. Nothing happens with another C library.
"""

from __future__ import annotations

import ctypes
import multiprocessing
from collections.abc import Iterator
from contextlib import contextmanager, suppress

# As in <malloc.h>. The two thresholds are in bytes; 0 arenas are as many as glibc likes.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
_KIB, _MIB = 2**10, 2**20
_KEEPING = {_M_TRIM_THRESHOLD: 2**30, _M_MMAP_THRESHOLD: 2**30, _M_ARENA_MAX: 1}
_GIVING = {_M_TRIM_THRESHOLD: 128 * _KIB, _M_MMAP_THRESHOLD: 128 * _KIB, _M_ARENA_MAX: 0}
_AS_IF_LEFT_ALONE = {_M_TRIM_THRESHOLD: 64 * _MIB, _M_MMAP_THRESHOLD: 32 * _MIB, _M_ARENA_MAX: 0}

_ours = False


@contextmanager
def own_process() -> Iterator[None]:
    """Say that this process is here for geoseg alone; the command line does so.

    At the end it is left as it would be without geoseg. glibc raises its thresholds by itself
    where large arrays come and go, but never again once they were set; these are what it would
    have come to.
    """
    global _ours
    before, _ours = _ours, True
    try:
        yield
    finally:
        _ours = before
        if not before:
            _set(_AS_IF_LEFT_ALONE)
            _trim()


def is_own_process() -> bool:
    """Whether this process is here for geoseg alone."""
    return _ours


@contextmanager
def kept_memory() -> Iterator[None]:
    """Keep freed memory while windows run, if the process is geoseg's own."""
    keep_freed_memory()
    try:
        yield
    finally:
        give_back_memory()


def keep_freed_memory() -> None:
    """Let a process that only runs windows keep what it frees, up to 1 GiB.

    Threads that start from now on get no store of their own: each would keep the most that its
    thread ever held. Nothing happens in a process that is neither geoseg's own nor a child, as
    Dask's workers are: they may also be threads of somebody's notebook.
    """
    if _ours or multiprocessing.parent_process() is not None:
        _set(_KEEPING)


def give_back_memory() -> None:
    """Hand what is free to the system, and in a process of geoseg's own what is freed from now."""
    if _ours:
        _set(_GIVING)
    _trim()


def _trim() -> None:
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def _set(settings: dict[int, int]) -> None:
    with suppress(OSError, AttributeError, TypeError):
        libc = ctypes.CDLL(None)
        for name, value in settings.items():
            libc.mallopt(name, value)
