"""Files at addresses that GDAL has no part in: class files, marks of scenes, results.

``http://`` and ``https://`` need nothing more than Python, object stores (``s3://``, ``gs://``,
``az://``) what fsspec calls their file systems, which are extras.
"""

from __future__ import annotations

import base64
import os
import urllib.error
import urllib.request
from http.client import HTTPResponse
from typing import Any
from urllib.parse import unquote

from geoseg._address import shown_address
from geoseg.errors import GeosegError, MissingExtraError

ANSWER_SECONDS = 10
_STORES = {"/vsis3/": "s3://", "/vsigs/": "gs://", "/vsiaz/": "az://", "/vsiadls/": "abfs://"}
_HTTP = ("/vsicurl/", "/vsicurl_streaming/")


def http_address(path: str) -> str | None:
    """HTTP address that a path names, or None."""
    for prefix in _HTTP:
        path = path.removeprefix(prefix)
    return path if path.startswith(("http://", "https://")) else None


def remote_address(path: str) -> str | None:
    """Address that a path names, of a web server or in an object store, or None."""
    for prefix, scheme in _STORES.items():
        path = path.replace(prefix, scheme, 1) if path.startswith(prefix) else path
    return path if path.startswith(tuple(_STORES.values())) else http_address(path)


def ask(address: str, method: str = "GET", headers: dict[str, str] | None = None) -> HTTPResponse:
    """Ask a server for a file; a user and password in the address are sent as HTTP wants them."""
    headers = dict(headers or {})
    scheme, _, rest = address.partition("://")
    place, slash, path = rest.partition("/")
    user, at, host = place.rpartition("@")
    if at:
        token = base64.b64encode(unquote(user).encode()).decode()
        headers["Authorization"] = f"Basic {token}"
    request = urllib.request.Request(
        f"{scheme}://{host}{slash}{path}", method=method, headers=headers
    )
    answer: HTTPResponse = urllib.request.urlopen(request, timeout=ANSWER_SECONDS)
    return answer


def read_at_most(address: str, what: str, error: type[GeosegError], most_bytes: int) -> bytes:
    """Return the bytes of a small file at an address; see `geoseg._inputs.read_at_most`.

    Raises
    ------
    GeosegError
        Of the class ``error``, if it cannot be read or is larger.
    MissingExtraError
        If the package that reads from such a store is not installed.
    """
    shown = shown_address(address)
    try:
        if (http := http_address(address)) is not None:
            with ask(http) as answer:
                data = answer.read(most_bytes + 1)
        else:
            files, path = store(address, f"a {what}")
            with files.open(path, "rb") as file:
                data = file.read(most_bytes + 1)
    except GeosegError:
        raise
    except urllib.error.HTTPError as problem:
        words = f"the server answers {problem.code} ({problem.reason})"
        raise error(f"{what} {shown} cannot be read: {words}") from problem
    except Exception as problem:  # every store has errors of its own
        reason = getattr(problem, "reason", problem)
        words = getattr(reason, "strerror", None) or str(reason) or type(problem).__name__
        raise error(f"{what} {shown} cannot be read: {shown_address(words)}") from problem
    if len(data) > most_bytes:
        limit = f"{most_bytes / 2**20:g} MiB"
        raise error(f"{what} {shown} is larger than {limit}, the most that one may have")
    return bytes(data)


def store(address: str, what: str) -> tuple[Any, str]:
    """Return the object store that an address lies in, and what it calls the address.

    Parameters
    ----------
    address
        ``s3://…``, ``/vsis3/…`` or what else fsspec knows.
    what
        What is to be read or written, for messages.

    Raises
    ------
    GeosegError
        If there is no such store.
    MissingExtraError
        If its package is not installed.
    """
    import fsspec

    address = remote_address(address) or address
    kind = address.partition("://")[0]
    if address.startswith("/vsi") or kind in ("http", "https", "ftp"):
        raise GeosegError(
            f"{shown_address(address)}: {what} cannot be there; give a local path or one of an "
            "object store (s3://, gs://, az://)"
        )
    try:
        files = fsspec.filesystem(kind, **(_s3_settings() if kind in ("s3", "s3a") else {}))
    except ImportError:
        raise MissingExtraError(
            f"{shown_address(address)}: needs the package that reaches {kind}://: "
            f'pip install "geoseg[stores]"'
        ) from None
    except ValueError:
        words = f"{shown_address(address)}: {kind}:// is no store that is known"
        raise GeosegError(words) from None
    return files, address


def _s3_settings() -> dict[str, Any]:
    """What GDAL's own settings of S3 are called elsewhere."""
    settings: dict[str, Any] = {}
    if endpoint := os.environ.get("AWS_S3_ENDPOINT"):
        secure = os.environ.get("AWS_HTTPS", "YES").upper() in ("YES", "TRUE", "ON", "1")
        settings["endpoint_url"] = f"{'https' if secure else 'http'}://{endpoint}"
    if os.environ.get("AWS_NO_SIGN_REQUEST", "").upper() in ("YES", "TRUE", "ON", "1"):
        settings["anon"] = True
    return settings
