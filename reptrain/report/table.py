"""The rows of the report's table, as text."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from reptrain.report.figures import held_out_curve
from reptrain.report.svg import NUM_COLORS
from reptrain.runs.scores import SCORES, ScoreType
from reptrain.study.collect import ArmRow
from reptrain.study.verdict import SettingRuns, held_out, settings, winner
from reptrain.study.words import label, plain

_UNKNOWN = "–"


@dataclass(frozen=True)
class ArmLine:
    """One line of the table.

    Attributes:
        label: Label of the arm.
        color: Number of its color on the page, from 1; 0: none.
        state: State of the run.
        reason: Why it is not done, if known.
        cells: (heading, value) pairs, the same headings in every line.
        is_best: Whether its setting has the lowest held-out loss (see `reptrain.study.verdict.winner`).
    """

    label: str
    color: int
    state: str
    reason: str
    cells: tuple[tuple[str, str], ...]
    is_best: bool


def arm_lines(rows: Sequence[ArmRow], *, colored: bool = True) -> list[ArmLine]:
    """The lines of the table, in the order of the arms.

    Args:
        rows: The table of the study.
        colored: Whether each line has a color.
    """
    several = len({row.seed for row in rows}) > 1
    best = winner(settings(rows))
    best_arms = {row.arm for row in best.rows} if best else set()
    # Columns that no arm has, as those of experts in a study of dense models, are left out.
    recorded = {name for row in rows for name in row.best_scores or {}}
    shown = [
        score
        for score in SCORES.values()
        if score.in_report and (score.always_recorded or score.name in recorded)
    ]
    return [
        ArmLine(
            label=label(row, seeds=several),
            color=index % NUM_COLORS + 1 if colored else 0,
            state=row.state,
            reason=row.reason or "",
            cells=_cells(row, shown),
            is_best=row.arm in best_arms,
        )
        for index, row in enumerate(rows)
    ]


def setting_lines(rows: Sequence[ArmRow]) -> list[ArmLine]:
    """A line for each setting with finished runs, as means over its seeds, in the order of the arms."""
    ranked = settings(rows)
    best = winner(ranked)
    order = {row.arm: place for place, row in enumerate(rows)}
    return [
        ArmLine(
            label=setting.label,
            color=0,
            state="done",
            reason="",
            cells=_mean_cells(setting),
            is_best=setting is best,
        )
        for setting in sorted(ranked, key=lambda setting: order[setting.rows[0].arm])
    ]


def _mean_cells(setting: SettingRuns) -> tuple[tuple[str, str], ...]:
    exact = sum(bool(row.audit_exact) for row in setting.rows)
    return (
        ("seeds", f"{len(setting.rows)}"),
        ("selected held-out", _figure(setting.loss)),
        ("deviation", _figure(setting.spread)),
        ("at epoch", plain(round(setting.best_epoch, 1))),
        ("final held-out", _mean([held_out_curve(row).last for row in setting.rows])),
        ("final training", _mean([row.probe.last for row in setting.rows])),
        ("gap", _mean([row.gap_nats for row in setting.rows])),
        ("exact", f"{exact} of {len(setting.rows)}"),
    )


def _mean(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return _figure(statistics.fmean(known) if len(known) == len(values) else None)


def _cells(row: ArmRow, shown: Sequence[ScoreType]) -> tuple[tuple[str, str], ...]:
    scores = row.best_scores or {}
    epoch = row.best_tokens / row.unique_tokens if row.best_tokens and row.unique_tokens else None
    return (
        ("before training", _figure(row.start_nats)),
        ("selected held-out", _figure(held_out(row) if row.best_select_nats is not None else None)),
        *((score.label, _figure(scores.get(score.name))) for score in shown),
        ("at epoch", plain(round(epoch, 1)) if epoch is not None else _UNKNOWN),
        ("final held-out", _figure(held_out_curve(row).last)),
        ("final training", _figure(row.probe.last)),
        ("gap", _figure(row.gap_nats)),
        ("tokens/s", f"{row.tokens_per_s:,.0f}" if row.tokens_per_s else _UNKNOWN),
        ("audit", _audit(row)),
    )


def _figure(value: float | None) -> str:
    return f"{value:.3f}" if value is not None else _UNKNOWN


def _audit(row: ArmRow) -> str:
    if row.audit_exact is None:
        return "not audited"
    if row.audit_cannot_say:
        return "cannot say"
    if not row.audit_exact:
        return "as planned, mixed" if row.audit_as_planned else "not exact"
    proved = ", proved to the model's inputs" if row.audit_level == "inputs" else ""
    return f"{'exact' if row.state == 'done' else 'exact so far'}{proved}"
