"""What a recount notes: problems, and steps that were not applied."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from reptrain.auditing.ledger_columns import Columns
from reptrain.auditing.report import NotApplied, Problem

Int64s = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

_LISTED = 10


class Problems:
    """The number of problems, and the first ones in full."""

    def __init__(self) -> None:
        self.first: list[Problem] = []
        self.count = 0

    def add(self, message: str, *, step: int | None = None, index: int | None = None) -> None:
        """Note one problem."""
        self.add_many(1, lambda _: Problem(message=message, step=step, index=index))

    def add_many(self, count: int, problem: Callable[[int], Problem]) -> None:
        """Note several problems.

        Args:
            count: How many.
            problem: Makes the i-th; only called for those that are listed.
        """
        listed = min(count, _LISTED - len(self.first))
        self.first += [problem(number) for number in range(listed)]
        self.count += count

    def add_records(self, records: Columns, wrong: Bools, message: Callable[[int], str]) -> None:
        """Note each wrong record of the ledger.

        Args:
            records: The records.
            wrong: bool [R], which of them are wrong.
            message: The problem of the record at a place.
        """
        places = np.flatnonzero(wrong)

        def problem(number: int) -> Problem:
            place = int(places[number])
            step, index = int(records.step[place]), int(records.first_index[place])
            return Problem(message=message(place), step=step, index=index)

        self.add_many(places.size, problem)


class MissedSteps:
    """Steps that the optimizer did not apply."""

    def __init__(self) -> None:
        self._attempts = 0
        self._steps: list[int] = []
        self._skipped: list[int] = []
        self._num_skipped = 0

    def add(self, steps: Int64s) -> None:
        """Note attempts that were not applied, by their steps."""
        self._attempts += steps.size
        if len(self._steps) < _LISTED and steps.size:
            self._steps = [*dict.fromkeys([*self._steps, *steps[: 8 * _LISTED].tolist()])][:_LISTED]

    def skip(self, step: int) -> None:
        """Note a step that was not retried."""
        self._num_skipped += 1
        if len(self._skipped) < _LISTED:
            self._skipped.append(step)

    def report(self) -> NotApplied:
        """All of them."""
        return NotApplied(
            attempts=self._attempts,
            steps=tuple(self._steps),
            num_skipped=self._num_skipped,
            skipped=tuple(self._skipped),
        )
