"""Fixtures and settings that every test shares."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from typer.testing import CliRunner

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
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Keep every test out of the user's cache and out of the other tests' caches."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("GEOSEG_CACHE", str(folder))
    return folder
