"""Commands for many runs and their question."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from reptrain.cli.common import DONE, NO, AsJson, app, show, study_app


@app.command()
def demo(
    text: Annotated[
        list[Path] | None,
        typer.Option("--text", help="Your own files or folders, instead of Python's docs."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="DIR", help="Folder of the demo.", show_default="runs/demo, or runs/demo-quick"
        ),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Less text and a thirty-second of the training: under a minute.")
    ] = False,
    store_only: Annotated[
        bool, typer.Option("--store-only", help="Make the token store and train nothing.")
    ] = False,
) -> None:
    """Train one model for 4, 16 and 64 epochs on the same budget, audit the runs, and write a report."""
    from reptrain.demo import run_demo

    folder = out or Path("runs") / ("demo-quick" if quick else "demo")
    raise typer.Exit(run_demo(folder, text=text or [], quick=quick, store_only=store_only))


@study_app.command("run")
def study_run(
    study: Annotated[Path, typer.Argument(help="A study's YAML file.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="Settings of the study (seeds=[0,1]), or of every run (train.total_tokens=64epochs).",
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="DIR", help="Folder of the study.", show_default="runs/NAME, of the study's name"
        ),
    ] = None,
) -> None:
    """Run every arm that is not done yet, audit the runs, write the report and tell the answer."""
    from reptrain.demo import carry_out
    from reptrain.study import load_study

    loaded = load_study(study, overrides or [])
    raise typer.Exit(carry_out(loaded, out or Path("runs") / loaded.name))


StudyFolder = Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder that `study run` wrote.")]


@study_app.command("status")
def study_status(folder: StudyFolder, as_json: AsJson = False) -> None:
    """Print where every arm stands."""
    from reptrain.study import open_study
    from reptrain.study import study_status as status

    rows = status(open_study(folder), folder)
    text = "\n".join(
        f"{row.arm}: {row.state}, {row.tokens:,} tokens" + (f" ({row.reason})" if row.reason else "")
        for row in rows
    )
    show([row.model_dump(mode="json") for row in rows], text, as_json=as_json)


@study_app.command("report")
def study_report(folder: StudyFolder) -> None:
    """Audit the runs again, rebuild report.html from the run folders, and tell the answer."""
    from reptrain.demo import tell
    from reptrain.study import open_study

    raise typer.Exit(DONE if tell(open_study(folder), folder) else NO)
