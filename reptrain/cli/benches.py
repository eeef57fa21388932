"""Benchmarks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from reptrain.cli.common import NO, app
from reptrain.errors import ReptrainError

bench_app = typer.Typer(no_args_is_help=True, help="Benchmark parts of the trainer.")
app.add_typer(bench_app, name="bench")


@bench_app.command()
def kernels(
    only: Annotated[
        str | None, typer.Option("--only", metavar="NAME", help="Benchmark only this operation.")
    ] = None,
    model: Annotated[
        bool, typer.Option("--model", help="Print modeled times on A100 and H100, without a GPU.")
    ] = False,
    minutes: Annotated[
        float, typer.Option(min=0, help="Start no further shape after this many minutes.")
    ] = 7.0,
    all_shapes: Annotated[
        bool, typer.Option("--all-shapes", help="Benchmark every shape instead of a few per operation.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="CSV file to append rows to.",
            show_default="kernels/bench/results/gpu.csv",
        ),
    ] = None,
) -> None:
    """Check each kernel against its reference, then time it.

    Runs on this GPU. Other implementations are timed beside it.
    """
    from reptrain_kernels.bench.operations import OPERATIONS

    if only is not None and only not in OPERATIONS:
        raise ReptrainError(
            "--only",
            got=only,
            rule=f"must be one of {', '.join(OPERATIONS)}",
            remedy="Omit it to benchmark all of them.",
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
            got="none",
            rule="needs a CUDA device",
            remedy="Print modeled times with --model.",
        )
    if not timed.bench(chosen, minutes=minutes, all_shapes=all_shapes, path=out or timed.TABLE):
        raise typer.Exit(NO)
