"""CPUs are those that a process may use, in a container too."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from geoseg.errors import OptionError
from geoseg.runtime import cpus
from geoseg.runtime.threads import use_threads


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Control groups of a process in ``/jobs/mine`` on a machine of eight CPUs."""
    monkeypatch.setattr(cpus, "_GROUPS", tmp_path)
    monkeypatch.setattr(cpus, "_OWN", tmp_path / "own")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)), raising=False)
    (tmp_path / "own").write_text("0::/jobs/mine\n")
    (tmp_path / "jobs" / "mine").mkdir(parents=True)
    return tmp_path


@pytest.mark.parametrize(
    ("limits", "count"),
    [
        ({}, 8),
        ({"cpu.max": "max 100000"}, 8),
        ({"jobs/mine/cpu.max": "150000 100000"}, 2),
        ({"jobs/cpu.max": "300000 100000", "jobs/mine/cpu.max": "max 100000"}, 3),
        ({"cpu.max": "50000 100000"}, 1),
        ({"cpu.max": "nonsense"}, 8),
        ({"cpu.max": "1600000 100000"}, 8),
    ],
)
def test_control_groups_bound_the_cpus(groups: Path, limits: dict[str, str], count: int) -> None:
    for name, text in limits.items():
        (groups / name).write_text(f"{text}\n")
    assert cpus.available_cpus() == count


def test_control_groups_of_the_first_version(groups: Path) -> None:
    (groups / "own").write_text("3:cpu,cpuacct:/jobs\n2:memory:/jobs\n")
    (groups / "cpu" / "jobs").mkdir(parents=True)
    (groups / "cpu" / "jobs" / "cpu.cfs_period_us").write_text("100000\n")
    for quota, count in ((-1, 8), (400000, 4)):
        (groups / "cpu" / "jobs" / "cpu.cfs_quota_us").write_text(f"{quota}\n")
        assert cpus.available_cpus() == count


def test_where_there_are_no_control_groups_affinity_counts(
    groups: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (groups / "own").unlink()
    assert cpus.available_cpus() == 8
    monkeypatch.delattr(os, "sched_getaffinity")
    assert cpus.available_cpus() == (os.cpu_count() or 1)


def test_threads_are_those_that_were_asked_for(
    groups: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = torch.get_num_threads()
    try:
        use_threads(3)
        assert torch.get_num_threads() == 3
        monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
        (groups / "cpu.max").write_text("200000 100000\n")
        use_threads(None)
        assert torch.get_num_threads() == 2
        monkeypatch.setenv("OMP_NUM_THREADS", "5")
        (groups / "cpu.max").write_text("100000 100000\n")
        use_threads(None)  # whoever has set it is believed
        assert torch.get_num_threads() == 2
        with pytest.raises(OptionError, match="--threads is 0"):
            use_threads(0)
    finally:
        torch.set_num_threads(before)
