"""Checks of the ledger: the chain of its lines, and the hashes of the weights in them.

docs/format.md defines the chain.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

from reptrain.auditing.problems import Problems
from reptrain.config import RunConfig
from reptrain.config.schedule import step_learning_rate
from reptrain.errors import ReptrainError
from reptrain.files import read_small
from reptrain.plan import MixturePlan, StepPlan
from reptrain.plan.position import position_at
from reptrain.reading import parse_object
from reptrain.runs.folder import RunFolder
from reptrain.runs.ledger import NO_LINE, LedgerEvent, LedgerRecord, Line


class Chain:
    """Follows the lines of a ledger.

    Args:
        folder: The run.
        problems: Takes what the optimizer did not do.
        saved_state: Hashes the state files of a checkpoint; None compares the manifests only.
    """

    def __init__(
        self, folder: RunFolder, problems: Problems, saved_state: Callable[[Path], str] | None = None
    ) -> None:
        self._folder, self._problems, self._saved_state = folder, problems, saved_state
        self._updates = _Updates(folder.config, folder.plan.mixture_plan(), folder.plan.step_plan(), problems)
        self._files: dict[str, str] | None = None
        self._before: Line | None = None
        self._states: dict[int, str | None] = {}
        self._has_start = False
        self.begin: int | None = None
        """The line from which each line has the hash of the line before it; None if none has it."""
        self.num_lines = 0
        """Lines so far."""
        self.parent: str | None = None
        """Head of the parent's ledger, in a branch."""
        self.damage: list[str] = []
        """Why the ledger, or another file of the run, is not what was written."""

    @property
    def head(self) -> str:
        """Hash of the last line."""
        return NO_LINE if self._before is None else self._before.hash

    def follow(self, lines: Iterator[Line]) -> Iterator[LedgerRecord]:
        """Check each line, and pass on the attempts at steps."""
        for line in lines:
            self._link(line)
            if isinstance(line.record, LedgerRecord):
                self._updates.add(line.record)
                yield line.record
            else:
                self._event(line.record)
            self._before = line
            self.num_lines = line.number

    def _link(self, line: Line) -> None:
        record = line.record
        if record.previous is None:
            if self.begin is not None:
                self._damaged(f"ledger.jsonl, line {line.number} has no hash of the line before it")
            return
        if self.begin is None:
            self.begin = line.number
            if line.number == 1 and not (isinstance(record, LedgerEvent) and record.event == "start"):
                self._damaged("ledger.jsonl does not begin with the line of a start: lines were removed")
        expected = self.head
        if line.number == 1 and isinstance(record, LedgerEvent) and record.parent is not None:
            expected = self.parent = record.parent.head
        if record.previous != expected:
            self._damaged(
                f"ledger.jsonl, line {line.number} follows a line of the hash {record.previous}, but the line"
                f" before it has {expected}: lines were changed, removed or added"
            )

    def _event(self, event: LedgerEvent) -> None:
        self._files = event.files or self._files
        before = None if self._before is None else self._before.record
        # Lines without a hash are those of an earlier version, which wrote no events.
        is_continued = before is not None and before.previous is not None
        if event.event == "checkpoint":
            self._states[event.step] = event.state
        elif event.event == "start":
            self._has_start = True
            if is_continued:
                self._damaged(f"ledger.jsonl has a start at step {event.step} that is not its first line")
        elif not isinstance(before, LedgerEvent) or before.event != "checkpoint":
            if is_continued:
                self._damaged(
                    f"the resumption at step {event.step} in ledger.jsonl does not follow the line of its"
                    " checkpoint: lines were removed"
                )
        elif (event.step, event.state) != (before.step, before.state):
            self._problems.add(
                f"resumed at step {event.step} with the state {event.state}, where the checkpoint of step"
                f" {before.step} has {before.state}: weights, optimizer state or counters were not loaded",
                step=event.step,
            )

    def check_end(self) -> None:
        """Check that the ledger of a finished run ends as it must."""
        if self._before is None:
            self._damaged("ledger.jsonl of a finished run is missing or empty")
            return
        last = self._before.record
        is_checkpoint = isinstance(last, LedgerEvent) and last.event == "checkpoint"
        if self._has_start and not is_checkpoint:
            self._damaged("ledger.jsonl of a finished run must end with the line of its last checkpoint")

    def check_files(self) -> None:
        """Compare config.yaml, plan.json and the ledger itself with the recorded checksums."""
        checksums = self._folder.checksums()
        for name, expected in (self._files or {}).items():
            if checksums.get(name) != expected:
                self._damaged(f"{name} differs from the checksum in ledger.jsonl")
        for step, state in self._states.items():
            checkpoint = self._folder.checkpoints / f"step-{step}"
            damage = self._checkpoint_damage(checkpoint, state)
            if damage:
                self._damaged(damage)

    def _checkpoint_damage(self, checkpoint: Path, state: str | None) -> str | None:
        """How a checkpoint that is still there differs from the ledger."""
        manifest = _manifest(checkpoint / "manifest.json")
        if manifest is None:
            return None
        damage = _differs_from_copy(self._folder.ledger.path, checkpoint.name, manifest, state)
        if damage or self._saved_state is None:
            return damage
        try:
            held = self._saved_state(checkpoint)
        except (OSError, ValueError, ReptrainError) as error:
            return f"{checkpoint.name} cannot be read: {error}"
        return None if held == state else f"the files of {checkpoint.name} have the state {held}, not {state}"

    def _damaged(self, reason: str) -> None:
        self.damage.append(reason)


