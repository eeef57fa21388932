"""The audit: recount every token's exposures from the ledger, and prove the digests from the store.

Nothing is believed but plan.json and the store. Each record of the ledger names global indices; the plan
says which windows these are; the store says which tokens stand there. Their digest must be the one that
was taken from the tensors that the model saw.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from itertools import islice
from pathlib import Path

import numpy as np

from reptrain.errors import RunError
from reptrain.plan import Subset
from reptrain.runs.audit_report import AuditReport, Problem
from reptrain.runs.exposures import Exposures
from reptrain.runs.folder import RunFolder
from reptrain.runs.ledger import LedgerRecord
from reptrain.runs.rehash import WindowDigests
from reptrain.runs.run_plan import RunPlan
from reptrain.store import Store, open_store, verify

Progress = Callable[[str, int, int], None]

_LISTED = 10
# Windows derived at once: bounds the memory, and spreads the cost of a call over many.
_CHUNK_WINDOWS = 1 << 15


def audit(
    run: Path, *, store: Path | None = None, progress: Progress | None = None, verify_store: bool = True
) -> AuditReport:
    """Recount a run.

    Args:
        run: Its folder.
        store: Where the store is now; None: where plan.json says.
        progress: Called with a stage, the steps done and all steps.
        verify_store: Hash the store's shards again.

    Raises:
        RunError: If the folder is no run's, a line of its ledger is no record, or the store is another.
        StoreError: If the store cannot be opened.
    """
    folder = RunFolder.open(run)
    plan = folder.plan
    path = store or Path(plan.store)
    source = open_store(path)
    subset = _subset(plan, source, path)
    recount = _Recount(plan, subset)
    if verify_store:
        for message in verify(path, progress).problems:
            recount.problem(message)
    if not subset.has_order_of_its_seed():
        recount.problem(f"the order of documents cached for {path} is not the one that the seed gives")
    _check_config(folder, source, subset, recount)
    num_steps = plan.step_plan().num_steps
    for records in _chunks(folder.ledger.records(), plan.batch_windows):
        recount.add(records)
        if progress is not None:
            progress("audit", records[-1].step + 1, num_steps)
    return recount.report(done=folder.status().state == "done", store_verified=verify_store)


def _subset(plan: RunPlan, source: Store, path: Path) -> Subset:
    """The run's subset.

    Raises:
        RunError: If the store holds other content than the run's, or orders it otherwise.
    """
    found, expected = source.fingerprint, plan.store_fingerprint
    if found == expected:
        subset = Subset.open(source, seed=plan.subset_seed, unique_tokens=plan.unique_tokens)
        found, expected = subset.fingerprint, plan.subset_fingerprint
    if found != expected:
        raise RunError(
            f"store {path}",
            got=f"fingerprint {found}, where plan.json has {expected}",
            rule="must be the store that the run was trained on",
            remedy="Name it with --store.",
        )
    return subset


def _check_config(folder: RunFolder, source: Store, subset: Subset, recount: _Recount) -> None:
    """The plan must be what config.yaml asks for."""
    plan = folder.plan
    asked = RunPlan.of(folder.config, store=source.path, store_fingerprint=source.fingerprint, subset=subset)
    # A later release may fingerprint the same settings otherwise, and stores may move.
    for key in plan.model_dump(exclude={"store", "config_fingerprint"}):
        if getattr(plan, key) != getattr(asked, key):
            recount.problem(
                f"plan.json has {key} {getattr(plan, key)}, where config.yaml asks for {getattr(asked, key)}"
            )


def _chunks(records: Iterator[LedgerRecord], batch_windows: int) -> Iterator[list[LedgerRecord]]:
    size = max(1, _CHUNK_WINDOWS // batch_windows)
    while chunk := list(islice(records, size)):
        yield chunk


class _Recount:
    """Counts and problems so far; `add` takes the ledger piece by piece."""

    def __init__(self, plan: RunPlan, subset: Subset) -> None:
        self._plan = plan
        self._epochs = plan.epoch_plan()
        self._steps = plan.step_plan()
        self._subset = subset
        self._digests = WindowDigests(subset, self._epochs)
        self._exposures = Exposures(plan.unique_tokens)
        self._problems: list[Problem] = []
        self._num_problems = 0
        self._next_step = 0
        self._waits: LedgerRecord | None = None
        self._windows = 0
        self._tokens = 0
        self._applied = 0

    def problem(
        self, message: str, record: LedgerRecord | None = None, *, document: str | None = None
    ) -> None:
        """Note a problem; the first ones are kept in full."""
        self._num_problems += 1
        if len(self._problems) < _LISTED:
            step, index = (record.step, record.first_index) if record else (None, None)
            self._problems.append(Problem(message=message, step=step, index=index, document=document))

    def add(self, records: list[LedgerRecord]) -> None:
        """Check the next records and count their exposures."""
        placed = [record for record in records if self._in_sequence(record)]
        if not placed:
            return
        first = np.asarray([record.first_index for record in placed])
        count = np.asarray([record.windows for record in placed])
        offset = np.cumsum(count) - count
        index = np.repeat(first - offset, count) + np.arange(int(count.sum()))
        _, _, start, length = self._epochs.locate(index)
        applied = np.asarray([record.applied for record in placed])
        used = np.repeat(applied, count)
        self._exposures.add(start[used], length[used])
        self._windows += int(used.sum())
        self._tokens += int(length[used].sum())
        self._applied += int(applied.sum())
        digest = np.add.reduceat(self._digests.of(start, length), offset)
        tokens = np.add.reduceat(length, offset)
        for place, record in enumerate(placed):
            derived = f"{int(digest[place]):016x}"
            if record.digest != derived:
                self._wrong_digest(record, derived, int(start[offset[place]]), int(length[offset[place]]))
            epoch = record.first_index // self._plan.windows_per_epoch
            if record.tokens != tokens[place] or record.epoch != epoch:
                self.problem(
                    f"{record.tokens} tokens in epoch {record.epoch} in the ledger,"
                    f" {tokens[place]} in epoch {epoch} by the plan",
                    record,
                )

    def report(self, *, done: bool, store_verified: bool) -> AuditReport:
        """The answer for all records added."""
        if self._waits is not None and done:
            self._not_applied(self._waits)
        if done and self._windows < self._plan.total_windows:
            self.problem(
                f"status.json says done, but the ledger ends after window {self._windows}"
                f" of {self._plan.total_windows}"
            )
        self._check_exposures()
        return AuditReport(
            exact=self._num_problems == 0,
            complete=done and self._windows == self._plan.total_windows,
            exposures=self._exposures.histogram(),
            epochs=str(Fraction(self._windows, self._plan.windows_per_epoch)),
            steps=self._applied,
            windows=self._windows,
            total_windows=self._plan.total_windows,
            tokens_consumed=self._tokens,
            unique_tokens=self._plan.unique_tokens,
            store_verified=store_verified,
            num_problems=self._num_problems,
            problems=tuple(self._problems),
        )

    def _in_sequence(self, record: LedgerRecord) -> bool:
        """Whether the record names windows of the run; notes where steps are left out or come twice."""
        if self._waits is not None and record.step != self._waits.step:
            self._not_applied(self._waits)
            self._next_step = self._waits.step + 1
        if record.step != self._next_step:
            self.problem(f"comes where step {self._next_step} should", record)
        self._next_step = record.step + record.applied
        self._waits = None if record.applied else record
        if record.step >= self._steps.num_steps:
            self.problem(f"lies behind the run's {self._steps.num_steps} steps", record)
            return False
        first, count = self._steps.window_range(record.step)
        if (record.first_index, record.windows) != (first, count):
            self.problem(
                f"{record.windows} windows from {record.first_index} in the ledger,"
                f" {count} from {first} by the plan",
                record,
            )
        fits = record.first_index + record.windows <= self._plan.total_windows
        return fits and record.windows <= self._plan.batch_windows

    def _not_applied(self, record: LedgerRecord) -> None:
        self.problem(f"step {record.step} was not applied, and its windows were not tried again", record)

    def _wrong_digest(self, record: LedgerRecord, derived: str, start: int, length: int) -> None:
        # The sum over several windows does not tell which of them is wrong.
        alone = record.windows == 1
        last = record.first_index + record.windows - 1
        self.problem(
            f"digest {record.digest} in the ledger, {derived} from the store,"
            f" for global indices {record.first_index} to {last}: the model saw other tokens",
            record,
            document=self._subset.documents(start, length)[0] if alone else None,
        )

    def _check_exposures(self) -> None:
        whole, rest = divmod(self._windows, self._plan.windows_per_epoch)
        allowed = [whole, whole + 1] if rest else [whole]
        start, end, times = self._exposures.stretches()
        for number in np.unique(times[~np.isin(times, allowed)]):
            where = np.flatnonzero(times == number)
            tokens, first = int((end - start)[where].sum()), int(start[where[0]])
            self.problem(
                f"{tokens} tokens were consumed {number} times, not {' or '.join(map(str, allowed))};"
                f" the first stands at {first} of the stream",
                document=self._subset.documents(first, 1)[0],
            )
