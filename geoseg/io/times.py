"""When was a scene taken, by what its file says?"""

from __future__ import annotations

import os
from datetime import UTC, datetime
from typing import Any

from geoseg.errors import OptionError

TIFF_TIME = "TIFFTAG_DATETIME"
_FORMAT = "%Y:%m:%d %H:%M:%S"
_TAGS = (
    ("IMAGERY", "ACQUISITIONDATETIME"),
    (None, "EXIF_DateTimeOriginal"),
    (None, "DATATAKE_1_DATATAKE_SENSING_START"),
    (None, "PRODUCT_START_TIME"),
    (None, TIFF_TIME),
)
"""Domain and name of the tags that say it; the last may as well be when the file was written."""


def time_taken(dataset: Any) -> datetime | None:
    """When the scene of an open raster was taken, in UTC where its file has a zone."""
    told = (read_time(dataset.tags(ns=domain).get(name, "")) for domain, name in _TAGS)
    return next((time for time in told if time is not None), None)


def read_time(text: str) -> datetime | None:
    """Read ``2019:09:04 10:11:12``, as TIFF and EXIF have it, or ISO 8601; None for no time."""
    try:
        return datetime.strptime(text.strip(), _FORMAT)
    except ValueError:
        pass
    try:
        time = datetime.fromisoformat(text.strip())
    except ValueError:
        return None
    return time if time.tzinfo is None else time.astimezone(UTC).replace(tzinfo=None)


def source_date() -> datetime | None:
    """When files shall say that they were made: ``SOURCE_DATE_EPOCH``, else None for the clock.

    With it the same input makes the same bytes, see reproducible-builds.org.

    Raises
    ------
    OptionError
        If it is not a whole number of seconds since 1970.
    """
    told = os.environ.get("SOURCE_DATE_EPOCH", "")
    if not told:
        return None
    try:
        return datetime.fromtimestamp(int(told), UTC)
    except (ValueError, OverflowError, OSError):
        raise OptionError(
            f"SOURCE_DATE_EPOCH is '{told}'; give whole seconds since 1970, or unset it"
        ) from None


def as_tiff_time(time: datetime) -> str:
    """Write a time as the TIFF tag has it."""
    return time.strftime(_FORMAT)
