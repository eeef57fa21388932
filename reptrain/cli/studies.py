"""The demo, and the commands for studies."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from reptrain.cli.common import DONE, NO, app, show, study_app
from reptrain.cli.options import AsJson


@app.command()
def demo(
    text: Annotated[
        list[Path] | None,
        typer.Option(
            "--text",
            help="Your own files or folders; may be repeated.",
            show_default="Python's documentation",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="DIR", help="Folder of the demo.", show_default="runs/demo, or runs/demo-quick"
        ),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Less text and 1/32 of the training: under a minute.")
    ] = False,
    store_only: Annotated[bool, typer.Option("--store-only", help="Build the token store and stop.")] = False,
) -> None:
    """Train one model for 4, 16 and 64 epochs on the same budget, audit the runs, and write a report."""
    from reptrain.cli.study_run import run_and_report
    from reptrain.demo import make_demo_store, make_demo_study
    from reptrain.store import open_store, split_warnings
    from reptrain.study.local_pool import LocalPool

    folder = out or Path("runs") / ("demo-quick" if quick else "demo")
    store = make_demo_store(folder, text=text or [], quick=quick)
    if not store_only:
        # One after another: on all cores, each run computes what it computed before.
        raise typer.Exit(run_and_report(make_demo_study(store, quick=quick), folder, executor=LocalPool(1)))
    for warning in split_warnings(open_store(store).manifest):
        typer.echo(f"WARNING: {warning}", err=True)
    typer.echo(f"store: {store}")


@study_app.command("run")
def study_run(
    study: Annotated[Path, typer.Argument(help="A study's YAML file.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="Overrides of the study (seeds=[0,1]) or of every run (train.total_tokens=64epochs).",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            help="Folder of the study.",
            show_default="runs/NAME",
        ),
    ] = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            "--jobs",
            min=1,
            help="Runs at once, with the cores divided among them.",
            show_default="one per core, or per GPU; under Slurm 256",
        ),
    ] = None,
    gpus: Annotated[
        int | None,
        typer.Option(
            "--gpus",
            min=1,
            help="GPUs of each run, under Slurm on each of its nodes.",
            show_default="1 if this machine has any; under Slurm none",
        ),
    ] = None,
    slurm: Annotated[
        list[str] | None,
        typer.Option(
            "--slurm",
            metavar="KEY=VALUE",
            help="Submit the runs to Slurm with this option of sbatch, such as time=4:00:00 (required),"
            " partition=gpu or nodes=2; repeatable.",
        ),
    ] = None,
) -> None:
    """Run every unfinished node, audit the runs, write the report and print the answer.

    The same command resumes after any interruption. A stop signal saves checkpoints and exits with code 3.
    """
    from reptrain.cli.study_run import run_and_report
    from reptrain.study import load_study
    from reptrain.study.local_pool import LocalPool

    loaded = load_study(study, overrides or [])
    folder = out or Path("runs") / loaded.name
    if slurm:
        from reptrain.study.slurm import SlurmExecutor
        from reptrain.study.slurm_options import SlurmOptions

        options = SlurmOptions.parse(slurm, gpus=gpus, parallel=jobs)
        raise typer.Exit(
            run_and_report(
                loaded, folder, executor=SlurmExecutor(folder / "slurm", options, name=loaded.name)
            )
        )
    launch = [sys.executable, "-m", "reptrain", "launch", "--gpus", str(gpus)] if gpus and gpus > 1 else None
    executor = LocalPool(jobs, gpus_per_job=gpus or 1)
    raise typer.Exit(run_and_report(loaded, folder, launch=launch, executor=executor))


StudyFolder = Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder that `study run` wrote.")]


@study_app.command("status")
def study_status(folder: StudyFolder, as_json: AsJson = False) -> None:
    """Print the state of every arm."""
    from reptrain.study import open_study
    from reptrain.study import study_status as status

    rows = status(open_study(folder), folder)
    text = "\n".join(
        f"{row.arm}: {row.state}, {row.tokens:,} tokens" + (f" ({row.reason})" if row.reason else "")
        for row in rows
    )
    show([row.model_dump(mode="json") for row in rows], text, as_json=as_json)


@study_app.command("collect")
def study_collect(
    folder: StudyFolder,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="DIR", help="Folder of the tables.", show_default="tables in the study's folder"
        ),
    ] = None,
    usd_per_hour: Annotated[
        float | None,
        typer.Option(
            "--usd-per-hour", min=0.0, help="Price of the machines of one run, for the column cost_usd."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Write the tables of a study in any state: runs.parquet and evaluations.parquet."""
    from reptrain.study import open_study
    from reptrain.study.write_tables import write_tables

    written = write_tables(open_study(folder), folder, tables=out, usd_per_hour=usd_per_hour)
    text = f"{written.runs}: {written.num_runs} runs\n"
    text += f"{written.evaluations}: {written.num_evaluations} evaluations"
    paths = {"runs": str(written.runs), "evaluations": str(written.evaluations)}
    show(written._asdict() | paths, text, as_json=as_json)


@study_app.command("report")
def study_report(folder: StudyFolder) -> None:
    """Audit the runs again, rebuild report.html from the run folders, and print the answer."""
    from reptrain.cli.study_run import audit_and_report
    from reptrain.study import open_study

    raise typer.Exit(DONE if audit_and_report(open_study(folder), folder) else NO)
