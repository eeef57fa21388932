"""Runs and stores that faults strike, and what they must be in the end."""

from __future__ import annotations

import random
import shutil
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fault_hooks import make_small_jobs
from fault_starts import Ended, Hook, Started
from ledgers import steps_of

from reptrain.auditing.audit import audit
from reptrain.runs import RunFolder
from reptrain.store import verify

TIMING = {"step_ms", "tokens_per_s", "tokens_per_s_per_device", "rank_ms"}
# 47 steps, a checkpoint after every second or third, dropout on.
SETTINGS = [
    *("data.unique_tokens=1500", "train.total_tokens=4epochs", "train.batch_windows=4"),
    *("model.d_model=16", "model.d_ff=32", "model.dropout.residual=0.1", "checkpoint.every_fraction=0.05"),
    *("evaluate.max_windows=4", "evaluate.every_fraction=0.25"),
]


class Trial:
    """A run folder, and the one command that trains in it.

    Args:
        config: The run's YAML file.
        out: The run folder.
        expected: The run that was never broken; None while it is made.
        log: Where the command writes; beside the folder if left out.
        overrides: Settings beside those of the file.
    """

    def __init__(
        self,
        config: Path,
        out: Path,
        expected: RunFolder | None,
        *,
        log: Path | None = None,
        overrides: Sequence[str] = (),
    ) -> None:
        self.out = out
        self.log = log or out.with_name(f"{out.name}.log")
        self.expected = expected
        self.arguments = ["train", config, *overrides, "--out", out]

    @property
    def run(self) -> RunFolder:
        """The folder, whatever it holds."""
        return RunFolder(self.out)

    def start(self, **options: Any) -> Started:
        """Give the command; options as `Started` takes them."""
        return Started(self.arguments, self.log, **options)

    def carry_out(self, *, hook: Hook | None = None) -> Ended:
        """Give the command and wait for its end."""
        return self.start(hook=hook).wait()

    def finish(self) -> None:
        """Give the command again; the run must end, equal the unbroken one bit for bit, and be proven."""
        ended = self.carry_out()
        assert ended.code == 0, ended.said
        self.check()

    def check(self) -> None:
        """Hold the run against the unbroken one, and audit it."""
        assert self.expected is not None
        assert self.run.status().state == "done"
        left = [path for path in self.out.rglob(".*") if path.name != ".lock"]
        left += self.run.checkpoints.glob("tmp-*")
        assert not left, left
        last = self.expected.checkpoints / f"step-{self.expected.ledger.end()}"
        assert steps_of(self.run.ledger) == steps_of(self.expected.ledger)
        for path in last.glob("*.safetensors"):
            name = path.relative_to(self.expected.path)
            assert (self.out / name).read_bytes() == path.read_bytes(), name
        assert untimed(self.run) == untimed(self.expected)
        report = audit(self.out)
        assert report.exact and report.complete, report.text()

    def wait_for_step(self, step: int, started: Started) -> bool:
        """Wait until so many steps are recorded; False if the process ended before."""
        deadline = time.monotonic() + 600
        while self.run.ledger.end() < step:
            if not started.runs:
                return False
            assert time.monotonic() < deadline, started.said()
            time.sleep(0.001)
        return True

    def remove(self) -> None:
        """Make room for the next one."""
        shutil.rmtree(self.out)


class Tokenized:
    """A store, and the one command that makes it.

    Args:
        source: The text.
        out: The store's folder.
        expected: The store that was made unbroken; None while it is made.
        processes: Workers.
        log: Where the command writes; beside the folder if left out.
    """

    def __init__(
        self,
        source: Path,
        out: Path,
        expected: Path | None,
        *,
        processes: int = 1,
        log: Path | None = None,
    ) -> None:
        self.out, self.expected = out, expected
        self.log = log or out.with_name(f"{out.name}.log")
        self._arguments = ["tokenize", source, "--out", out, "--vocab-size", "300", "--held-out", "0.2"]
        self._arguments += ["--processes", str(processes)]

    def start(self, *, hook: Hook = make_small_jobs) -> Started:
        """Give the command."""
        return Started(self._arguments, self.log, hook=hook)

    def carry_out(self, *, hook: Hook = make_small_jobs) -> Ended:
        """Give the command and wait for its end."""
        return self.start(hook=hook).wait()

    def finish(self) -> None:
        """Give the command again; the store must hold the same bytes as the unbroken one."""
        assert self.expected is not None
        ended = self.carry_out()
        assert ended.code == 0, ended.said
        found, expected = every_byte(self.out), every_byte(self.expected)
        assert sorted(found) == sorted(expected)
        assert found == expected
        assert verify(self.out).ok

    def remove(self) -> None:
        """Make room for the next one."""
        shutil.rmtree(self.out)


def every_byte(folder: Path) -> dict[str, bytes]:
    """The files below a folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {file.relative_to(folder).as_posix(): file.read_bytes() for file in files}


def untimed(run: RunFolder) -> list[dict[str, Any]]:
    """The metrics without the fields that measure time."""
    return [record.model_dump(exclude=TIMING) for record in run.metrics.records()]


def draws(seed: int, count: int) -> Iterator[float]:
    """Numbers between 0 and 1; the seed is printed, so that they can be drawn again."""
    print(f"moments drawn with seed {seed}")
    draw = random.Random(seed)
    return (draw.random() for _ in range(count))
