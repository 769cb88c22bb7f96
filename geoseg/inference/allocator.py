"""When freed memory goes back to the system: three settings of glibc's malloc.

While windows run, the same megabytes come and go with every one of them, and glibc would hand them
to the system and back page by page; in a Dask worker, which is started with
``MALLOC_TRIM_THRESHOLD_=65536``, nearly all of them. Measured on a small model: 59 ms a window
instead of 67, in a worker instead of 100. The stages after that each need other memory, and their
peaks would add up: 180 MB after the polygons of a scene of 85 million pixels.

Nothing happens with another C library.
"""

from __future__ import annotations

import ctypes
from contextlib import suppress

# <malloc.h>
_TRIM_THRESHOLD, _MMAP_THRESHOLD, _ARENA_MAX = -1, -3, -8


def keep_freed_memory() -> None:
    """Let this process keep up to 256 MiB of what it frees, because it is wanted back soon.

    Threads that start from now on get no store of their own: each would keep the most that its
    thread ever held.
    """
    _set({_TRIM_THRESHOLD: 2**28, _MMAP_THRESHOLD: 2**25, _ARENA_MAX: 1})


def give_back_memory() -> None:
    """Hand what is free to the system, and from now on what is freed."""
    _set({_TRIM_THRESHOLD: 2**17, _MMAP_THRESHOLD: 2**17, _ARENA_MAX: 0})
    _trim()


def settle_memory() -> None:
    """Leave the process as it would be without geoseg; call it when a run has ended.

    glibc raises its thresholds by itself where large arrays come and go, but never again once they
    were set. These are what it would have come to. With those of `give_back_memory` PyTorch's
    products after a run would take nearly twice as long.
    """
    _set({_TRIM_THRESHOLD: 2**26, _MMAP_THRESHOLD: 2**25, _ARENA_MAX: 0})
    _trim()


def _trim() -> None:
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def _set(settings: dict[int, int]) -> None:
    with suppress(OSError, AttributeError, TypeError):
        libc = ctypes.CDLL(None)
        for name, value in settings.items():
            libc.mallopt(name, value)
