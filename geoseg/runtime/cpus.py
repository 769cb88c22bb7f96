"""How many CPUs this process may use: those of its affinity, no more than its control group has."""

from __future__ import annotations

import math
import os
from contextlib import suppress
from pathlib import Path

_GROUPS = Path("/sys/fs/cgroup")
_OWN = Path("/proc/self/cgroup")


def available_cpus() -> int:
    """Return the number of CPUs, at least 1; a container often has fewer than its machine."""
    try:
        count = len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS and Windows
        count = os.cpu_count() or 1
    return max(1, min([count, *map(math.ceil, _quotas())]))


def _quotas() -> list[float]:
    """CPUs that the control groups of this process grant, of both versions."""
    found = []
    with suppress(OSError):
        for line in _OWN.read_text().splitlines():
            _, kinds, path = line.split(":", 2)
            root = _GROUPS if not kinds else _GROUPS / "cpu"
            if kinds and "cpu" not in kinds.split(","):
                continue
            place = root / path.lstrip("/")
            for folder in (place, *place.parents):
                if folder == root or root in folder.parents:
                    found.append(_quota(folder))
    return [share for share in found if share is not None]


def _quota(folder: Path) -> float | None:
    with suppress(OSError, ValueError, ZeroDivisionError):
        if (file := folder / "cpu.max").exists():
            most, period = file.read_text().split()
            return None if most == "max" else int(most) / int(period)
        quota = int((folder / "cpu.cfs_quota_us").read_text())
        return quota / int((folder / "cpu.cfs_period_us").read_text()) if quota > 0 else None
    return None
