"""The check of the model's inputs, step by step, against those that were rebuilt."""

from __future__ import annotations

import time

import numpy as np
import numpy.typing as npt

from reptrain.auditing.ledger_columns import Columns
from reptrain.auditing.problems import Problems
from reptrain.auditing.rebuilt import Rebuild
from reptrain.auditing.report import InputsAudit
from reptrain.plan import Windows

Int64s = npt.NDArray[np.int64]

_REPORTED_EPOCHS = 64


class InputsRecount:
    """Compares input digests, and recounts the targets by step and epoch.

    Args:
        rebuild: Rebuilds the inputs of some records.
        num_sources: Number of the run's sources.
    """

    def __init__(self, rebuild: Rebuild, num_sources: int) -> None:
        self._rebuild = rebuild
        self._targets = [np.zeros(0, dtype=np.int64) for _ in range(num_sources)]
        self._steps = self._tokens = self._without = 0
        self._first_without: int | None = None
        self._seconds = 0.0

    def check(self, records: Columns, windows: Windows, offset_R: Int64s, problems: Problems) -> None:
        """Check some records.

        Args:
            records: The records, which name windows of the run.
            windows: Their windows.
            offset_R: int64 [R], the first window of each record.
            problems: Takes each record that differs.
        """
        began = time.perf_counter()
        digest_N, targets_N = self._rebuild(records)
        self._seconds += time.perf_counter() - began
        digest_R, targets_R = np.add.reduceat(digest_N, offset_R), np.add.reduceat(targets_N, offset_R)
        recorded = records.targets >= 0
        if not recorded.all() and self._first_without is None:
            self._first_without = int(records.step[~recorded][0])
        self._without += int((~recorded).sum())
        self._steps += int(recorded.sum())
        self._tokens += int(windows.length.sum())
        problems.add_records(
            records,
            recorded & (records.inputs != digest_R),
            lambda place: (
                f"input digest {int(records.inputs[place]):016x} in the ledger, {int(digest_R[place]):016x}"
                " from plan and store: other inputs, targets, weights or attention masks entered the model"
            ),
        )
        problems.add_records(
            records,
            recorded & (records.targets != targets_R),
            lambda place: f"{records.targets[place]} targets in the ledger, {targets_R[place]} by the plan",
        )
        used_N = np.repeat(records.applied, records.windows)
        for source in range(len(self._targets)):
            chosen = used_N & (windows.source == source)
            # Sums of weights are float64: exact far above the targets of an epoch in one chunk.
            counts = np.bincount(windows.epoch[chosen], weights=targets_N[chosen]).astype(np.int64)
            size = max(counts.size, self._targets[source].size)
            self._targets[source] = _padded(self._targets[source], size) + _padded(counts, size)

    def report(self) -> InputsAudit:
        """The result."""
        return InputsAudit(
            steps=self._steps,
            steps_without=self._without,
            first_without=self._first_without,
            targets=int(sum(counts.sum() for counts in self._targets)),
            targets_by_epoch=tuple(tuple(counts[:_REPORTED_EPOCHS].tolist()) for counts in self._targets),
            tokens_per_s=self._tokens / max(self._seconds, 1e-9),
        )


def _padded(counts: Int64s, size: int) -> Int64s:
    return np.pad(counts, (0, size - counts.size))
