"""Two ranks, of which one is killed, or whose link is cut: both sides end in time, and the run goes on."""

from __future__ import annotations

import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fault_hooks import EnterNetwork
from fault_runs import Trial
from fault_starts import Ended, Hook, Started
from fault_table import STOPPED, FaultTable
from two_hosts import ADDRESSES, TwoHosts

from reptrain.auditing.audit import audit
from reptrain.runs import RunFolder

pytestmark = [pytest.mark.faults, pytest.mark.ranks, pytest.mark.slow, pytest.mark.timeout(1800)]
TIMEOUT_S = 30
OVERRIDES = ["train.zero_stage=1", f"train.rank_timeout_seconds={TIMEOUT_S}"]


class Ranks:
    """The command on two ranks.

    Args:
        trial: The run.
        hosts: Two hosts, or None: both ranks are on this one.
    """

    def __init__(self, trial: Trial, hosts: TwoHosts | None = None) -> None:
        self.trial, self._hosts = trial, hosts
        self.started: list[Started] = []

    def start(self) -> None:
        """Start both."""
        port = str(_free_port())
        self.started = [self._start_rank(rank, port) for rank in range(2)]

    def _start_rank(self, rank: int, port: str) -> Started:
        shared = {"WORLD_SIZE": "2", "MASTER_PORT": port, "MASTER_ADDR": "127.0.0.1"}
        hook: Hook | None = None
        if self._hosts is not None:
            # Nobody else is in there.
            shared |= {"MASTER_ADDR": ADDRESSES[0], "MASTER_PORT": "29500", "GLOO_SOCKET_IFNAME": "card"}
            hook = EnterNetwork(self._hosts.hosts[rank])
        own = {"RANK": str(rank), "LOCAL_RANK": "0" if self._hosts else str(rank)}
        log = self.trial.out.with_name(f"{self.trial.out.name}-rank-{rank}.log")
        return Started(self.trial.arguments, log, environment=shared | own, hook=hook)

    def wait(self) -> list[Ended]:
        """Wait for both."""
        return [started.wait() for started in self.started]

    def finish(self) -> None:
        """Give the command again on both; the run must end as the unbroken one."""
        self.start()
        ended = self.wait()
        assert [end.code for end in ended] == [0, 0], ended
        self.trial.check()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def unbroken_on_two(fault_config: Path) -> RunFolder:
    """The run of two ranks that no fault struck."""
    ranks = Ranks(Trial(fault_config, fault_config.parent / "two-ranks", None, overrides=OVERRIDES))
    ranks.start()
    ended = ranks.wait()
    assert [end.code for end in ended] == [0, 0], ended
    return ranks.trial.run


@pytest.fixture
def on_two(fault_config: Path, unbroken_on_two: RunFolder, tmp_path: Path) -> Trial:
    """A run of two ranks to be struck."""
    return Trial(fault_config, tmp_path / "run", unbroken_on_two, overrides=OVERRIDES)


@pytest.fixture
def two_hosts() -> Iterator[TwoHosts]:
    """Two hosts with a link between them; skips where there can be none."""
    hosts = TwoHosts()
    problem = hosts.make()
    try:
        if problem is not None:
            pytest.skip(problem)
        yield hosts
    finally:
        hosts.remove()


def _assert_names(ended: Ended, lost: int) -> None:
    assert ended.code == 2 and "Traceback" not in ended.said, ended.said
    assert f"rank {lost}: must make progress within" in ended.said, ended.said


@pytest.mark.parametrize("lost", [0, 1])
def test_killed_rank(on_two: Trial, table: FaultTable, lost: int) -> None:
    ranks = Ranks(on_two)
    ranks.start()
    assert on_two.wait_for_step(10 + lost, ranks.started[0])
    ranks.started[lost].kill()
    began = time.monotonic()
    _assert_names(ranks.started[1 - lost].wait(), lost)
    assert time.monotonic() - began < 4 * TIMEOUT_S
    assert ranks.started[lost].wait().code == -signal.SIGKILL
    ranks.finish()
    table.add("one of two ranks killed", f"rank {lost}", STOPPED)


@pytest.mark.parametrize("step", [5, 14, 27])
def test_link_cut_between_two_hosts(on_two: Trial, two_hosts: TwoHosts, table: FaultTable, step: int) -> None:
    ranks = Ranks(on_two, two_hosts)
    ranks.start()
    assert on_two.wait_for_step(step, ranks.started[0]), ranks.started[0].said()
    two_hosts.cut()
    began = time.monotonic()
    for rank, ended in enumerate(ranks.wait()):
        _assert_names(ended, 1 - rank)
    print(f"both ended {time.monotonic() - began:.1f} s after the cut")
    assert time.monotonic() - began < 4 * TIMEOUT_S
    assert on_two.run.status().state == "failed"
    partial = audit(on_two.out)
    assert partial.exact and not partial.complete, partial.text()
    two_hosts.mend()
    ranks.finish()
    table.add("link between two hosts cut", "in mid-step", STOPPED)
