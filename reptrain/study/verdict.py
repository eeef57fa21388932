"""The answer of a study in one sentence, computed from its table."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from reptrain.study.collect import ArmRow
from reptrain.study.words import label, plain

# A rise of the held-out loss after its best that is worth a word, in nats per token.
_TELLING_RISE = 0.05
# With more settings than this, those between the second and the last go unnamed.
_MOST_NAMED = 4


@dataclass(frozen=True)
class Setting:
    """The finished runs of one setting: one for each seed."""

    rows: tuple[ArmRow, ...]

    @property
    def label(self) -> str:
        """The setting in words."""
        return label(self.rows[0])

    @property
    def loss(self) -> float:
        """Held-out loss where early stopping keeps the model: mean over seeds, nats per token."""
        return statistics.fmean(held_out(row) for row in self.rows)

    @property
    def spread(self) -> float | None:
        """Standard deviation of the same over seeds; None for one seed."""
        return statistics.stdev(map(held_out, self.rows)) if len(self.rows) > 1 else None

    @property
    def last(self) -> float:
        """Held-out loss at the end of training, likewise."""
        return statistics.fmean(_last(row) for row in self.rows)

    @property
    def best_epoch(self) -> float:
        """Epochs consumed at the best evaluation, likewise."""
        return statistics.fmean((row.best_tokens or 0) / (row.unique_tokens or 1) for row in self.rows)


def held_out(row: ArmRow) -> float:
    """Loss on `report` at the best evaluation on `select`, or on `select` where `report` was not scored."""
    best = row.best_report_nats if row.best_report_nats is not None else row.best_select_nats
    assert best is not None
    return best


def _last(row: ArmRow) -> float:
    last = row.report.last if row.report.last is not None else row.select.last
    assert last is not None
    return last


def settings(rows: Sequence[ArmRow]) -> list[Setting]:
    """Finished runs grouped by setting, the best first."""
    groups: dict[str, list[ArmRow]] = {}
    for row in rows:
        if row.state == "done" and row.best_select_nats is not None:
            groups.setdefault(json.dumps(row.values, sort_keys=True), []).append(row)
    return sorted((Setting(tuple(group)) for group in groups.values()), key=lambda setting: setting.loss)


def verdict(rows: Sequence[ArmRow]) -> str:
    """One sentence: the best setting, and what each other costs on held-out text."""
    ranked = settings(rows)
    num_done = sum(len(setting.rows) for setting in ranked)
    if not ranked:
        return f"None of the {len(rows)} arms is done yet."
    prefix = "" if num_done == len(rows) else f"{num_done} of {len(rows)} arms are done: "
    if len({row.measure for setting in ranked for row in setting.rows}) > 1:
        return prefix + _unranked(ranked)
    best, others = ranked[0], ranked[1:]
    budgets = {row.total_tokens for setting in ranked for row in setting.rows}
    if len(budgets) == 1 and (tokens := budgets.pop()) is not None:
        prefix += f"for the same {tokens:,} tokens of training, " if others else ""
    sentence = f"{prefix}{best.label} reached {best.loss:.2f} nats per token on held-out text"
    sentence += _over_seeds(best) + _rise(best, best)
    named = others if len(ranked) <= _MOST_NAMED else [others[0], others[-1]]
    for setting in named:
        worst = " (the worst)" if len(named) < len(others) and setting is others[-1] else ""
        sentence += f"; {setting.label}{worst} cost {setting.loss - best.loss:.2f} more"
        sentence += _over_seeds(setting) + _rise(setting, best)
    return sentence[0].upper() + sentence[1:] + "."


def _unranked(found: Sequence[Setting]) -> str:
    losses = "; ".join(f"{setting.label} {setting.loss:.2f}{_over_seeds(setting)}" for setting in found)
    return (
        "The arms differ in held-out text, objective or window, so that their losses do not compare."
        f" Each on its own, in nats per token: {losses}."
    )


def _over_seeds(setting: Setting) -> str:
    if setting.spread is None:
        return ""
    return f" (mean of {len(setting.rows)} seeds, standard deviation {setting.spread:.2f})"


def _rise(setting: Setting, best: Setting) -> str:
    """Where overfitting began, and what training on to the end cost, if it did."""
    if setting.last - setting.loss < _TELLING_RISE:
        return ""
    after = f" at best, after {plain(round(setting.best_epoch, 1))} epochs,"
    if setting is best:
        return f"{after} and rose to {setting.last:.2f} by the end"
    return f"{after} and {setting.last - best.loss:.2f} more at the end"
