"""Faults on purpose: nothing is lost or silently wrong, and the harness sees what is."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="needs fork, /proc and Linux's signals"),
]
_ROOT = Path(__file__).resolve().parents[1]
# Runs that begin where another one has been leave out a tile, and nothing of geoseg can know.
_DROPS_A_TILE = """
import geoseg.pipeline.many
from geoseg.run.tiles import TileJob
usual_run, usual_job = geoseg.pipeline.many.segment_to_files, TileJob.run
def segment_to_files(*args, **given):
    if given.get("resume") or given.get("overwrite"):
        TileJob.run = lambda job, indices, *more: (
            (index, None if index > 10 else found)
            for index, found in usual_job(job, indices, *more)
        )
    return usual_run(*args, **given)
geoseg.pipeline.many.segment_to_files = segment_to_files
"""
_NEVER_GOES_ON = """
import geoseg.pipeline.many
from geoseg.errors import GeosegError
usual_run = geoseg.pipeline.many.segment_to_files
def segment_to_files(*args, **given):
    if given.get("resume") or given.get("overwrite"):
        raise GeosegError("no")
    return usual_run(*args, **given)
geoseg.pipeline.many.segment_to_files = segment_to_files
"""
_NO_CLAIMS = """
import contextlib
import geoseg.run.folder
geoseg.run.folder.claimed = lambda *args: contextlib.nullcontext()
"""


def faults(result: Path, *arguments: str, mistake: str = "") -> tuple[int, dict[str, Any]]:
    """Run the harness in a process of its own; return exit status and what it wrote."""
    code = f"{mistake}\nimport sys\nfrom tools.faults.run import main\nsys.exit(main())"
    threads = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
    done = subprocess.run(
        [sys.executable, "-c", code, "--short", *arguments, "--json", str(result)],
        cwd=_ROOT, env={**os.environ, **threads}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    print(done.stdout, done.stderr)
    return done.returncode, json.loads(result.read_text())


def total(written: dict[str, Any], name: str) -> int:
    return sum(row[name] for row in written["rows"])


def test_short_form_loses_nothing(tmp_path: Path) -> None:
    status, written = faults(tmp_path / "faults.json")
    assert status == 0
    assert not written["failures"]
    assert total(written, "survived") == total(written, "tries") > 25


@pytest.mark.parametrize(
    ("mistake", "kind", "outcomes"),
    [
        pytest.param(_DROPS_A_TILE, "damages", {"wrong"}, id="a-tile-dropped"),
        pytest.param(_NEVER_GOES_ON, "damages", {"lost"}, id="no-way-on"),
        pytest.param(_NO_CLAIMS, "pairs", {"lost", "wrong"}, id="no-claims"),
    ],
)
def test_mistakes_are_seen(tmp_path: Path, mistake: str, kind: str, outcomes: set[str]) -> None:
    status, written = faults(tmp_path / "faults.json", "--only", kind, mistake=mistake)
    assert status == 1
    assert sum(total(written, outcome) for outcome in outcomes) > 0
    assert outcomes & {failure["outcome"] for failure in written["failures"]}
