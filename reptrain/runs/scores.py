"""The scores of an evaluation. A score is defined here and nowhere else.

`metrics.jsonl`, TensorBoard, `reptrain evaluate`, the table of a study and its report take every score from
`SCORES`. To add one, add a line there. Records that were written before it stay readable.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol


class ScoreSums(Protocol):
    """Sums over a set of windows, from which scores are computed."""

    @property
    def nats(self) -> float:
        """Weighted negative log-likelihood."""

    @property
    def loss_tokens(self) -> int:
        """Divisor of the nats: `tokens`, or the number of tokens covered by the ELBO."""

    @property
    def text_bytes(self) -> float:
        """UTF-8 bytes of the scored text; sentinels and EOS have none."""

    @property
    def correct(self) -> int:
        """Targets that the model ranks first."""

    @property
    def tokens(self) -> int:
        """Targets."""

    @property
    def raw_correct(self) -> int:
        """Targets ranked first that are tokens of the windows, not sentinels or an example's EOS."""

    @property
    def raw_tokens(self) -> int:
        """Targets that are tokens of the windows."""

    @property
    def expert_counts(self) -> Sequence[Sequence[int]]:
        """Tokens that select each expert, by sparse layer; empty for a dense model."""


@dataclass(frozen=True)
class ScoreType:
    """One score.

    Attributes:
        name: Its key in records, TensorBoard and JSON.
        unit: Its unit.
        better: Whether a lower or a higher value is better; None for a count, which is not plotted.
        label: Its heading in tables.
        compute: Its value from the sums; None if it has none, as scores of experts in a dense model.
        in_report: Whether tables of studies show it.
        always_recorded: Whether every record has it. False for a score that was added later.
    """

    name: str
    unit: str
    better: Literal["lower", "higher"] | None
    label: str
    compute: Callable[[ScoreSums], float | None]
    in_report: bool = True
    always_recorded: bool = False

    def check(self, value: float) -> None:
        """Raise a ValueError for a count that is no whole number."""
        if self.better is None and (not isinstance(value, int) or value < 0):
            raise ValueError(f"{self.name} must be a whole number, but got {value}")


def _bits_per_byte(sums: ScoreSums) -> float:
    """NaN if there is no text."""
    return sums.nats / math.log(2) / sums.text_bytes if sums.text_bytes else math.nan


def _dead_experts(sums: ScoreSums) -> int | None:
    """Over all sparse layers."""
    layers = sums.expert_counts
    return sum(count == 0 for layer in layers for count in layer) if layers else None


def _expert_peak(sums: ScoreSums) -> float | None:
    """The layer with the largest; 1 is a uniform load."""
    loads = [max(layer) * len(layer) / max(sum(layer), 1) for layer in sums.expert_counts]
    return max(loads, default=None)


_ALL = (
    # In reports, nats have columns of their own.
    ScoreType(
        "nats", "nats/token", "lower", "nats/token", lambda sums: sums.nats / sums.loss_tokens,
        in_report=False, always_recorded=True,
    ),
    ScoreType("bits_per_byte", "bits/byte", "lower", "bits/byte", _bits_per_byte, always_recorded=True),
    ScoreType(
        "accuracy", "share", "higher", "accuracy", lambda sums: sums.correct / max(sums.tokens, 1),
        in_report=False, always_recorded=True,
    ),
    ScoreType(
        "scored_tokens", "tokens", None, "scored tokens", lambda sums: sums.tokens,
        in_report=False, always_recorded=True,
    ),
    ScoreType(
        "raw_accuracy", "share", "higher", "raw accuracy",
        lambda sums: sums.raw_correct / max(sums.raw_tokens, 1),
        in_report=False, always_recorded=True,
    ),
    ScoreType(
        "raw_tokens", "tokens", None, "raw tokens", lambda sums: sums.raw_tokens,
        in_report=False, always_recorded=True,
    ),
    # Of sparse models only.
    ScoreType("dead_experts", "experts", "lower", "dead experts", _dead_experts),
    ScoreType("expert_peak", "times a uniform load", "lower", "largest expert load", _expert_peak),
)  # fmt: skip
SCORES: dict[str, ScoreType] = {score.name: score for score in _ALL}
"""Every score by name, in the order of records and tables. Nats come first: they are the loss."""


def compute_scores(sums: ScoreSums) -> dict[str, float]:
    """Every score that the sums have, by name."""
    values = {name: score.compute(sums) for name, score in SCORES.items()}
    return {name: value for name, value in values.items() if value is not None}


def check_names(names: Iterable[str]) -> None:
    """Raise a ValueError for an unknown score, or for one that every record has and that is missing."""
    given = set(names)
    unknown = sorted(given - SCORES.keys())
    missing = [name for name, score in SCORES.items() if score.always_recorded and name not in given]
    if unknown or missing:
        raise ValueError(f"{', '.join(unknown or missing)} {'is no score' if unknown else 'is missing'}")
