"""Goals of the kernels on a GPU, and whether measured times meet them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from operator import ge, le
from typing import Any, NamedTuple

import torch

from reptrain_kernels.bench.operations import OPERATIONS
from reptrain_kernels.bench.rows import Row

MEMORY_BOUND = ("dropout", "norm", "gated", "rope")
NOISE = 1.02
"""A median counts as not slower up to this ratio."""


class GoalResult(NamedTuple):
    """A goal at one shape."""

    goal: str
    shape: str
    got: float
    bound: float
    is_met: bool


class _Timed(NamedTuple):
    """The rows of one shape that have times, by implementation and pass."""

    operation: str
    shape: Any
    rows: dict[tuple[str, str], Row]

    def median_us(self, way: str, what: str = "both") -> float | None:
        row = self.rows.get((way, what))
        return None if row is None else float(row.median_us)

    def ratio(self, way: str, other: str, what: str = "both") -> float | None:
        """Time of one implementation over that of another; None if either has no time."""
        ours, theirs = self.median_us(way, what), self.median_us(other, what)
        return None if ours is None or theirs is None else ours / theirs


def verdicts(rows: Iterable[Row]) -> list[GoalResult]:
    """The results of each goal at each shape that has the necessary rows."""
    found: dict[tuple[str, str], dict[tuple[str, str], Row]] = {}
    for row in rows:
        if not row.said:
            found.setdefault((row.operation, row.shape), {})[row.way, row.what] = row
    shapes = {(name, shape.name): shape for name, o in OPERATIONS.items() for shape in o.shapes}
    return [
        verdict
        for (operation, name), rows_of in found.items()
        for goal in _GOALS
        for verdict in goal(_Timed(operation, shapes[operation, name], rows_of))
    ]


def _judged(
    goal: str, timed: _Timed, got: float | None, is_met: Callable[[float, float], bool], bound: float
) -> Iterator[GoalResult]:
    if got is not None:
        yield GoalResult(f"{timed.operation}: {goal}", timed.shape.name, got, bound, is_met(got, bound))


def _of_memory_bound(timed: _Timed) -> Iterator[GoalResult]:
    if timed.operation not in MEMORY_BOUND:
        return
    for what in ("forward", "both"):
        row = timed.rows.get(("triton", what))
        share = None if row is None else float(row.share_of_copy)
        yield from _judged(f"share of the copy rate, {what}", timed, share, ge, 0.9)
        for other in ("liger", "torch.compile"):
            ratio = timed.ratio("triton", other, what)
            yield from _judged(f"time over {other}'s, {what}", timed, ratio, le, NOISE)


def _of_attention(timed: _Timed) -> Iterator[GoalResult]:
    if timed.operation == "attention" and timed.shape.E and timed.shape.T >= 512:
        goal = "share of the speed of SDPA without bias"
        if timed.shape.rate == 0 and timed.shape.dtype != torch.float32:
            yield from _judged(goal, timed, timed.ratio("sdpa alone", "triton"), ge, 0.7)


def _of_experts(timed: _Timed) -> Iterator[GoalResult]:
    if timed.operation == "grouped":
        ratio = timed.ratio("dense", "triton")
        yield from _judged("share of the speed of dense products", timed, ratio, ge, 0.8)


def _of_loss(timed: _Timed) -> Iterator[GoalResult]:
    if timed.operation != "linear_cross_entropy":
        return
    yield from _judged("time over the definition's", timed, timed.ratio("triton", "torch"), le, 1.05)
    ours, plain = (timed.rows.get((way, "both")) for way in ("triton", "torch"))
    is_large = timed.shape.V >= 128_000 and timed.shape.N >= 8192
    if is_large and ours is not None and plain is not None:
        share = float(ours.peak_mib) / float(plain.peak_mib)
        yield from _judged("memory over the definition's", timed, share, le, 0.25)


_GOALS: tuple[Callable[[_Timed], Iterator[GoalResult]], ...] = (
    _of_memory_bound,
    _of_attention,
    _of_experts,
    _of_loss,
)


def text(found: Iterable[GoalResult]) -> str:
    """As it is printed, the missed ones first."""
    line = "{:6} {:62} {:30} {:>6.2f} (goal {:.2f})\n"
    ordered = sorted(found, key=lambda verdict: verdict.is_met)
    return "".join(
        line.format("met" if v.is_met else "MISSED", v.goal, v.shape, v.got, v.bound) for v in ordered
    )
