"""The demo, and the commands for studies."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from reptrain.cli.common import DONE, NO, app, show, study_app
from reptrain.cli.options import AsJson


@app.command()
def demo(
    text: Annotated[
        list[Path] | None,
        typer.Option(
            "--text",
            help="Your own text files or folders; repeatable.",
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
    """Compare 4, 16 and 64 epochs with equal training tokens.

    The runs are audited, and the report is OUT/report.html. The text is by default the documentation of the
    Python installation.
    """
    from reptrain.cli.study_run import RunMeans, run_and_report
    from reptrain.demo import make_demo_store, make_demo_study
    from reptrain.store import open_store, split_warnings
    from reptrain.study.local_pool import LocalPool
    from reptrain.study.looks import Place

    folder = out or Path("runs") / ("demo-quick" if quick else "demo")
    store = make_demo_store(folder, text=text or [], quick=quick)
    if not store_only:
        # One after another: on all cores, each run computes what it computed before.
        place = Place(make_demo_study(store, quick=quick), folder)
        raise typer.Exit(run_and_report([place], [RunMeans(LocalPool(1), None, 1, 1)]))
    for warning in split_warnings(open_store(store).manifest):
        typer.echo(f"WARNING: {warning}", err=True)
    typer.echo(f"store: {store}")


StudyFile = Annotated[
    Path,
    typer.Argument(
        metavar="STUDY",
        help="A study's YAML file, or a folder of them: its YAML files with a key `base`, in the order of"
        " their names.",
    ),
]
Scale = Annotated[
    str | None,
    typer.Option("--scale", metavar="NAME", help="Use this entry of the study's `scales`."),
]
StudyOverrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE",
        help="Overrides of the study (seeds=[0,1]) or of every run (train.total_tokens=64epochs).",
    ),
]
StudyOut = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="DIR",
        help="Folder of the study; for several studies, the folder that contains one folder for each.",
        show_default="runs/NAME",
    ),
]
Jobs = Annotated[
    int | None,
    typer.Option(
        "--jobs",
        min=1,
        help="Number of runs at a time; they share the cores.",
        show_default="one per core, or per GPU; under Slurm 256 per job array",
    ),
]
Gpus = Annotated[int, typer.Option("--gpus", min=1, help="GPUs of each run.")]
BudgetCap = Annotated[
    str | None,
    typer.Option(
        "--budget", help="Limit of the remaining cost: 24h (device-hours), 100usd, 1e18flops or 2B tokens."
    ),
]
HardwareName = Annotated[
    str | None,
    typer.Option("--hardware", help="Device, such as A100.", show_default="the speed of finished runs"),
]
Mfu = Annotated[
    float, typer.Option("--mfu", min=1e-6, max=1.0, help="Model FLOPs utilization on that device.")
]
DoneRuns = Annotated[
    str | None,
    typer.Option(
        "--done",
        metavar="TABLE",
        help="A runs.parquet of `study collect`, also at a URL; its runs that are exact count as done.",
    ),
]
Price = Annotated[float | None, typer.Option("--usd-per-hour", min=0.0, help="Price of one device per hour.")]


@study_app.command("plan")
def study_plan(
    study: StudyFile,
    overrides: StudyOverrides = None,
    out: StudyOut = None,
    scale: Scale = None,
    hardware: HardwareName = None,
    mfu: Mfu = 0.35,
    jobs: Jobs = None,
    gpus: Gpus = 1,
    done: DoneRuns = None,
    usd_per_hour: Price = None,
    budget: BudgetCap = None,
    as_json: AsJson = False,
) -> None:
    """Print the estimated cost of a study.

    The cost is the number of runs, their tokens, FLOPs, hours, money and disk space. No run is started.

    Runs that are done, and shared prefixes, count once. Exit code 1: the remaining cost exceeds --budget.
    """
    from reptrain.cli.study_plan import bill_data, bill_text, bills_of
    from reptrain.study.bill import Hardware
    from reptrain.study.budget import over_budget
    from reptrain.study.local_pool import default_jobs
    from reptrain.study.places import studies_to_run

    places = studies_to_run(study, overrides or [], out=out, scale=scale)
    at_once = jobs or default_jobs(gpus_per_job=gpus, on_gpus=hardware is not None)
    chosen = Hardware(hardware, mfu, gpus, at_once, usd_per_hour)
    bills = bills_of(places, chosen, done=done)
    excess = over_budget([*bills.values()], budget) if budget is not None else None
    texts = {name: bill_text(bill) for name, bill in bills.items()}
    text = with_headings(texts) + (f"\nover budget: {excess}" if excess else "")
    data = {name: bill_data(bill) | {"over_budget": excess} for name, bill in bills.items()}
    show(one_or_all(data), text, as_json=as_json)
    raise typer.Exit(NO if excess else DONE)


@study_app.command("run")
def study_run(
    study: StudyFile,
    overrides: StudyOverrides = None,
    out: StudyOut = None,
    scale: Scale = None,
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
    done: DoneRuns = None,
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
    """Run a study, audit its runs, and write the report.

    The nodes of a study are its runs and the commands on them; finished nodes are kept. Several studies run
    one after another, followed by the second looks of their claims. Repeat the command to resume after an
    interruption. A stop signal saves checkpoints and exits with code 3, without a report.
    """
    from reptrain.cli.study_plan import bills_of
    from reptrain.cli.study_run import refuse_over_budget, run_and_report, run_means
    from reptrain.study.bill import Hardware
    from reptrain.study.places import studies_to_run

    places = studies_to_run(study, overrides or [], out=out, scale=scale)
    means = [run_means(*place, jobs=jobs, gpus=gpus, slurm=slurm or []) for place in places]
    if budget is not None:
        first = means[0]
        chosen = Hardware(hardware, mfu, first.devices_per_run, first.runs_at_once, usd_per_hour)
        refuse_over_budget(bills_of(places, chosen, done=done), budget)
    raise typer.Exit(run_and_report(places, means, done=done))


StudyFolder = Annotated[
    Path,
    typer.Argument(
        metavar="FOLDER",
        help="The folder that `study run` wrote, a folder of such folders, or the argument of `study run`.",
    ),
]


def with_headings(texts: Mapping[str, str]) -> str:
    """The texts of several studies, each with the study's name as heading; one text alone has no heading."""
    if len(texts) == 1:
        return "".join(texts.values())
    return "\n\n".join(f"{name}\n{'=' * len(name)}\n{text}" for name, text in texts.items())


