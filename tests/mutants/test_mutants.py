"""The mutants fit the source, and a few of them are found; `make test-mutants` tries all."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from mutant_runs import ROOT, patched
from mutants import JUDGES, MUTANTS, NOTHING
from tiny_runs import RUNS

HERE = Path(__file__).parent


def test_every_mutant_fits_the_source() -> None:
    for mutant in MUTANTS:
        compile(patched(mutant, (ROOT / mutant.file).read_text()), mutant.file, "exec")
        assert mutant.run in RUNS
        assert all((ROOT / name.partition("::")[0]).is_file() for name in mutant.tests)
        assert bool(mutant.why) == (mutant.caught_by == (NOTHING,))


def test_mutants_are_many_and_of_all_kinds() -> None:
    alone = [mutant for mutant in MUTANTS if set(mutant.caught_by) & set(JUDGES)]
    assert len(MUTANTS) >= 30 and len(alone) >= 15
    assert max(Counter(mutant.name for mutant in MUTANTS).values()) == 1
    kinds = {mutant.kind for mutant in MUTANTS}
    assert kinds >= {
        *("data", "order", "ranks", "noise", "targets", "accumulation", "clipping", "schedule", "resume"),
        *("EMA", "expert parallel", "evaluation", "ledger", "checkpoint"),
    }


@pytest.mark.slow
def test_two_mutants_are_found() -> None:
    names = ["the last target of each row has weight 0", "the gradient of the second micro-batch is zero"]
    command = [
        sys.executable,
        str(HERE / "try_mutants.py"),
        *(word for name in names for word in ("--only", name)),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("\nok: ") + done.stdout.startswith("ok: ") == 2
