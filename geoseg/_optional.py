"""Optional packages: found without importing them, missed with one clear line."""

from __future__ import annotations

import importlib.util

from geoseg.errors import MissingExtraError


def require(package: str, *, extra: str, feature: str) -> None:
    """Raise if an optional package is not installed.

    Parameters
    ----------
    package
        Import name.
    extra
        geoseg's extra that brings it.
    feature
        What the user asked for, for the message.

    Raises
    ------
    MissingExtraError
        With the ``pip install`` line that helps.
    """
    if importlib.util.find_spec(package) is None:
        raise MissingExtraError(
            f'{feature} needs the package {package}: pip install "geoseg[{extra}]"'
        )
