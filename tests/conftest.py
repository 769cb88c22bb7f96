"""Fixtures and settings that every test shares."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from typer.testing import CliRunner

from geoseg.errors import on_command_line

# Two threads, as on a small machine: torch reads this when it is first imported.
os.environ.setdefault("OMP_NUM_THREADS", "2")

settings.register_profile(
    "local", deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
settings.register_profile("ci", settings.get_profile("local"), derandomize=True, database=None)
settings.load_profile("ci" if os.environ.get("CI") else "local")

_SHARED = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of reference data beside the checkout; the test is skipped where it is absent."""
    if not _SHARED.is_dir():
        pytest.skip("reference data not present")
    return _SHARED


@pytest.fixture
def runner() -> CliRunner:
    return CliRunner()


@pytest.fixture(autouse=True)
def names_of_options() -> Iterator[None]:
    """Messages call options what the command line does, in every test that says nothing else."""
    with on_command_line():
        yield


@pytest.fixture
def in_python() -> Iterator[None]:
    """Messages call options what Python does."""
    with on_command_line(False):
        yield


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep every test out of the user's cache and out of the other tests' caches."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("GEOSEG_CACHE", str(folder))
    return folder
