"""The command that reports on the routers of a sparse run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from reptrain.cli.common import app, show
from reptrain.cli.options import AsJson, Device


@app.command()
def routers(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="Run folder of a sparse model.")],
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
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Report on the routers of a sparse run, by checkpoint and layer.

    agreement: share of tokens with the same first expert as at the last checkpoint. dead: experts that no
    token selects. knock-out: cost in nats per token of removing the output of an expert.
    """
    from reptrain.cli.scores import table
    from reptrain.evaluation.router_health import router_health

    rows = router_health(run, max_windows=max_windows, knock_out=knock_out, device=device)
    shown = [
        {
            "step": row.step,
            "layer": row.layer,
            "agreement": row.agreement,
            "dead": row.dead,
            "knock-out, mean": row.knock_out_mean_nats,
            "largest": row.knock_out_max_nats,
            "of expert": row.worst_expert,
        }
        for row in rows
    ]
    show([row.row() for row in rows], table(shown), as_json=as_json)
