"""Sweep settings with Optuna."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from reptrain.cli.common import PREEMPTED, show, study_app
from reptrain.cli.options import AsJson
from reptrain.cli.study_proxy import show_study

if TYPE_CHECKING:
    from reptrain.study import StudyConfig
    from reptrain.study.local_pool import LocalPool
    from reptrain.study.stand_in import StandIn
    from reptrain.study.sweep import Space, SweepTrials


@study_app.command("sweep")
def study_sweep(
    study: Annotated[
        Path,
        typer.Argument(
            metavar="STUDY",
            help="A study's YAML file without axes: one model to tune, or arms for proxy and target.",
        ),
    ],
    over: Annotated[
        list[str],
        typer.Option(
            "--over",
            metavar="KEY=LOW..HIGH|KEY=A,B,...",
            help="A setting with its range or its values; repeatable.",
        ),
    ],
    out: Annotated[
        Path, typer.Option("--out", metavar="DIR", help="Folder of the sweep; several machines can share it.")
    ],
    trials: Annotated[int, typer.Option("--trials", min=1, help="Total number of trials.")] = 16,
    jobs: Annotated[
        int | None,
        typer.Option(
            "--jobs", min=1, help="Number of runs at a time.", show_default="one per core, or per GPU"
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the sampler.")] = 0,
    proxy: Annotated[
        str | None, typer.Option("--proxy", metavar="ARM", help="Arm to tune in place of --target.")
    ] = None,
    target: Annotated[
        str | None,
        typer.Option("--target", metavar="ARM", help="Arm to train at the best value of the proxy."),
    ] = None,
    judge: Annotated[
        bool, typer.Option("--judge", help="Train the target at all values, to evaluate the proxy.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Tune settings on the selection split with Optuna.

    Each trial runs all seeds of the study.

    Lists of values are searched as a grid, ranges by Optuna's sampler, in the logarithm if they are positive.
    With --proxy and --target, one setting is tuned on the proxy. Then the target is trained in the study
    OUT/target, or with --judge in OUT/judged, which has a report. Repeat the command to resume. Several
    machines may run a sweep in one shared folder.
    """
    from reptrain.study import load_study
    from reptrain.study.local_pool import LocalPool
    from reptrain.study.sweep import parse_space, run_sweep

    if (proxy is None) != (target is None) or (judge and target is None):
        raise typer.BadParameter(
            "--proxy and --target must be used together, and --judge only with them", param_hint="--proxy"
        )
    spaces = [parse_space(text) for text in over]
    loaded, executor = load_study(study), LocalPool(jobs)
    if proxy is not None and target is not None:
        if len(spaces) != 1 or as_json:
            raise typer.BadParameter("works with one --over and without --json", param_hint="--proxy")
        from reptrain.study.stand_in import StandIn

        means = StandIn(proxy, target, judge=judge, num_trials=trials, seed=seed)
        raise typer.Exit(_stand_in(loaded, out, spaces[0], means, executor))
    result = run_sweep(loaded, out, spaces, num_trials=trials, seed=seed, executor=executor)
    shown = {
        "trials": [{"values": dict(values), "loss_select_best_nats": loss} for values, loss in result.trials],
        "num_failed": result.num_failed,
    }
    show(shown, _text(result), as_json=as_json)


def _text(result: SweepTrials) -> str:
    lines = [
        f"{loss:.4f} nats: " + ", ".join(f"{key}={value:.4g}" for key, value in values.items())
        for values, loss in result.trials
    ]
    return "\n".join([*lines, *([f"{result.num_failed} trials failed"] if result.num_failed else [])])


def _stand_in(study: StudyConfig, out: Path, space: Space, means: StandIn, executor: LocalPool) -> int:
    """Tune the proxy, train the target, and print how well the proxy predicts it."""
    from reptrain.cli.study_run import RunMeans, run_and_report
    from reptrain.study.looks import Place
    from reptrain.study.stand_in import stand_in

    result, prepared = stand_in(study, out, space, means, executor=executor)
    typer.echo(_text(result))
    if prepared is None:
        return PREEMPTED
    place = Place(prepared, means.folder(out))
    code = run_and_report([place], [RunMeans(executor, None, 1, executor.jobs)])
    if means.judge:
        show_study(means.folder(out), as_json=False)
    return code
