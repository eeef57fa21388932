"""Commands that measure."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from reptrain.cli.common import NO, app
from reptrain.errors import ReptrainError

bench_app = typer.Typer(no_args_is_help=True, help="Measure how fast parts of the trainer are.")
app.add_typer(bench_app, name="bench")


@bench_app.command()
def kernels(
    only: Annotated[str | None, typer.Option("--only", metavar="NAME", help="One operation.")] = None,
    model: Annotated[
        bool, typer.Option("--model", help="Print modelled times on A100 and H100; needs no GPU.")
    ] = False,
    minutes: Annotated[float, typer.Option(min=0, help="Begin no shape after so many.")] = 7.0,
    all_shapes: Annotated[bool, typer.Option("--all-shapes", help="Every shape, not a few of each.")] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="The table that rows are added to.",
            show_default="kernels/bench/results/gpu.csv",
        ),
    ] = None,
) -> None:
    """Hold each kernel against its definition on this GPU, then time it beside other implementations."""
    from reptrain_kernels.bench.operations import OPERATIONS

    if only is not None and only not in OPERATIONS:
        raise ReptrainError(
            "--only",
            got=only,
            rule=f"must be one of {', '.join(OPERATIONS)}",
            remedy="Leave it out for all of them.",
        )
    chosen = [operation for name, operation in OPERATIONS.items() if only in (None, name)]
    if model:
        from reptrain_kernels.bench import traffic

        typer.echo(traffic.text(traffic.table(chosen)), nl=False)
        return
    import torch

    from reptrain_kernels.bench import timed

    if not torch.cuda.is_available():
        raise ReptrainError(
            "bench kernels",
            got="none that torch sees",
            rule="needs a CUDA device",
            remedy="Print modelled times with --model.",
        )
    if not timed.bench(chosen, minutes=minutes, all_shapes=all_shapes, path=out or timed.TABLE):
        raise typer.Exit(NO)
