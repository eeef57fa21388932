"""The demo, and the commands for studies."""

from __future__ import annotations

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


StudyFile = Annotated[Path, typer.Argument(metavar="STUDY", help="A study's YAML file.")]
StudyOverrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[KEY=VALUE]...",
        help="Overrides of the study (seeds=[0,1]) or of every run (train.total_tokens=64epochs).",
    ),
]
StudyOut = Annotated[
    Path | None,
    typer.Option("--out", metavar="DIR", help="Folder of the study.", show_default="runs/NAME"),
]
Jobs = Annotated[
    int | None,
    typer.Option(
        "--jobs",
        min=1,
        help="Runs at once, with the cores divided among them.",
        show_default="one per core, or per GPU; under Slurm 256 of a level",
    ),
]
Gpus = Annotated[int, typer.Option("--gpus", min=1, help="GPUs of each run.")]
BudgetCap = Annotated[
    str | None,
    typer.Option("--budget", help="Cap on what is left: 24h (device-hours), 100usd, 1e18flops or 2B tokens."),
]
HardwareName = Annotated[
    str | None,
    typer.Option("--hardware", help="Device, such as A100.", show_default="the speed of finished runs"),
]
Mfu = Annotated[
    float, typer.Option("--mfu", min=1e-6, max=1.0, help="Model FLOPs utilization on that device.")
]
Price = Annotated[float | None, typer.Option("--usd-per-hour", min=0.0, help="Price of one device per hour.")]


@study_app.command("plan")
def study_plan(
    study: StudyFile,
    overrides: StudyOverrides = None,
    out: StudyOut = None,
    hardware: HardwareName = None,
    mfu: Mfu = 0.35,
    jobs: Jobs = None,
    gpus: Gpus = 1,
    usd_per_hour: Price = None,
    budget: BudgetCap = None,
    as_json: AsJson = False,
) -> None:
    """Print what a study will cost: runs, tokens, FLOPs, hours, money and disk. Nothing is started.

    Runs that are done, and shared prefixes, count once. Exit code 1: what is left exceeds --budget.
    """
    from reptrain.cli.study_plan import bill_data, bill_text
    from reptrain.study import load_study
    from reptrain.study.bill import Hardware, bill_of, over_budget
    from reptrain.study.build import build_graph
    from reptrain.study.local_pool import default_jobs

    loaded = load_study(study, overrides or [])
    folder = out or Path("runs") / loaded.name
    chosen = Hardware(hardware, mfu, gpus, jobs or default_jobs(gpus_per_job=gpus), usd_per_hour)
    bill = bill_of(loaded, build_graph(loaded, folder), folder, chosen)
    excess = over_budget(bill, budget) if budget is not None else None
    text = bill_text(bill) + (f"\nover budget: {excess}" if excess else "")
    show(bill_data(bill) | {"over_budget": excess}, text, as_json=as_json)
    raise typer.Exit(NO if excess else DONE)


@study_app.command("run")
def study_run(
    study: StudyFile,
    overrides: StudyOverrides = None,
    out: StudyOut = None,
    jobs: Jobs = None,
    gpus: Annotated[
        int | None,
        typer.Option(
            "--gpus",
            min=1,
            help="GPUs of each run, under Slurm on each of its nodes.",
            show_default="1 if this machine has any; under Slurm none",
        ),
    ] = None,
    done: Annotated[
        Path | None,
        typer.Option(
            "--done",
            metavar="TABLE",
            help="A runs.parquet of `study collect`; its runs that are exact count as done.",
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
    budget: BudgetCap = None,
    hardware: HardwareName = None,
    mfu: Mfu = 0.35,
    usd_per_hour: Price = None,
) -> None:
    """Run every unfinished node, audit the runs, write the report and print the answer.

    The same command resumes after any interruption. A stop signal saves checkpoints and exits with code 3.
    """
    from reptrain.cli.study_run import refuse_over_budget, run_and_report, run_means
    from reptrain.study import load_study
    from reptrain.study.bill import Hardware

    loaded = load_study(study, overrides or [])
    folder = out or Path("runs") / loaded.name
    means = run_means(loaded, folder, jobs=jobs, gpus=gpus, slurm=slurm or [])
    if budget is not None:
        chosen = Hardware(hardware, mfu, means.devices_per_run, means.runs_at_once, usd_per_hour)
        refuse_over_budget(loaded, folder, budget, chosen)
    raise typer.Exit(run_and_report(loaded, folder, launch=means.launch, executor=means.executor, done=done))


StudyFolder = Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder that `study run` wrote.")]


@study_app.command("status")
def study_status(folder: StudyFolder, as_json: AsJson = False) -> None:
    """Print the state of every node, from any machine that sees the folder."""
    from reptrain.study import open_study
    from reptrain.study import study_status as status
    from reptrain.study.status import status_text

    study = open_study(folder)
    rows = status(study, folder)
    show([row.model_dump(mode="json") for row in rows], status_text(rows, study.audit), as_json=as_json)


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
def study_report(
    folders: Annotated[
        list[Path],
        typer.Argument(
            metavar="FOLDER...",
            help="Folders that `study run` wrote; with several also YAML files of studies that have not run.",
        ),
    ],
    page: Annotated[
        Path | None,
        typer.Option(
            "--page",
            metavar="FILE",
            help="The page for several studies.",
            show_default="studies.html beside the first folder",
        ),
    ] = None,
) -> None:
    """Audit the runs again, rebuild report.html from the run folders, and print the answer.

    With several studies, one more page judges all their claims together.
    """
    from reptrain.cli.study_run import audit_and_report, report_together
    from reptrain.study import open_study

    if page is not None and len(folders) == 1:
        raise typer.BadParameter("works with several studies", param_hint="--page")
    # A file is a study that has not run, which only a page for several can show.
    ran = [folder for folder in folders if folder.is_dir() or len(folders) == 1]
    exact = [audit_and_report(open_study(folder), folder) for folder in ran]
    if len(folders) > 1:
        report_together(folders, page or folders[0].absolute().parent / "studies.html")
    raise typer.Exit(DONE if all(exact) else NO)
