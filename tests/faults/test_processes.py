"""Signals in storms, two runs in one folder, and a clock that is set back."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fault_hooks import ClockBack
from fault_runs import Trial
from fault_starts import Started
from fault_table import STOPPED, WENT_ON, FaultTable

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1800)]
MakeTrial = Callable[..., Trial]


def _storm(started: Started, draw: random.Random) -> int:
    """Signals that ask to stop, until the process ends; returns its exit code."""
    deadline = time.monotonic() + 600
    while started.runs and time.monotonic() < deadline:
        started.stop(draw.choice([signal.SIGTERM, signal.SIGUSR1]))
        started.wait_up_to(0.003 * draw.random())
    return started.wait(limit_s=1).code


@pytest.mark.parametrize(
    ("seed", "until", "new_interpreter"),
    [(1, 1, False), *(pytest.param(s, 30, s == 2, marks=pytest.mark.slow) for s in (2, 3, 4))],
)
def test_storm_of_signals(
    trial: MakeTrial, table: FaultTable, seed: int, until: int, new_interpreter: bool
) -> None:
    """The first storm begins with the process, the others after a step; each leaves a checkpoint."""
    struck, draw = trial(), random.Random(seed)
    code = _storm(struck.start(new_interpreter=new_interpreter), draw)
    # Before reptrain catches them, signals end a process.
    assert code in (-signal.SIGTERM, -signal.SIGUSR1, 3)
    steps = [0]
    while steps[-1] < until:
        started = struck.start(new_interpreter=new_interpreter)
        assert struck.wait_for_step(steps[-1] + draw.randrange(2, 10), started)
        code = _storm(started, draw)
        assert code == 3, f"{code}: {started.said()}"
        steps.append(struck.run.ledger.end())
        assert struck.run.status().state == "preempted" and steps[-1] > steps[-2]
        table.add("repeated SIGTERM and SIGUSR1", "in a run", WENT_ON)
    print(f"seed {seed}: stopped after {steps} steps")
    struck.finish()


def test_second_run_in_a_folder_is_refused(trial: MakeTrial, table: FaultTable) -> None:
    struck = trial()
    first = struck.start()
    assert struck.wait_for_step(5, first)
    first.stop(signal.SIGSTOP)
    second = struck.carry_out()
    assert second.refused and "must be used by one run at a time" in second.error, second.said
    first.stop(signal.SIGCONT)
    assert first.wait().code == 0
    struck.check()
    table.add("a second run in the same folder", "while the first one runs", STOPPED)


@pytest.mark.slow
def test_folder_of_a_killed_run_is_free(trial: MakeTrial, table: FaultTable) -> None:
    struck = trial()
    first = struck.start()
    assert struck.wait_for_step(5, first)
    first.kill()
    assert first.wait().code == -signal.SIGKILL
    struck.finish()
    table.add("a second run in the same folder", "after the first one was killed", WENT_ON)


@pytest.mark.slow
def test_runs_started_at_once_in_one_folder(trial: MakeTrial, table: FaultTable) -> None:
    for _ in range(4):
        struck = trial()
        both = [Started(struck.arguments, struck.out.with_name(f"log-{n}")) for n in range(3)]
        ended = [started.wait() for started in both]
        assert 0 in {end.code for end in ended}
        assert all(end.code == 0 or end.refused for end in ended), ended
        struck.check()
        table.add("a second run in the same folder", "three started at once", STOPPED)


@pytest.mark.slow
def test_clock_set_back(trial: MakeTrial, table: FaultTable, tmp_path: Path) -> None:
    """By a day in the middle of a run, and by a month before it goes on after a kill."""
    library = next(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"), None)
    if library is None:
        pytest.skip("needs libfaketime, from the package faketime")
    clock = tmp_path / "clock"
    clock.write_text("+0")
    environment = {
        **{"LD_PRELOAD": str(library), "FAKETIME_TIMESTAMP_FILE": str(clock), "FAKETIME_NO_CACHE": "1"},
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }
    struck = trial()
    started = struck.start(new_interpreter=True, environment=environment)
    assert struck.wait_for_step(8, started)
    clock.write_text("-1d")
    assert struck.wait_for_step(20, started)
    started.kill()
    started.wait()
    clock.write_text("-30d")
    ended = struck.start(new_interpreter=True, environment=environment).wait()
    assert ended.code == 0, ended.said
    struck.check()
    times = [event.time for event in struck.run.events.records()]
    assert times[-1] < times[0], times
    table.add("clock set back (libfaketime)", "in a run and before it resumes", WENT_ON)


@pytest.mark.slow
def test_clock_that_goes_back_at_every_reading(trial: MakeTrial, table: FaultTable) -> None:
    """As Python sees it: each reading of the time lies an hour before the last one."""
    struck = trial()
    started = struck.start(hook=ClockBack())
    assert struck.wait_for_step(20, started)
    started.kill()
    started.wait()
    assert struck.carry_out(hook=ClockBack()).code == 0
    struck.check()
    table.add("clock that goes back at every call (time.time replaced)", "in a run", WENT_ON)
