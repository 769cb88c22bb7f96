"""GDAL's block cache: a share of the machine's memory by default, which fills with the scene."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from geoseg.runtime.setting import Setting

_MOST_BYTES = 64 * 2**20
_OPTION = "GDAL_CACHEMAX"


def _read() -> int:
    from rasterio.env import get_gdal_config

    return int(get_gdal_config(_OPTION))


def _write(size_bytes: int) -> None:
    from rasterio.env import set_gdal_config

    set_gdal_config(_OPTION, size_bytes)


_cache = Setting(_read, _write)


@contextmanager
def bounded_cache() -> Iterator[None]:
    """Bound the cache while this is open: memory depends on tiles only.

    What the user has chosen, in the environment or as less than that, stays.
    """
    if _OPTION in os.environ:
        yield
        return
    with _cache.changed_to(min(_cache.usual(), _MOST_BYTES)):
        yield
