"""The goals that docs/performance.md compares the measurements with."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from reptrain.bench.rows import OURS, Row


class Goal(NamedTuple):
    """A bound on a ratio, or on a figure of `OURS`."""

    bench: str
    case: str
    metric: str
    bound: float
    against: str = ""
    """Alternative whose ratio has to reach ``bound``; `PEERS`: all except those in `YARDSTICKS`. Empty: the
    figure of `OURS` may not exceed ``bound``."""
    cause: str = ""
    """Why the goal is missed, if it is."""


PEERS = "all others"
YARDSTICKS = frozenset({"NumPy gather", "SentencePiece", "bare torch loop", "cold start", "smallest size"})
"""Lower bounds of the work, not alternatives."""

GOALS: list[Goal] = []


class Verdict(NamedTuple):
    """A goal and what was measured."""

    goal: Goal
    measured: float
    what: str
    """The implementation that decides: the fastest alternative, or `OURS`."""
    met: bool


def verdicts(rows: Sequence[Row], goals: Iterable[Goal] = tuple(GOALS)) -> list[Verdict]:
    """The goals that the rows have a figure for.

    Args:
        rows: Current rows.
        goals: Goals to check.
    """
    return [verdict for goal in goals if (verdict := _verdict(goal, rows)) is not None]


def _verdict(goal: Goal, rows: Sequence[Row]) -> Verdict | None:
    mine = [row for row in rows if (row.bench, row.case, row.metric) == (goal.bench, goal.case, goal.metric)]
    if not goal.against:
        ours = [row for row in mine if row.what == OURS and row.median]
        return (
            Verdict(goal, float(ours[0].median), OURS, float(ours[0].median) <= goal.bound) if ours else None
        )
    ratios = [
        (float(row.ratio), row.what)
        for row in mine
        if row.ratio and (row.what == goal.against or (goal.against == PEERS and row.what not in YARDSTICKS))
    ]
    if not ratios:
        return None
    ratio, what = min(ratios)
    return Verdict(goal, ratio, what, ratio >= goal.bound)
