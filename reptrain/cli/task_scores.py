"""Rows of `reptrain evaluate` for downstream tasks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any


def rows_on_task(
    runs: Sequence[Path],
    task: Path,
    settings: Sequence[str],
    *,
    step: int | None,
    max_examples: int | None,
    device: str,
) -> list[dict[str, Any]]:
    """How runs do on a task as they are."""
    from reptrain.tasks.evaluate import score_on_task
    from reptrain.tasks.finetune import load_finetune

    config = load_finetune(task, settings)
    given = {} if max_examples is None else {"report_examples": max_examples}
    limits = config.limits.model_copy(update=given)
    rows = []
    for run in runs:
        found = score_on_task(run, config.task, limits, step=step, device=device)
        score = found.score
        rows.append(
            {"run": found.run, "step": found.step, "task": config.task.name, "examples": score.examples}
            | score.figures
            | {"cut_inputs": score.cut_inputs, "cut_targets": score.cut_targets}
        )
    return rows


def rows_on_lm_eval(
    runs: Sequence[Path],
    tasks: Sequence[str],
    *,
    include: Path | None,
    step: int | None,
    max_examples: int | None,
    device: str,
) -> list[dict[str, Any]]:
    """How runs do on tasks of lm-eval."""
    from reptrain.distributed.world import choose_device
    from reptrain.evaluation.lm_eval import score_by_lm_eval

    chosen = choose_device(device).type
    return [
        score._asdict()
        for run in runs
        for score in score_by_lm_eval(
            run, tasks, include=include, step=step, limit=max_examples, device=chosen
        )
    ]
