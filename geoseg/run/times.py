"""When a run began and ended, as records say it."""

from __future__ import annotations

from datetime import UTC, datetime

from geoseg.io.times import source_date


def now() -> str:
    """Return the time in UTC, ISO 8601 with milliseconds; with ``SOURCE_DATE_EPOCH``, that one."""
    time = source_date() or datetime.now(UTC)
    return time.isoformat(timespec="milliseconds").replace("+00:00", "Z")
