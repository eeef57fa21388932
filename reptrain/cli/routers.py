"""The command that reports on the routers of a sparse run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from reptrain.cli.common import app, show, table
from reptrain.cli.options import AsJson, Device, RunFolders

if TYPE_CHECKING:
    from reptrain.runs.routers import RouterRecord


@app.command()
def routers(
    runs: RunFolders,
    max_windows: Annotated[
        int | None,
        typer.Option(
            "--max-windows", min=1, help="Training windows to route.", show_default="evaluate.max_windows"
        ),
    ] = None,
    knock_out: Annotated[
        bool,
        typer.Option(
            "--knock-out/--no-knock-out",
            help="Remove each expert of the last checkpoint in turn: one pass over the windows for each.",
        ),
    ] = True,
    record: Annotated[
        bool,
        typer.Option(
            "--record/--no-record",
            help="Write the figures to routers.jsonl and the TensorBoard curves of the run.",
        ),
    ] = True,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Compare the routers of sparse runs over their checkpoints.

    Each layer is compared on the same windows of the training subset. agreement: share of tokens with the
    same first expert as at the last checkpoint. dead: experts that no token selects. knock-out: increase of
    the loss, in nats per token, if one expert cannot be selected. Its tokens are then routed to the experts
    with the next largest scores.
    """
    from reptrain.evaluation.router_health import record_routers, router_health
    from reptrain.runs.folder import RunFolder

    rows: list[dict[str, Any]] = []
    for run in runs:
        records = router_health(run, max_windows=max_windows, knock_out=knock_out, device=device)
        if record:
            record_routers(RunFolder.open(run), records)
        rows += [{"run": str(run)} | one.model_dump() | _summary(one) for one in records]
    show(rows, table([_shown(row, several=len(runs) > 1) for row in rows]), as_json=as_json)


def _summary(record: RouterRecord) -> dict[str, Any]:
    names = ("knock_out_mean_nats", "knock_out_max_nats", "worst_expert")
    return {name: getattr(record, name) for name in names}


def _shown(row: Mapping[str, Any], *, several: bool) -> dict[str, Any]:
    """A row of the printed table."""
    return ({"run": row["run"]} if several else {}) | {
        "step": row["step"],
        "layer": row["layer"],
        "agreement": row["agreement"],
        "dead": row["dead"],
        "knock-out, mean": row["knock_out_mean_nats"],
        "largest": row["knock_out_max_nats"],
        "of expert": row["worst_expert"],
    }