def one_or_all(data: Mapping[str, Any]) -> Any:
    """The data of one study; for several studies, a dictionary by study name."""
    return next(iter(data.values())) if len(data) == 1 else dict(data)


@study_app.command("status")
def study_status(folder: StudyFolder, as_json: AsJson = False) -> None:
    """Print the state of every run and command of a study.

    Works on any machine that can read the folder.
    """
    from reptrain.study import study_status as status
    from reptrain.study.grid import arms, hashed_settings
    from reptrain.study.places import studies_that_ran
    from reptrain.study.status import status_text

    places = studies_that_ran(folder)
    rows = {study.name: status(study, out) for study, out in places}
    data = {name: [row.model_dump(mode="json") for row in of_study] for name, of_study in rows.items()}
    texts = {
        study.name: status_text(rows[study.name], study.audit, hashed_settings(arms(study)))
        for study, _ in places
    }
    show(one_or_all(data), with_headings(texts), as_json=as_json)


@study_app.command("collect")
def study_collect(
    folder: StudyFolder,
    out: Annotated[
        str | None,
        typer.Option(
            "--out",
            metavar="DIR",
            help="Folder of the tables, or its URL (s3://bucket/tables); of several studies, the folder that"
            " has one for each.",
            show_default="tables in the study's folder",
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
    """Write the tables of a study.

    The tables are runs.parquet and evaluations.parquet. The study may still be running.
    """
    from reptrain.study.places import studies_that_ran
    from reptrain.study.write_tables import write_tables

    places = studies_that_ran(folder)
    texts, data = {}, {}
    for study, place in places:
        tables = f"{out.rstrip('/')}/{study.name}" if out is not None and len(places) > 1 else out
        written = write_tables(study, place, tables=tables, usd_per_hour=usd_per_hour)
        texts[study.name] = f"{written.runs}: {written.num_runs} runs\n"
        texts[study.name] += f"{written.evaluations}: {written.num_evaluations} evaluations"
        data[study.name] = written._asdict()
    show(one_or_all(data), with_headings(texts), as_json=as_json)


@study_app.command("report")
def study_report(
    folders: Annotated[
        list[Path],
        typer.Argument(
            metavar="FOLDER",
            help="Folders that `study run` wrote, folders of such folders, or the argument of `study run`.",
        ),
    ],
    page: Annotated[
        Path | None,
        typer.Option(
            "--page",
            metavar="FILE",
            help="The page for several studies.",
            show_default="studies.html next to the first folder",
        ),
    ] = None,
    with_paths: Annotated[
        bool, typer.Option("--paths", help="Show absolute paths in report.html, not last names only.")
    ] = False,
) -> None:
    """Audit the runs again, and rebuild the report.

    Writes report.html from the run folders and prints the results. With several studies, one more page tests
    all their claims together, also those of studies that have not run.
    """
    from reptrain.cli.study_run import audit_and_report, report_together
    from reptrain.study import open_study
    from reptrain.study.looks import Place
    from reptrain.study.places import paths_that_ran

    paths = [path for folder in folders for path in paths_that_ran(folder)]
    if page is not None and len(paths) == 1:
        raise typer.BadParameter("works with several studies", param_hint="--page")
    ran = [path for path in paths if path.is_dir() or len(paths) == 1]
    exact = [audit_and_report(Place(open_study(path), path), paths=with_paths) for path in ran]
    if len(paths) > 1:
        report_together(paths, page or (ran or paths)[0].absolute().parent / "studies.html")
    raise typer.Exit(DONE if all(exact) else NO)
