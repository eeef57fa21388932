"""kill -9 at any moment of a run, of a save, of a tokenization and of its sealing."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable

import pytest
from fault_hooks import SAVE, SEAL, Actions, Within
from fault_runs import Tokenized, Trial, draws
from fault_table import WENT_ON, FaultTable

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1800)]
MakeTrial = Callable[..., Trial]
MakeTokenized = Callable[..., Tokenized]


def _place(trial: Trial) -> str:
    """What the run was at, as its folder shows it."""
    if not (trial.out / "plan.json").exists():
        return "before the folder was made"
    if list(trial.run.checkpoints.glob("tmp-step-*")):
        return "in a save"
    return "between saves" if trial.run.ledger.end() else "before the first step"


@pytest.mark.parametrize(
    ("seed", "kills"),
    [(1, 2), pytest.param(2, 20, marks=pytest.mark.slow)],
)
def test_run_killed_at_random_moments(trial: MakeTrial, table: FaultTable, seed: int, kills: int) -> None:
    """Each run is killed twice, and again where it ended before the moment came."""
    began = time.monotonic()
    whole = trial()
    whole.finish()
    length_s = time.monotonic() - began
    moments = (length_s * part for part in draws(seed, 10 * kills))
    while kills > 0:
        struck = trial()
        for _ in range(2):
            started, moment_s = struck.start(), next(moments)
            started.wait_up_to(moment_s)
            started.kill()
            if started.wait().code == 0:
                break
            where = _place(struck)
            print(f"killed after {moment_s:.3f} s, {where}, at step {struck.run.ledger.end()}")
            table.add("kill -9 of a run at a random moment", where, WENT_ON)
            kills -= 1
        struck.finish()
        struck.remove()


def _count(struck: Trial | Tokenized, within: Within | None, call: int = 0) -> int:
    """The actions of an unbroken call."""
    file = struck.out.with_name("actions")
    assert struck.carry_out(hook=Actions(within=within, call=call, count_to=file)).code == 0
    return int(file.read_text())


def _strike(struck: Trial | Tokenized, action: int, within: Within | None, call: int = 0) -> None:
    """Kill before an action, and let the same command go on."""
    ended = struck.carry_out(hook=Actions(action, within=within, call=call))
    assert ended.code == -signal.SIGKILL, ended.said
    struck.finish()
    struck.remove()


@pytest.mark.parametrize("part", [0, *(pytest.param(part, marks=pytest.mark.slow) for part in (1, 2, 3))])
def test_run_killed_before_each_action_of_a_save(trial: MakeTrial, table: FaultTable, part: int) -> None:
    """The third save, which is the first that removes an older checkpoint, in three parts."""
    actions = _count(trial(), SAVE, 2)
    assert actions > 10
    for action in range(part - 1, actions, 3) if part else [actions // 2]:
        _strike(trial(), action, SAVE, 2)
        table.add("kill -9 before each flush, rename and removal of a save", "in a save", WENT_ON)


@pytest.mark.slow
def test_run_killed_before_actions(trial: MakeTrial, table: FaultTable) -> None:
    actions = _count(trial(), None)
    # The folder is made in the first ones.
    for action in [*range(0, 12, 2), *(int(part * actions) for part in draws(3, 6))]:
        struck = trial()
        ended = struck.carry_out(hook=Actions(action))
        assert ended.code == -signal.SIGKILL, ended.said
        where = _place(struck)
        struck.finish()
        table.add("kill -9 before a flush, rename or removal of a run", where, WENT_ON)


@pytest.mark.parametrize("kills", [1, pytest.param(14, marks=pytest.mark.slow)])
def test_tokenization_killed_before_actions(tokenized: MakeTokenized, table: FaultTable, kills: int) -> None:
    actions = _count(tokenized(), None)
    for part in draws(kills, kills):
        _strike(tokenized(), int(part * actions), None)
        table.add("kill -9 before a flush, rename or removal of `tokenize`", "in tokenization", WENT_ON)


@pytest.mark.parametrize("actions", [[1], pytest.param([0, 2], marks=pytest.mark.slow)])
def test_sealing_killed_before_each_action(
    tokenized: MakeTokenized, table: FaultTable, actions: list[int]
) -> None:
    """Flush, rename, and flush of the folder."""
    if len(actions) > 1:
        assert _count(tokenized(), SEAL) == 3
    for action in actions:
        _strike(tokenized(), action, SEAL)
        table.add("kill -9 before each flush and rename of the seal", "in sealing", WENT_ON)


@pytest.mark.slow
def test_tokenization_with_workers_killed_at_random_moments(
    tokenized: MakeTokenized, table: FaultTable
) -> None:
    began = time.monotonic()
    tokenized(processes=2).finish()
    length_s = time.monotonic() - began
    for part in draws(5, 6):
        struck = tokenized(processes=2)
        started = struck.start()
        started.wait_up_to(part * length_s)
        started.kill()
        if started.wait().code:
            table.add("kill -9 of `tokenize` with 2 workers at a random moment", "in tokenization", WENT_ON)
        struck.finish()
