"""The clusters that tests share, each started once for a file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from slurm_cluster import SlurmCluster, missing_programs, slurm_cluster


def _started(tmp_path_factory: pytest.TempPathFactory, *, user_signal: bool) -> Iterator[SlurmCluster]:
    if missing := missing_programs():
        pytest.skip(f"a Slurm on this machine needs {', '.join(missing)}")
    with slurm_cluster(tmp_path_factory.mktemp("slurm") / "c", user_signal=user_signal) as made:
        yield made


@pytest.fixture(scope="module")
def _cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    yield from _started(tmp_path_factory, user_signal=True)


@pytest.fixture(scope="module")
def _plain_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    yield from _started(tmp_path_factory, user_signal=False)


@pytest.fixture
def cluster(_cluster: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> SlurmCluster:
    """A two-node cluster that sends preempted jobs their user signal."""
    monkeypatch.setenv("SLURM_CONF", str(_cluster.config))
    return _cluster


@pytest.fixture
def plain_cluster(_plain_cluster: SlurmCluster, monkeypatch: pytest.MonkeyPatch) -> SlurmCluster:
    """A two-node cluster that sends preempted jobs SIGTERM only, as Slurm does by default."""
    monkeypatch.setenv("SLURM_CONF", str(_plain_cluster.config))
    return _plain_cluster


@pytest.fixture
def tests_on_path(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tests' folder, also on the path of child processes."""
    tests = Path(__file__).parents[1]
    monkeypatch.setenv("PYTHONPATH", str(tests))
    return tests
