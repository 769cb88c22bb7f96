"""When freed memory goes back to the system: two settings of glibc's malloc.

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
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> None:
    """Let this process keep up to 256 MiB of what it frees, because it is wanted back soon."""
    _set(2**28, 2**25)


def give_back_memory() -> None:
    """Hand what is free to the system, and from now on what is freed."""
    _set(2**17, 2**17)
    with suppress(OSError, AttributeError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def _set(trim_threshold: int, mmap_threshold: int) -> None:
    with suppress(OSError, AttributeError, TypeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_TRIM_THRESHOLD, trim_threshold)
        libc.mallopt(_MMAP_THRESHOLD, mmap_threshold)
