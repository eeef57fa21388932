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
    """Alternative whose ratio must reach ``bound``; `PEERS`: all except those in `YARDSTICKS`. If empty,
    the figure of `OURS` must not exceed ``bound``."""
    cause: str = ""
    """Why the goal is missed; empty if it is met or the reason is unknown."""
    at_least: bool = False
    """Whether ``bound`` is the smallest figure of `OURS`, not the largest."""


PEERS = "all others"
YARDSTICKS = frozenset(
    {
        "NumPy gather",
        "SentencePiece",
        "SentencePiece, file to file",
        "bare torch loop",
        "cold start",
        "a quarter of the tokens",
    }
)
"""Lower bounds of the work, not alternatives."""

TOKENIZED, NEAR = "JSON lines of 2 kB", ", near-duplicates removed"
"""The cases of the tokenizing benchmark."""

_READ = "shuffled reading"
_TOKENIZED = "the text is parsed twice and hashed, and the second process starts"
_TOKENIZED_NEAR = f"{_TOKENIZED}; signatures"
_CPU = "reptrain train on a CPU, eager"
_COMMAND = "CPU time to completion"
_STEP = "80 % of the CPU time is in torch's matrix products, attention and softmax, in both"
_BARE = "reason unknown; single steps differ by 10 %, and DeepSpeed's own code takes less than 2 %"
_EMULATED = "the processor has no bf16 instructions: a step takes several times as long as in fp32, in both"
_DROPPED = "attention with dropout stores its weights, torch's fused attention does not"

# Of peak, in percent: the first of each pair on an H100 or H200, the second on an A100.
_MFU = {
    "t5-base, 128 windows": ("MFU, products", 35, 45),
    "decoder-125m, 32 windows": ("MFU, products", 40, 50),
    "decoder-560m, 16 windows": ("MFU, products", 50, 76),
    "decoder-1b, 16 windows": ("MFU, products", 50, 62),
}
_CARDS = {"NVIDIA H200": 0, "NVIDIA H100 80GB HBM3": 0, "NVIDIA A100-SXM4-80GB": 1}

GOALS = (
    *(
        Goal("data", f"windows of {length} tokens, 134M tokens", _READ, bound, against, cause)
        for length in (512, 2048)
        for bound, against, cause in (
            (3.0, PEERS, "the others need no search for documents"),
            (
                0.5,
                "NumPy gather",
                "each window is searched in the order of documents and copied from about two of them",
            ),
        )
    ),
    *(
        Goal(
            "data",
            case,
            "examples",
            5.0,
            "batched NumPy",
            "ten rounds of Philox for every token, a selection per window, and copies of int64 rows",
        )
        for case in ("span corruption, 568 tokens", "UL2, 512 tokens")
    ),
    *(
        Goal("start", f"reptrain {command}", _COMMAND, 0.5, cause="imports, pydantic most of all")
        for command in ("--help", "store show", "config show", "sizes", "runs")
    ),
    Goal("start", "1e+08 tokens, 64 epochs", "time to the first batch", 0.3),
    Goal("start", "1e+08 tokens, 64 epochs", "private memory added by the first batch", 64),
    Goal("start", _CPU, "time to the first step", 6, cause="imports of torch and DeepSpeed"),
    Goal("start", f"{_CPU}, resumed", "time to the first step", 0.5, "cold start"),
    *(
        goal
        for precision, cause in (("fp32", _STEP), ("bf16, compiled blocks", _EMULATED))
        for size in ("decoder 1.4M", "T5 1.6M", "decoder 20M", "T5 20M")
        for goal in (
            Goal("step", f"{size}, {precision}", "training", 0.97, "bare torch loop", _BARE),
            Goal("step", f"{size}, {precision}", "training", 1.3, "transformers Trainer", cause),
            Goal(
                "step",
                f"{size}, {precision}, dropout at every site",
                "training",
                0.95,
                "the same without dropout",
                _DROPPED,
            ),
        )
    ),
    Goal("step", "MoE of 8 experts, top 1, decoder 1.4M, fp32", "training", 0.8, "dense twin"),
    Goal(
        "step",
        "decoder 1.4M, fp32, two runs of one thread at once",
        "training",
        1.5,
        "one run of two threads",
        "a second thread makes one run 1.4 times as fast, so two undisturbed runs would reach 1.4",
    ),
    *(
        Goal("train", f"{case}, bf16, {card}", metric, bounds[place], at_least=True)
        for case, (metric, *bounds) in _MFU.items()
        for card, place in _CARDS.items()
    ),
    Goal("proof", "store verify, 32M tokens", "time per million tokens", 0.8, "a quarter of the tokens"),
    *(
        Goal("tokenize", case, "tokenizing", bound, against, cause)
        for case, cause in ((TOKENIZED, _TOKENIZED), (f"{TOKENIZED}{NEAR}", _TOKENIZED_NEAR))
        for bound, against in ((0.9, "SentencePiece"), (0.9, "SentencePiece, file to file"), (1.4, PEERS))
    ),
)


class Verdict(NamedTuple):
    """A goal and what was measured."""

    goal: Goal
    measured: float
    what: str
    """The implementation that decides: the fastest alternative, or `OURS`."""
    met: bool


def verdicts(rows: Sequence[Row], goals: Iterable[Goal] = GOALS) -> list[Verdict]:
    """The goals for which the rows have a figure.

    Args:
        rows: Current rows.
        goals: Goals to check.
    """
    return [verdict for goal in goals if (verdict := _verdict(goal, rows)) is not None]


def _verdict(goal: Goal, rows: Sequence[Row]) -> Verdict | None:
    mine = [row for row in rows if (row.bench, row.case, row.metric) == (goal.bench, goal.case, goal.metric)]
    if not goal.against:
        ours = [float(row.median) for row in mine if row.what == OURS and row.median]
        if not ours:
            return None
        return Verdict(goal, ours[0], OURS, ours[0] >= goal.bound if goal.at_least else ours[0] <= goal.bound)
    ratios = [
        (float(row.ratio), row.what)
        for row in mine
        if row.ratio and (row.what == goal.against or (goal.against == PEERS and row.what not in YARDSTICKS))
    ]
    if not ratios:
        return None
    ratio, what = min(ratios)
    return Verdict(goal, ratio, what, ratio >= goal.bound)
