"""A rank is killed, stopped or hangs: the other rank ends in time and names it, and the run can resume."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rank_starts import begin_ranks, start_ranks, write_config
from time_limits import START_S

from reptrain.auditing.audit import audit
from reptrain.config import RunConfig
from reptrain.runs import RunFolder
from reptrain.training.loop import train

# Of two ranks that start at once on a loaded machine one may be this much later. A killed rank is noticed in
# six beats whatever it is.
TIMEOUT_S = 30
pytestmark = [pytest.mark.ranks, pytest.mark.timeout(2 * START_S + 8 * TIMEOUT_S)]


class Ranks:
    """Two ranks without a launcher, which would end all ranks itself."""

    def __init__(self, config: RunConfig, folder: Path) -> None:
        write_config(folder, config)
        self.run = folder / "run"
        command = ["-m", "reptrain", "train", str(folder / "config.yaml"), "--out", str(self.run)]
        self.processes = begin_ranks(2, command, folder)

    def wait_for_step(self, step: int) -> None:
        deadline = time.monotonic() + START_S
        while RunFolder(self.run).ledger.end() < step:
            assert time.monotonic() < deadline and all(p.poll() is None for p in self.processes)
            time.sleep(0.05)

    def end(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait()


@pytest.fixture
def start(tiny: Callable[..., RunConfig], tmp_path: Path) -> Iterator[Callable[..., Ranks]]:
    started: list[Ranks] = []

    def begin(*overrides: str) -> Ranks:
        config = tiny(
            *(f"train.rank_timeout_seconds={TIMEOUT_S}", "evaluate.max_windows=1"),
            *("evaluate.every_fraction=1", *overrides),
        )
        started.append(Ranks(config, tmp_path))
        return started[-1]

    yield begin
    for ranks in started:
        ranks.end()


LONG = ["train.total_tokens=20epochs", "checkpoint.every_fraction=0.02"]


@pytest.mark.parametrize(
    ("lost", "how"),
    [
        (1, signal.SIGKILL),
        pytest.param(0, signal.SIGKILL, marks=pytest.mark.slow),
        pytest.param(1, signal.SIGSTOP, marks=pytest.mark.slow),
        pytest.param(0, signal.SIGSTOP, marks=pytest.mark.slow),
    ],
)
def test_lost_rank_is_named_in_time(
    start: Callable[..., Ranks], tmp_path: Path, lost: int, how: signal.Signals
) -> None:
    ranks = start(*LONG)
    ranks.wait_for_step(15)
    ranks.processes[lost].send_signal(how)
    other = ranks.processes[1 - lost]
    assert other.wait(timeout=4 * TIMEOUT_S) == 2
    assert f"rank {lost}: must make progress within" in (tmp_path / f"rank-{1 - lost}.txt").read_text()
    status = RunFolder.open(ranks.run).status()
    assert status.state == "failed" and f"rank {lost}: must make progress" in str(status.reason)
    ranks.end()
    partial = audit(ranks.run)
    assert partial.exact and not partial.complete, partial.text()
    # One rank resumes the run.
    assert train(RunFolder.open(ranks.run).config, ranks.run).state == "done"
    report = audit(ranks.run)
    assert report.exact and report.complete, report.text()


def test_rank_that_does_not_join_is_named(tiny: Callable[..., RunConfig], tmp_path: Path) -> None:
    write_config(tmp_path, tiny("train.rank_timeout_seconds=2"))
    command = ["-m", "reptrain", "train", str(tmp_path / "config.yaml"), "--out", str(tmp_path / "run")]
    # Start only the first of three ranks.
    (alone,) = begin_ranks(3, command, tmp_path, started_ranks=[0])
    assert alone.wait(timeout=START_S) == 2
    said = (tmp_path / "rank-0.txt").read_text()
    assert "error: ranks 1, 2: must join within 2 seconds, but got 1 of 3." in said
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_rank_that_hangs_is_named(tiny: Callable[..., RunConfig], tmp_path: Path) -> None:
    write_config(tmp_path, tiny(f"train.rank_timeout_seconds={TIMEOUT_S}"))
    said = start_ranks(2, tmp_path, {"run": {"overrides": [], "hang": [1, 4]}}, fails=True)
    assert "rank 1: must make progress" in said and f"no progress for {TIMEOUT_S} s" in said
    assert "rank 1: stacks of its threads:" in said
    assert "rank 1: must make progress" in str(RunFolder.open(tmp_path / "run").status().reason)
