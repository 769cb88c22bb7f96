"""What every benchmark needs: the machine, a table, a file with the figures."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"

_PACKAGES = (
    *("geoseg", "torch", "open_clip_torch", "numpy", "rasterio", "dask", "distributed"),
    *("monai", "terratorch", "torchgeo"),
)


def machine() -> dict[str, Any]:
    """Describe the machine and the versions: what a figure must be read with."""
    facts: dict[str, Any] = {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: found for name in _PACKAGES if (found := _version(name))},
    }
    gpu = _gpu_name()
    return facts | ({"gpu": gpu} if gpu else {})


def save(name: str, rows: Sequence[Mapping[str, Any]], **facts: Any) -> Path:
    """Write figures with machine and versions to ``results/NAME.json``; return the path."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    content = {
        "benchmark": name,
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "arguments": [Path(one).name if Path(one).is_absolute() else one for one in sys.argv[1:]],
        "machine": machine(),
        **facts,
        "rows": [dict(row) for row in rows],
    }
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    return path


def table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print rows as a small table; the keys of the first are its columns."""
    from rich.console import Console
    from rich.table import Table

    out = Table(box=None, pad_edge=False)
    for name, value in rows[0].items():
        out.add_column(name, justify="left" if isinstance(value, str) else "right")
    for row in rows:
        out.add_row(*(_text(row.get(name)) for name in rows[0]))
    Console().print(out)


def parser(description: str | None) -> argparse.ArgumentParser:
    """Argument parser with the options that all benchmarks have."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--quick", action="store_true", help="a small case, to see that it runs")
    made.add_argument("--no-save", action="store_true", help="print only")
    return made


def peak_memory_mib(pid: int) -> float:
    """Largest resident memory a process has had so far, in MiB (Linux only)."""
    for line in Path(f"/proc/{pid}/status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise OSError(f"process {pid} tells no peak memory")


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 100 else f"{value:,.0f}"
    return "-" if value is None else str(value)


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def _gpu_name() -> str | None:
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, check=True)
        return found.stdout.splitlines()[0]
    except (OSError, subprocess.CalledProcessError, IndexError):
        return None
