"""Sweep settings with Optuna."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from reptrain.cli.common import show, study_app
from reptrain.cli.options import AsJson


@study_app.command("sweep")
def study_sweep(
    study: Annotated[Path, typer.Argument(help="A study's YAML file without axes, with the model to tune.")],
    over: Annotated[
        list[str],
        typer.Option("--over", metavar="KEY=LOW..HIGH|KEY=A,B,...", help="A setting; may be repeated."),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of the sweep; it may be shared.")],
    trials: Annotated[int, typer.Option("--trials", min=1, help="Trials in all.")] = 16,
    jobs: Annotated[
        int | None,
        typer.Option("--jobs", min=1, help="Runs at once.", show_default="one per core, or per GPU"),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the sampler.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Tune settings on the selection split with Optuna: each trial runs all seeds of the study.

    Lists of values are searched as a grid, ranges by Optuna's sampler, in the logarithm if they are positive.
    The same command resumes. Several machines may run it on one shared folder.
    """
    from reptrain.study import load_study
    from reptrain.study.local_pool import LocalPool
    from reptrain.study.sweep import parse_space, run_sweep

    result = run_sweep(
        load_study(study),
        out,
        [parse_space(text) for text in over],
        num_trials=trials,
        seed=seed,
        executor=LocalPool(jobs),
    )
    lines = [
        f"{loss:.4f} nats: " + ", ".join(f"{key}={value:.4g}" for key, value in values.items())
        for values, loss in result.trials
    ]
    if result.num_failed:
        lines.append(f"{result.num_failed} trials failed")
    shown = {
        "trials": [{"values": dict(values), "loss_select_best_nats": loss} for values, loss in result.trials],
        "num_failed": result.num_failed,
    }
    show(shown, "\n".join(lines), as_json=as_json)
