"""Addresses without their secrets: signatures, tokens, users and passwords stay with the user.

GDAL opens a scene by its whole address; what is said and written of it is `shown_address` alone.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, unquote

HIDDEN = "***"
_SCHEMES = "https?|ftp|s3|gs|az|adls?|abfss?|oss|swift|hdfs|webhdfs"
_ADDRESS = re.compile(rf"(?:{_SCHEMES})://[^\s\"'<>|]+")
_LOST_SLASH = re.compile(rf"^((?:{_SCHEMES}|[a-z]+\+[a-z0-9]+):)/(?=[^/])")
"""What `pathlib.Path` leaves of an address."""
_SIGNED = re.compile(r"/vsi(?:curl|s3|gs|az)[a-z_]*\?[^\s\"'<>|]+")
_QUERY = re.compile(r"(?<=[^\s\"'<>?])\?[^\s\"'<>=]+=[^\s\"'<>]*")
"""What GDAL writes behind the last part of an address alone."""
_PASSWORD = re.compile(r"(?i)\b(password|passwd|pwd|user|apikey|token)=('[^']*'|[^\s'\"]+)")
_USER = re.compile(r"^([a-z0-9]+://)[^/?#]*@", re.IGNORECASE)
_ENDING = re.compile(r"[).,:;\]]*$")
_SIGNS = re.compile(
    r"(?i)^(x-(amz|goog|oss|cos|obs)-.*|awsaccesskeyid|googleaccessid|ossaccesskeyid|signature|"
    r"expires|policy|key-pair-id|s[a-z]{1,2}|sk(oid|tid|t|e|s|v)|ske|skt|sdd|saoid|suoid|scid|sig|"
    r".*(token|secret|password|passwd|auth|credential|key|sign).*|pw|pass|pwd|user|exp)$"
)
"""Parameters that say who may read a file and until when, not which file it is."""


def as_given(path: str | Path) -> str:
    """Return a path or an address as text, with the slash that `pathlib.Path` takes away."""
    text = str(path)
    return _LOST_SLASH.sub(r"\1//", text) if isinstance(path, Path) else text


def is_address(path: str | Path) -> bool:
    """Whether GDAL finds what a path names somewhere else than in the file system."""
    text = as_given(path)
    return "://" in text or text.startswith("/vsi")


def shown_address(text: str) -> str:
    """Write a path, an address or a message that holds some without what is secret in them.

    ``https://user:word@host/a.tif?sig=1`` becomes ``https://***@host/a.tif?***``. What is no
    address stays as it is.
    """
    text = _SIGNED.sub(_without_options, text)
    text = _ADDRESS.sub(lambda found: _masked(found[0]), text)
    text = _QUERY.sub(lambda found: _masked(found[0]), text)
    return _PASSWORD.sub(rf"\1={HIDDEN}", text) if text.startswith("PG:") else text


def _without_options(found: re.Match[str]) -> str:
    """``/vsicurl?token=1&url=https%3A…`` as the address in it."""
    kind, _, query = found[0].partition("?")
    inner = dict(parse_qsl(query)).get("url", HIDDEN)
    return f"{kind}/{unquote(inner)}"


def _masked(address: str) -> str:
    ending = _ENDING.search(address)
    assert ending is not None
    body = address[: ending.start()]
    place, query, _ = body.partition("?")
    place, fragment, _ = place.partition("#")
    place = _USER.sub(rf"\g<1>{HIDDEN}@", place)
    return place + (f"?{HIDDEN}" if query or fragment else "") + ending[0]


def holds_secret(text: str) -> bool:
    """Whether a path or an address says something that is not to be shown."""
    return shown_address(text) != text


def scene_name(path: str) -> str:
    """Last part of a path or an address, without what follows the file's name."""
    plain = shown_address(path).removesuffix(f"?{HIDDEN}")
    return plain.rstrip("/\\").replace("\\", "/").rsplit("/", 1)[-1] or plain


def lasting_address(path: str) -> str:
    """Identity of an address that stays when it is signed anew; it shows no secret.

    Users, passwords and the parameters that sign it are left out; others, which may say which file
    is meant, count as a digest.
    """
    if not holds_secret(path):
        return path
    plain = shown_address(path).replace(f"{HIDDEN}@", "").removesuffix(f"?{HIDDEN}")
    query = parse_qsl(path.partition("?")[2].partition("#")[0], keep_blank_values=True)
    kept = sorted((key, value) for key, value in query if not _SIGNS.match(key) and key != "url")
    return f"{plain}?{hashlib.sha256(repr(kept).encode()).hexdigest()}" if kept else plain


def without_secrets(value: Any) -> Any:
    """Return a JSON-able value with every text in it as `shown_address` writes it."""
    if isinstance(value, str):
        return shown_address(value)
    if isinstance(value, Mapping):
        return {without_secrets(key): without_secrets(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_secrets(item) for item in value]
    return value