class _Updates:
    """Checks that each applied step changed the weights and was counted by the optimizer."""

    def __init__(self, config: RunConfig, plan: MixturePlan, steps: StepPlan, problems: Problems) -> None:
        self._config, self._plan, self._steps, self._problems = config, plan, steps, problems
        self._count: int | None = None

    def add(self, record: LedgerRecord) -> None:
        """Check one attempt at a step."""
        self._check_count(record)
        before, after = record.slice or ("", "-")
        has_gradient = record.grad_norm is not None and 0 < record.grad_norm < math.inf
        if record.applied and has_gradient and before == after and self._learning_rate(record) > 0:
            self._problems.add(
                "the update changed none of the hashed weights; the gradient has norm"
                f" {record.grad_norm:.4g}",
                step=record.step,
            )
        if not record.applied and record.slice is not None and before != after:
            self._problems.add("weights changed in a step that was not applied", step=record.step)

    def _check_count(self, record: LedgerRecord) -> None:
        count = record.optimizer_step
        if count is not None and self._count is not None and count != self._count + record.applied:
            self._problems.add(
                f"the optimizer counts {count} updates after this step, {self._count} before it",
                step=record.step,
            )
        self._count = count

    def _learning_rate(self, record: LedgerRecord) -> float:
        if record.step >= self._steps.num_steps:
            return 0.0
        begin = position_at(self._plan, self._steps, record.step)
        optimizer, schedule = self._config.optimizer, self._config.schedule
        end = begin.tokens + record.tokens
        return step_learning_rate(begin.tokens, end, begin.total_tokens, optimizer, schedule)


def _manifest(path: Path) -> dict[str, Any] | None:
    """The manifest of a checkpoint; None if it is missing or damaged, so that it proves nothing."""
    try:
        body, _, checksum = read_small(path).rstrip(b"\n").rpartition(b"\n")
        return parse_object(body.decode()) if sha256(body).hexdigest() == checksum.decode() else None
    except (OSError, ValueError):
        return None


def _differs_from_copy(
    ledger: Path, checkpoint: str, manifest: dict[str, Any], state: str | None
) -> str | None:
    """How the ledger differs from what a checkpoint says; None if it does not.

    Args:
        ledger: The ledger.
        checkpoint: Name of the checkpoint.
        manifest: Its manifest.
        state: State hash in its line of the ledger.
    """
    copy = manifest["records"][ledger.name]
    with ledger.open("rb") as file:
        same = sha256(file.read(copy["bytes"])).hexdigest() == copy["sha256"]
    if not same:
        return f"ledger.jsonl differs from its copy in {checkpoint}"
    if manifest.get("state") != state:
        return f"{checkpoint} has the state {manifest.get('state')}, where ledger.jsonl has {state}"
    return None
