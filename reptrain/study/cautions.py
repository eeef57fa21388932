"""Warnings about the results of a study: small held-out splits, and splits that disagree."""

from __future__ import annotations

import math
from collections.abc import Sequence

from reptrain.store import local_folder, split_warnings
from reptrain.store.manifest import MANIFEST, read_manifest
from reptrain.study.collect import ArmRow
from reptrain.study.grid import arms
from reptrain.study.schema import StudyConfig
from reptrain.study.verdict import SettingRuns, comparable, settings
from reptrain.study.words import label, plain

# Smaller differences of losses are ignored, in nats per token.
_NOTABLE = 0.05
# Held-out splits of one text differ by a few percent at most, relative.
_SPLIT_TOLERANCE = 0.05


def cautions(study: StudyConfig, rows: Sequence[ArmRow]) -> list[str]:
    """Warnings for the report and the terminal."""
    stores = dict.fromkeys(
        local_folder(source.store) for arm in arms(study) for source in arm.config.sources.values()
    )
    # A store may have moved: the results do not need it.
    found_stores = [path for path in stores if (path / MANIFEST).exists()]
    small = [f"{path}: {text}" for path in found_stores for text in split_warnings(read_manifest(path))]
    return [*small, *divergence(rows)]


def divergence(rows: Sequence[ArmRow]) -> list[str]:
    """Warnings where the selection split and the report split disagree."""
    ranked = [setting for setting in settings(rows) if all(map(_has_both, setting.rows))]
    warnings = []
    if len(ranked) > 1 and comparable(ranked):
        by_select = min(ranked, key=_select)
        if by_select is not ranked[0] and by_select.loss - ranked[0].loss >= _NOTABLE:
            warnings.append(
                f"the selection split and the report split disagree on the best setting:"
                f" {by_select.label} and {ranked[0].label}."
            )
    several = len({row.seed for row in rows}) > 1
    for row in (row for setting in ranked for row in setting.rows):
        warnings += _row_warnings(row, label(row, seeds=several))
    return warnings


def _has_both(row: ArmRow) -> bool:
    return row.best_report_nats is not None and row.best_select_nats is not None


def _select(setting: SettingRuns) -> float:
    return sum(row.best_select_nats or 0.0 for row in setting.rows) / len(setting.rows)


def _row_warnings(row: ArmRow, name: str) -> list[str]:
    assert row.best_report_nats is not None and row.best_select_nats is not None
    warnings = []
    after = [
        (nats, tokens)
        for tokens, nats in zip(row.report.tokens, row.report.nats, strict=True)
        if tokens > 0 and math.isfinite(nats)
    ]
    lowest, tokens = min(after, default=(row.best_report_nats, 0))
    if row.best_report_nats - lowest >= _NOTABLE:
        at = plain(round(tokens / (row.unique_tokens or 1), 1))
        warnings.append(
            f"{name}: at the evaluation that the selection split chooses, the report split has"
            f" {row.best_report_nats:.2f} nats per token; its lowest is {lowest:.2f}, after {at} epochs."
        )
    apart = row.best_report_nats - row.best_select_nats
    if abs(apart) > _SPLIT_TOLERANCE * row.best_select_nats:
        warnings.append(
            f"{name}: {row.best_select_nats:.2f} nats per token on the selection split, but"
            f" {row.best_report_nats:.2f} on the report split: the two may hold different kinds of text."
        )
    return warnings
