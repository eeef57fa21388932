"""One cluster for all tests that need it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from slurm_cluster import SlurmCluster, missing_programs, slurm_cluster


def _cluster(tmp_path_factory: pytest.TempPathFactory, *, user_signal: bool) -> Iterator[SlurmCluster]:
    if missing := missing_programs():
        pytest.skip(f"a Slurm on this machine needs {', '.join(missing)}")
    folder = tmp_path_factory.mktemp("slurm") / "c"
    with pytest.MonkeyPatch.context() as patch, slurm_cluster(folder, user_signal=user_signal) as made:
        patch.setenv("SLURM_CONF", str(made.config))
        yield made


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    """A two-node cluster that sends preempted jobs their user signal."""
    yield from _cluster(tmp_path_factory, user_signal=True)


@pytest.fixture(scope="module")
def plain_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SlurmCluster]:
    """A two-node cluster that sends preempted jobs SIGTERM only, as Slurm does by default."""
    yield from _cluster(tmp_path_factory, user_signal=False)


@pytest.fixture
def tests_on_path(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tests' folder, also on the path of child processes."""
    tests = Path(__file__).parents[1]
    monkeypatch.setenv("PYTHONPATH", str(tests))
    return tests
