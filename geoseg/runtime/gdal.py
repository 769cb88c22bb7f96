"""GDAL's block cache: a share of the machine's memory by default, which fills with the scene."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from geoseg.runtime.setting import Setting

_CACHE_BYTES = 64 * 2**20
_CACHE = "GDAL_CACHEMAX"


def _read() -> int:
    from rasterio.env import get_gdal_config

    return int(get_gdal_config(_CACHE))


def _write(size: int) -> None:
    from rasterio.env import set_gdal_config

    set_gdal_config(_CACHE, size)


_cache = Setting(_read, _write)


@contextmanager
def bounded_cache() -> Iterator[None]:
    """Bound the cache while this is open, unless the user has: memory depends on tiles only."""
    if _CACHE in os.environ:
        yield
        return
    with _cache.changed_to(_CACHE_BYTES):
        yield
