"""GDAL's block cache, how it asks servers, and what its logs and errors say of addresses.

The cache is a share of the machine's memory by default, which fills with the scene.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager

from geoseg._address import holds_secret, shown_address, without_secrets
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


_HTTP = {
    "GDAL_HTTP_MAX_RETRY": "3",
    "GDAL_HTTP_RETRY_DELAY": "1",
    "GDAL_HTTP_CONNECTTIMEOUT": "30",
    "GDAL_HTTP_LOW_SPEED_TIME": "60",
    "GDAL_HTTP_LOW_SPEED_LIMIT": "1",
}
_READDIR = "GDAL_DISABLE_READDIR_ON_OPEN"
_WITH_QUERY = {_READDIR: "EMPTY_DIR", "CPL_VSIL_CURL_USE_HEAD": "NO"}
_WITHOUT_QUERY = {_READDIR: "TRUE"}


def is_remote(path: str) -> bool:
    """Whether GDAL reads a path from a server."""
    return "://" in path or path.startswith(("/vsicurl", "/vsis3", "/vsigs", "/vsiaz"))


def http_settings(path: str) -> dict[str, str]:
    """Settings of GDAL for an address: those that the user has not made.

    A busy server is asked again and a silent one is not waited for without end. No server is asked
    for a list of its files; masks and overviews beside a scene are looked for by name, which
    cannot be where the address has a query. Such a one may be signed for reading alone.
    """
    from rasterio.env import getenv, hasenv

    wanted = _HTTP | (_WITH_QUERY if "?" in path else _WITHOUT_QUERY)
    chosen = {name.upper() for name in (getenv() if hasenv() else ())} | os.environ.keys()
    return {name: value for name, value in wanted.items() if name not in chosen}


class _Masked(logging.Filter):
    """Takes secrets out of records; lets all of them pass."""

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        if holds_secret(message):
            record.msg, record.args = shown_address(message), None
        return True


_MASKED = _Masked()
_LOGGERS = tuple(
    logging.getLogger(name)
    for name in (
        "rasterio", "rasterio._base", "rasterio._env", "rasterio._err", "rasterio._filepath",
        "rasterio._io", "rasterio._path", "rasterio._warp", "rasterio.env", "rasterio.session",
        "pyogrio", "pyogrio._env", "pyogrio._io", "pyogrio._ogr",
    )
)  # fmt: skip
"""Those through which rasterio and pyogrio pass on what GDAL says."""


def mask_logs(path: str) -> None:
    """Let what GDAL logs hold no secret from now on, if this path holds one."""
    if holds_secret(path):
        for logger in _LOGGERS:
            logger.addFilter(_MASKED)  # once, however often it is added


@contextmanager
def masked_errors() -> Iterator[None]:
    """Take secrets out of the errors that a library raises, and out of their causes."""
    try:
        yield
    except Exception as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(words := getattr(cause, "errmsg", None), str):
                cause.errmsg = shown_address(words)  # type: ignore[attr-defined]
            else:
                cause.args = tuple(without_secrets(cause.args))
            cause = cause.__cause__ or cause.__context__
        raise
