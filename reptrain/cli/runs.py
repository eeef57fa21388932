"""Commands for single runs."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from reptrain.cli.common import DONE, PREEMPTED, app, config_app, join_launched_ranks, show
from reptrain.cli.options import AsJson, ConfigFile, MaxMinutes, Out, Overrides


@config_app.command("show")
def config_show(
    config: ConfigFile,
    overrides: Overrides = None,
    as_json: AsJson = False,
    plot: Annotated[
        Path | None,
        typer.Option(help="Also plot the learning rate and every schedule to a .png, .svg or .pdf file."),
    ] = None,
    parameters: Annotated[
        bool,
        typer.Option(
            "--parameters", help="Print each parameter's optimizer, learning rate and weight decay instead."
        ),
    ] = False,
) -> None:
    """Print a run's configuration with every default filled in."""
    from reptrain.config import config_fingerprint, load_run_config
    from reptrain.config.load import dump_yaml

    if plot is not None:
        from reptrain.report.schedules import draw_schedules

        draw_schedules(load_run_config(config, overrides or []), plot)
    if parameters:
        _show_parameters(config, overrides or [], as_json=as_json)
        return
    resolved = load_run_config(config, overrides or [])
    data = resolved.model_dump(mode="json")
    text = f"{dump_yaml(data)}# config fingerprint: {config_fingerprint(resolved)}"
    show(data, text, as_json=as_json)


def _show_parameters(config: Path, overrides: list[str], *, as_json: bool) -> None:
    from reptrain.sizes.subject import load_subject, trainable
    from reptrain.training.parameter_table import treatments, treatments_text

    subject = load_subject(config, overrides)
    run, model = trainable(subject, str(config))
    rows = treatments(model, run.optimizer, vocab_size=subject.vocab_size)
    show([row._asdict() for row in rows], treatments_text(rows), as_json=as_json)


@config_app.command("schema")
def config_schema(
    kind: Annotated[
        Literal["run", "finetune", "task", "study"],
        typer.Argument(
            metavar="KIND", help="Kind of configuration: of a run, a fine-tuning run, a task or a study."
        ),
    ] = "run",
) -> None:
    """Print the JSON Schema of a configuration."""
    from pydantic import BaseModel

    from reptrain.config import RunConfig
    from reptrain.config.finetune import FinetuneConfig
    from reptrain.config.task import TaskConfig
    from reptrain.study.schema import StudyConfig

    schemas: dict[str, type[BaseModel]] = {
        "run": RunConfig,
        "finetune": FinetuneConfig,
        "task": TaskConfig,
        "study": StudyConfig,
    }
    typer.echo(json.dumps(schemas[kind].model_json_schema(), indent=2))


@app.command()
def train(
    config: ConfigFile,
    overrides: Overrides = None,
    out: Out = None,
    max_minutes: MaxMinutes = None,
    resume: Annotated[
        bool, typer.Option(help="Resume the run, or refuse a folder that has a checkpoint.")
    ] = True,
) -> None:
    """Train a model in one process, or resume its run.

    Started by deepspeed, torchrun, srun or mpirun, the command joins their ranks. Repeated, it resumes from
    the newest checkpoint, on any number of ranks and at any ZeRO stage. A stop signal or --max-minutes saves
    a checkpoint and exits with code 3.
    """
    # Torch reads it at import. Spinning threads slow a CPU run down threefold if another process uses the
    # same cores, and gain nothing if none does.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from reptrain_launcher.rank_environment import is_main_rank, read_rank_environment

    join_launched_ranks()
    # Before torch is loaded, which takes seconds.
    read_rank_environment()
    from reptrain.config import load_run_config
    from reptrain.distributed.stop import StopRequest
    from reptrain.runs.folder import refuse_to_resume
    from reptrain.training.loop import train as run
    from reptrain.training.summary import closing_text

    resolved = load_run_config(config, overrides or [])
    folder = out or Path("runs") / str(resolved.name)
    if not resume:
        refuse_to_resume(folder)
    stop = StopRequest(max_minutes)
    stop.catch()
    try:
        result = run(resolved, folder, stop=stop)
    except BaseException:
        stop.let_go()
        raise
    if result.state == "preempted":
        # A second signal must not change the exit code.
        stop.ignore()
    else:
        stop.let_go()
    if is_main_rank():
        why = f" ({result.reason})" if result.reason else ""
        typer.echo(f"{result.state}{why}: {result.steps} steps in {result.run}")
        if result.state == "preempted":
            typer.echo("The same command resumes the run.")
        else:
            typer.echo(closing_text(result.run))
    raise typer.Exit(PREEMPTED if result.state == "preempted" else DONE)
