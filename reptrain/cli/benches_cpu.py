"""Benchmarks against alternatives, and the page of their results."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from reptrain.cli.benches import bench_app
from reptrain.cli.common import NO, show
from reptrain.cli.options import AsJson, ConfigFile, Overrides

if TYPE_CHECKING:
    from reptrain.bench.rows import Row

Repetitions = Annotated[int, typer.Option(min=1, help="Number of measurements of each implementation.")]
Quick = Annotated[bool, typer.Option("--quick", help="Measure fewer and smaller cases.")]
Out = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="Folder of the CSV files to append rows to. Default: do not write."),
]


@bench_app.command()
def data(
    repetitions: Repetitions = 5, quick: Quick = False, out: Out = None, as_json: AsJson = False
) -> None:
    """Compare data loading with other loaders.

    Times shuffled reads of windows, and the examples of span corruption and UL2.
    """
    from reptrain.bench import data as bench

    _finish(bench.run(repetitions=repetitions, quick=quick), "data", out, as_json)


@bench_app.command()
def tokenize(
    repetitions: Repetitions = 5, quick: Quick = False, out: Out = None, as_json: AsJson = False
) -> None:
    """Compare tokenization with other tools.

    The others are SentencePiece alone, Hugging Face Datasets and datatrove.
    """
    from reptrain.bench import tokenize as bench

    _finish(bench.run(repetitions=repetitions, quick=quick), "tokenize", out, as_json)


@bench_app.command()
def start(
    repetitions: Repetitions = 5, quick: Quick = False, out: Out = None, as_json: AsJson = False
) -> None:
    """Measure startup times.

    Times the first batch, the first training step, a resume, and short commands.
    """
    from reptrain.bench import start as bench

    _finish(bench.run(repetitions=repetitions, quick=quick), "start", out, as_json)


@bench_app.command()
def step(
    repetitions: Repetitions = 5, quick: Quick = False, out: Out = None, as_json: AsJson = False
) -> None:
    """Compare training steps with other trainers."""
    from reptrain.bench import step as bench

    _finish(bench.run(repetitions=repetitions, quick=quick), "step", out, as_json)


@bench_app.command()
def train(
    config: ConfigFile,
    overrides: Overrides = None,
    steps: Annotated[int, typer.Option(min=1, help="Number of measured steps.")] = 20,
    warm_up: Annotated[int, typer.Option(min=1, help="Number of steps before them.")] = 5,
    peers: Annotated[
        bool, typer.Option("--peers", help="Also train a transformers model of the same sizes.")
    ] = False,
    out: Out = None,
    as_json: AsJson = False,
) -> None:
    """Measure training steps of a configuration.

    Measures tokens/s, MFU, memory and the parts of a step, on random tokens.

    The tokens are made for the measurement, so data.store is not needed. configs/bench has models of
    published sizes. Start it with `deepspeed` or `torchrun` to measure several ranks.
    """
    from reptrain.bench import train as bench

    rows = bench.run(config, overrides or [], steps=steps, warm_up=warm_up, peers=peers)
    if int(os.environ.get("RANK", "0")) == 0:
        _finish(rows, "train", out, as_json)


@bench_app.command()
def proof(
    repetitions: Repetitions = 3, quick: Quick = False, out: Out = None, as_json: AsJson = False
) -> None:
    """Measure audits, verification, reports and fits.

    Measures time and memory as the input grows.
    """
    from reptrain.bench import proof as bench

    _finish(bench.run(repetitions=repetitions, quick=quick), "proof", out, as_json)


@bench_app.command()
def page() -> None:
    """Rebuild the tables of docs/performance.md.

    The results are read from benchmarks/*.csv.
    """
    from reptrain.bench import page as pages

    typer.echo(pages.write())


@bench_app.command()
def check(repetitions: Repetitions = 5, quick: Quick = False) -> None:
    """Measure again, and fail if a ratio got worse.

    Exit code 1: a ratio is below its range in benchmarks/*.csv.
    """
    from reptrain.bench.check import regressions

    found = list(regressions(repetitions=repetitions, quick=quick))
    typer.echo("\n".join(found) or "no regression")
    if found:
        raise typer.Exit(NO)


def _finish(rows: Iterable[Row], bench: str, out: Path | None, as_json: bool) -> None:
    """Write each row when it is there, so that an interrupted benchmark keeps them, and print all."""
    from reptrain.bench.page import text
    from reptrain.bench.rows import append, table

    found = []
    for row in rows:
        found.append(row)
        if out is not None:
            append([row], table(bench, out))
    show([row._asdict() for row in found], text(found), as_json=as_json)
