"""The command that lists runs."""

from __future__ import annotations

from typing import Annotated

import typer

from reptrain.cli.common import app, show, table
from reptrain.cli.options import AsJson
from reptrain.errors import ConfigError

_SHOWN = {
    "run": "run",
    "status": "status",
    "epochs": "epochs",
    "loss_select_best_nats": "select at best",
    "loss_report_best_nats": "report at best",
    "loss_report_final_nats": "report at end",
    "audit_verdict": "audit",
}


@app.command()
def runs(
    folders: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="FOLDER",
            help="Folders or URLs (s3://bucket/runs) with runs at any depth.",
            show_default="runs",
        ),
    ] = None,
    where: Annotated[
        list[str] | None,
        typer.Option(
            "--where",
            metavar="CONDITION",
            help="List only runs for which this holds: a column or a setting, =, !=, <, <=, > or >=, and a"
            " value, such as status=done or optimizer.lr<0.001. Repeat it for several conditions.",
        ),
    ] = None,
    sort: Annotated[
        str | None,
        typer.Option(
            "--sort",
            metavar="NAME",
            help="Sort by a column or a setting; -NAME puts the largest first.",
            show_default="by path",
        ),
    ] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print all columns as CSV.")] = False,
    as_json: AsJson = False,
) -> None:
    """List runs with status, epochs, losses and audit.

    Losses are in nats per token. The columns are those of runs.parquet (docs: Reference, Tables).
    """
    from reptrain.tables.list_runs import list_runs
    from reptrain.tables.typed_rows import csv_text, json_rows, run_rows

    if as_csv and as_json:
        raise ConfigError(
            "--csv", got="--json as well", rule="must not be combined with it", remedy="Choose one."
        )
    readings = list_runs(folders or ["runs"], where=where or [], sort=sort)
    rows = json_rows(run_rows(readings)[0])
    if as_csv:
        typer.echo(csv_text(rows), nl=False)
        return
    shown = [{heading: row[name] for name, heading in _SHOWN.items()} for row in rows]
    text = table(shown) if shown else "no runs"
    notes = [f"{row['run']}: {row['reason']}" for row in rows if row["reason"]]
    show(rows, "\n".join([text, *notes]), as_json=as_json)
