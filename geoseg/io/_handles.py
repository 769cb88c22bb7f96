"""Open raster datasets, one per thread and file, so that values that name a file can be shared."""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any

import rasterio
from rasterio._path import _parse_path, _vsi_path
from rasterio.errors import NotGeoreferencedWarning

from geoseg.runtime.gdal import http_settings, is_remote, mask_logs, masked_errors
from geoseg.runtime.libraries import without_warnings

_KEPT_PER_THREAD = 8
_local = threading.local()


def open_dataset(path: str, mode: str = "r", **profile: Any) -> Any:
    """Open with rasterio, without its warning about files that have no transform.

    geoseg says that itself, once and in its own words. An address is asked again when its server
    is busy, and neither logs nor errors show its secrets.
    """
    mask_logs(path)
    with without_warnings(NotGeoreferencedWarning), masked_errors():
        if not is_remote(path):
            return rasterio.open(path, mode, **profile)
        with rasterio.Env(**http_settings(path)):
            return rasterio.open(path, mode, **profile)


def gdal_name(path: str) -> str:
    """Return what GDAL itself calls a path or an address, which is ``/vsis3/…`` for ``s3://…``."""
    return str(_vsi_path(_parse_path(path)))


def shared_handle(key: Hashable, opener: Callable[[], Any]) -> Any:
    """Return this thread's open dataset for ``key``; opened on first use, the oldest closed.

    GDAL datasets must not be used by two threads, nor survive a fork.
    """
    handles: OrderedDict[Hashable, Any] | None = getattr(_local, "handles", None)
    if handles is None or _local.pid != os.getpid():
        handles = _local.handles = OrderedDict()
        _local.pid = os.getpid()
    if key in handles:
        handles.move_to_end(key)
        return handles[key]
    while len(handles) >= _KEPT_PER_THREAD:
        handles.popitem(last=False)[1].close()
    handle = handles[key] = opener()
    return handle


def close_handle(key: Hashable) -> None:
    """Close this thread's dataset for ``key``, if it is open."""
    handles: OrderedDict[Hashable, Any] | None = getattr(_local, "handles", None)
    if handles is not None and key in handles:
        handles.pop(key).close()
