"""Commands that count and match the sizes of models."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from reptrain.cli.common import app, show
from reptrain.cli.options import AsJson, VocabSize
from reptrain.errors import ConfigError

Settings = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Overrides, such as model.num_layers=8."),
]


@app.command()
def sizes(
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG", help="YAML file of a run, or of a model alone.")
    ],
    overrides: Settings = None,
    world_size: Annotated[
        int, typer.Option("--world-size", min=1, help="Number of GPUs that ZeRO partitions over.")
    ] = 1,
    precision: Annotated[
        Literal["fp32", "bf16", "fp16"] | None,
        typer.Option("--precision", help="Precision of the memory estimate.", show_default="train.precision"),
    ] = None,
    vocab_size: VocabSize = None,
    as_json: AsJson = False,
) -> None:
    """Count a model's parameters, FLOPs and memory.

    The model is not built.
    """
    from reptrain.sizes import describe_sizes, load_subject, sizes_text

    subject = load_subject(config, overrides or [], vocab_size=vocab_size)
    data = describe_sizes(subject, world_size=world_size, precision=precision)
    show(data, sizes_text(data), as_json=as_json)


@app.command()
def match(
    config: Annotated[
        Path, typer.Argument(metavar="CONFIG", help="YAML file to change: of a run, or of a model alone.")
    ],
    to: Annotated[Path, typer.Option("--to", help="YAML file to match.")],
    overrides: Settings = None,
    by: Annotated[
        Literal["total-params", "active-params", "flops"],
        typer.Option("--by", help="Quantity to match; flops: training FLOPs per raw token."),
    ] = "flops",
    vary: Annotated[
        Literal["width", "depth", "experts", "groups", "d_ff"],
        typer.Option(
            "--vary", help="Dimension to change; d_ff is adjusted too if that alone is not close enough."
        ),
    ] = "width",
    tolerance: Annotated[
        float, typer.Option("--tolerance", min=0.0, help="Largest relative difference.")
    ] = 0.01,
    out: Annotated[Path | None, typer.Option("--out", help="File to write the changed YAML to.")] = None,
    vocab_size: VocabSize = None,
    as_json: AsJson = False,
) -> None:
    """Change a model to match another's parameters or FLOPs."""
    from reptrain.sizes import describe_match, load_subject, match_text, write_match
    from reptrain.sizes import match as solve

    if out is not None and out.exists():
        raise ConfigError(
            "--out",
            got=f"{out}, which exists",
            rule="must be a new file",
            remedy="Choose another name, or remove the file.",
        )
    subject = load_subject(config, overrides or [], vocab_size=vocab_size)
    other = load_subject(to, vocab_size=vocab_size)
    found = solve(subject, other, by=by, vary=vary, tolerance=tolerance)
    if out is not None:
        write_match(found, out, config=config, to=to, by=by)
    show(describe_match(found, by=by), match_text(found, to=to, by=by, out=out), as_json=as_json)
