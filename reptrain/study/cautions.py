"""What makes the figures of a study doubtful: small held-out splits, and splits that disagree."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from reptrain.store import split_warnings
from reptrain.store.manifest import MANIFEST, read_manifest
from reptrain.study.collect import ArmRow
from reptrain.study.grid import arms
from reptrain.study.schema import StudyConfig
from reptrain.study.verdict import Setting, comparable, settings
from reptrain.study.words import label, plain

# Losses that differ by less are not told apart, in nats per token.
_NOTABLE = 0.05
# Held-out parts of one text differ by a few percent at most.
_LEVEL = 0.05


def cautions(study: StudyConfig, rows: Sequence[ArmRow]) -> list[str]:
    """Warnings for the page and the terminal; none where there is nothing to warn of."""
    stores = dict.fromkeys(
        Path(source.store) for arm in arms(study) for source in arm.config.sources.values()
    )
    # A store may be elsewhere by now: the study's own figures do not need it.
    there = [path for path in stores if (path / MANIFEST).exists()]
    small = [f"{path}: {text}" for path in there for text in split_warnings(read_manifest(path))]
    return [*small, *divergence(rows)]


def divergence(rows: Sequence[ArmRow]) -> list[str]:
    """Where the selection split and the report split disagree."""
    ranked = [setting for setting in settings(rows) if all(map(_has_both, setting.rows))]
    found = []
    if len(ranked) > 1 and comparable(ranked):
        by_select = min(ranked, key=_select)
        if by_select is not ranked[0] and by_select.loss - ranked[0].loss >= _NOTABLE:
            found.append(
                f"the selection split and the report split disagree on the best setting: {by_select.label} on"
                f" the first, {ranked[0].label} on the second."
            )
    several = len({row.seed for row in rows}) > 1
    for row in (row for setting in ranked for row in setting.rows):
        found += _of_row(row, label(row, seeds=several))
    return found


def _has_both(row: ArmRow) -> bool:
    return row.best_report_nats is not None and row.best_select_nats is not None


def _select(setting: Setting) -> float:
    return sum(row.best_select_nats or 0.0 for row in setting.rows) / len(setting.rows)


def _of_row(row: ArmRow, name: str) -> list[str]:
    assert row.best_report_nats is not None and row.best_select_nats is not None
    found = []
    after = [
        (nats, tokens)
        for tokens, nats in zip(row.report.tokens, row.report.nats, strict=True)
        if tokens > 0 and math.isfinite(nats)
    ]
    lowest, tokens = min(after, default=(row.best_report_nats, 0))
    if row.best_report_nats - lowest >= _NOTABLE:
        at = plain(round(tokens / (row.unique_tokens or 1), 1))
        found.append(
            f"{name}: the selection split chooses an evaluation with {row.best_report_nats:.2f} nats per"
            f" token on the report split, whose lowest is {lowest:.2f}, after {at} epochs."
        )
    apart = row.best_report_nats - row.best_select_nats
    if abs(apart) > _LEVEL * row.best_select_nats:
        found.append(
            f"{name}: {row.best_select_nats:.2f} nats per token on the selection split, but"
            f" {row.best_report_nats:.2f} on the report split: the two may hold different kinds of text."
        )
    return found
