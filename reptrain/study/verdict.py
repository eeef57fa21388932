"""The answer of a study in a few sentences, computed from its table."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from reptrain.study.collect import ArmRow
from reptrain.study.words import label, plain

# Smaller changes of the held-out loss between evaluations are not mentioned, in nats per token.
_NOTABLE = 0.05
# Losses are printed with two decimals.
_EQUAL = 0.005
# With more settings than this, only the best two and the worst are named.
_MOST_NAMED = 4
# Fewer seeds do not show the spread.
_FEWEST_SEEDS = 3


@dataclass(frozen=True)
class SettingRuns:
    """The finished runs of one setting, one per seed."""

    rows: tuple[ArmRow, ...]

    @property
    def label(self) -> str:
        """The setting in words."""
        return label(self.rows[0])

    @property
    def losses(self) -> list[float]:
        """Held-out loss at the selected evaluation, by seed, in nats per token."""
        return [held_out(row) for row in self.rows]

    @property
    def loss(self) -> float:
        """Their mean."""
        return statistics.fmean(self.losses)

    @property
    def spread(self) -> float | None:
        """Their standard deviation; None for one seed."""
        return statistics.stdev(self.losses) if len(self.rows) > 1 else None

    @property
    def start(self) -> float | None:
        """Mean held-out loss before training; None if it is not known."""
        starts = [row.start_nats for row in self.rows if row.start_nats is not None]
        return statistics.fmean(starts) if starts else None

    @property
    def improved(self) -> bool:
        """Whether training lowered the held-out loss."""
        return self.start is None or not self.loss >= self.start

    @property
    def last(self) -> float:
        """Mean held-out loss at the end of training; NaN if a run diverged."""
        return statistics.fmean(_last(row) for row in self.rows)

    @property
    def best_epoch(self) -> float:
        """Mean number of epochs consumed at the selected evaluation."""
        return statistics.fmean((row.best_tokens or 0) / (row.unique_tokens or 1) for row in self.rows)


def held_out(row: ArmRow) -> float:
    """Loss on `report` at the best evaluation on `select`, or on `select` if `report` was not scored."""
    best = row.best_report_nats if row.best_report_nats is not None else row.best_select_nats
    return math.nan if best is None else best


def _last(row: ArmRow) -> float:
    last = row.report.last if row.report.last is not None else row.select.last
    return math.nan if last is None else last


def settings(rows: Sequence[ArmRow]) -> list[SettingRuns]:
    """Finished runs with a finite loss, grouped by setting, the best first."""
    groups: dict[str, list[ArmRow]] = {}
    for row in rows:
        if row.state == "done" and math.isfinite(held_out(row)):
            groups.setdefault(json.dumps(row.values, sort_keys=True), []).append(row)
    return sorted((SettingRuns(tuple(group)) for group in groups.values()), key=lambda setting: setting.loss)


def comparable(ranked: Sequence[SettingRuns]) -> bool:
    """Whether all losses have the same measure."""
    return len({row.measure for setting in ranked for row in setting.rows}) <= 1


def winner(ranked: Sequence[SettingRuns]) -> SettingRuns | None:
    """The setting with the lowest loss; None if it is the only one, two are equal, or none improved."""
    if len(ranked) < 2 or not comparable(ranked) or not ranked[0].improved:
        return None
    return ranked[0] if ranked[1].loss - ranked[0].loss >= _EQUAL else None


def verdict(rows: Sequence[ArmRow]) -> str:
    """The best setting, the held-out cost of each other, and the differences that cannot be judged."""
    ranked = settings(rows)
    done = [row for row in rows if row.state == "done"]
    if not done:
        return "The run is not done yet." if len(rows) == 1 else f"None of the {len(rows)} runs is done yet."
    missing = f"{len(done)} of {len(rows)} runs are done: " if len(done) < len(rows) else ""
    lost = [label(row, seeds=_has_seeds(rows)) for row in done if not math.isfinite(held_out(row))]
    if not ranked:
        return _capital(f"{missing}no run has a finite held-out loss after training.")
    sentences = [_comparison(ranked, missing)]
    if lost:
        sentences.append(f"No finite held-out loss after training: {', '.join(lost)}.")
    if len(ranked) > 1 and comparable(ranked):
        sentences += _doubts(ranked)
    return " ".join(sentences)


def _comparison(ranked: Sequence[SettingRuns], missing: str) -> str:
    if not comparable(ranked):
        return missing + _unranked(ranked)
    if not any(setting.improved for setting in ranked):
        return _capital(missing + _none_improved(ranked))
    best, others = ranked[0], ranked[1:]
    budgets = {row.total_tokens for setting in ranked for row in setting.rows}
    if len(budgets) == 1 and (tokens := budgets.pop()) is not None:
        missing += f"for the same {tokens:,} tokens of training, " if others else ""
    sentence = f"{missing}{best.label} reached {best.loss:.2f} nats per token on held-out text"
    sentence += _over_seeds(best) + _course(best, best)
    for setting in _named(ranked)[1:]:
        worst = " (the worst)" if len(ranked) > _MOST_NAMED and setting is others[-1] else ""
        more = setting.loss - best.loss
        cost = f"cost {more:.2f} more" if more >= _EQUAL else "reached the same to two decimals"
        sentence += f"; {setting.label}{worst} {cost}{_over_seeds(setting)}{_course(setting, best)}"
    return _capital(sentence) + "."


def _named(ranked: Sequence[SettingRuns]) -> list[SettingRuns]:
    return [*ranked] if len(ranked) <= _MOST_NAMED else [ranked[0], ranked[1], ranked[-1]]


def _none_improved(ranked: Sequence[SettingRuns]) -> str:
    losses = "; ".join(
        f"{setting.label} {setting.start:.2f} before training, {setting.loss:.2f} after" for setting in ranked
    )
    return (
        "training did not help: no setting has a lower held-out loss than before its first step."
        f" In nats per token: {losses}. Train longer, on more text, or with another learning rate."
    )


def _unranked(ranked: Sequence[SettingRuns]) -> str:
    losses = "; ".join(f"{setting.label} {setting.loss:.2f}{_over_seeds(setting)}" for setting in ranked)
    return (
        "The arms differ in held-out text, objective or window, so their losses are not comparable."
        f" In nats per token: {losses}."
    )


def _over_seeds(setting: SettingRuns) -> str:
    if setting.spread is None:
        return ""
    return f" (mean of {len(setting.rows)} seeds, standard deviation {setting.spread:.2f})"


def _course(setting: SettingRuns, best: SettingRuns) -> str:
    """How the selected evaluation differs from the end of training, or that it does not beat the start."""
    if not setting.improved:
        return f", no better than before training ({setting.start:.2f})"
    if not math.isfinite(setting.last):
        return ", and diverged by the end"
    change = setting.last - setting.loss
    if -_EQUAL < change < _NOTABLE:
        return ""
    at = f"after {plain(round(setting.best_epoch, 1))} epochs,"
    if change < 0:
        return f" where the selection split is lowest, {at} and {setting.last:.2f} at the end"
    if setting is best:
        return f" at best, {at} and rose to {setting.last:.2f} by the end"
    return f" at best, {at} and {setting.last - best.loss:.2f} more at the end"


def _doubts(ranked: Sequence[SettingRuns]) -> list[str]:
    """The differences that cannot be judged, and why."""
    fewest = min(len(setting.rows) for setting in ranked)
    if fewest == 1:
        which = (
            "each setting has" if all(len(setting.rows) == 1 for setting in ranked) else "some settings have"
        )
        return [f"Not judged: {which} one seed only, so a difference may be chance."]
    if fewest < _FEWEST_SEEDS:
        return [f"Not judged: {fewest} seeds a setting are too few; a difference may be chance."]
    best, *others = _named(ranked)
    mixed = [setting.label for setting in others if min(setting.losses) <= max(best.losses)]
    if not mixed:
        return []
    return [f"Not judged: the losses of the seeds of {best.label} overlap with those of {', '.join(mixed)}."]


def _has_seeds(rows: Sequence[ArmRow]) -> bool:
    return len({row.seed for row in rows}) > 1


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]
