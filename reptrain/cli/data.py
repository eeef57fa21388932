"""Commands for text and token stores."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import os
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import typer

from reptrain.cli.common import CANNOT_SAY, DONE, NO, app, show, store_app
from reptrain.cli.options import AsJson, StoreFolder, count_option
from reptrain.tokenize_options import Option, TokenizeOptions


def _option(settings: Option, name: str, kind: Any) -> Any:
    """The command-line option of a field of `TokenizeOptions`."""
    flag = settings.flag or f"--{name.replace('_', '-')}"
    shown: dict[str, Any] = {} if settings.default is None else {"show_default": settings.default}
    if kind == int | None:
        return Annotated[kind, count_option(flag, least=settings.least, help=settings.help, **shown)]
    repeated = name in ("near", "metadata_fields", "tags")
    return Annotated[
        list[str] | None if repeated else kind,
        typer.Option(flag, help=settings.help, metavar=settings.metavar, **shown),
    ]


def _with_tokenize_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command one option for each field of `TokenizeOptions` in place of ``**options``."""
    signature = inspect.signature(command, eval_str=True)
    kinds = get_type_hints(TokenizeOptions, include_extras=True)
    *own, _ = signature.parameters.values()
    parameters = []
    for field in dataclasses.fields(TokenizeOptions):
        kind, settings = get_args(kinds[field.name])
        default = None if field.default is dataclasses.MISSING else field.default or None
        annotation = _option(settings, field.name, kind)
        parameters.append(
            inspect.Parameter(
                field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation
            )
        )

    @functools.wraps(command)
    def wrapper(*arguments: Any, **options: Any) -> None:
        command(*arguments, **options)

    wrapper.__signature__ = signature.replace(parameters=[*own, *parameters])  # type: ignore[attr-defined]
    wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in [*own, *parameters]} | {
        "return": None
    }
    del wrapper.__wrapped__
    return wrapper


@app.command()
@_with_tokenize_options
def tokenize(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE",
            help=".txt, .jsonl, .jsonl.gz, .jsonl.zst, .parquet or .arrow files; folders, quoted globs and "
            "URLs of them.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder of the store to write.")],
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            "--tokenizer",
            help="A SentencePiece model or a tokenizer.json.",
            show_default="trained on the sources",
        ),
    ] = None,
    processes: Annotated[
        int,
        typer.Option(
            "--processes",
            help="Worker processes; their number does not change the store.",
            show_default="one for each core",
        ),
    ] = 0,
    slurm: Annotated[
        list[str] | None,
        typer.Option(
            "--slurm",
            metavar="KEY=VALUE",
            help="Run the jobs in Slurm arrays with this option of sbatch; time is required. Repeat it for"
            " several: --slurm time=1:00:00 --slurm partition=cpu.",
        ),
    ] = None,
    as_json: AsJson = False,
    **options: Any,
) -> None:
    """Convert text to a token store. An interrupted command resumes when it is repeated."""
    from reptrain.progress import stage_progress
    from reptrain.store import describe, describe_text, open_store
    from reptrain.tokenization import near_settings, tag_pairs
    from reptrain.tokenization import tokenize as build

    near = options.pop("near")
    with stage_progress() as progress:
        build(
            sources,
            out,
            tokenizer=tokenizer,
            processes=processes or os.cpu_count() or 1,
            slurm=slurm or (),
            progress=progress,
            near=near_settings(near) if near else None,
            metadata_fields=options.pop("metadata_fields") or (),
            tags=tag_pairs(options.pop("tags") or []),
            **options,
        )
    store = open_store(out)
    show(describe(store), describe_text(store), as_json=as_json)


@store_app.command("show")
def store_show(store: StoreFolder, as_json: AsJson = False) -> None:
    """Print documents, tokens, splits and tokenizer of a store."""
    from reptrain.store import describe, describe_text, open_store

    opened = open_store(store)
    show(describe(opened), describe_text(opened), as_json=as_json)


@store_app.command("verify")
def store_verify(
    store: StoreFolder,
    max_overlap: Annotated[
        float | None,
        typer.Option(
            "--max-overlap",
            help="Largest allowed share, 0 to 1, of a held-out split's distinct token 13-grams that also"
            " occur in train.",
            min=0.0,
            max=1.0,
            show_default="0.25",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Verify a store against its manifest.

    Checks the hash and counts of every shard, and the overlap of held-out and training text.

    Exit code 4: a file differs from the manifest. 1: the overlap exceeds --max-overlap.
    """
    from reptrain.progress import stage_progress
    from reptrain.store import MAX_OVERLAP, verify

    limit = MAX_OVERLAP if max_overlap is None else max_overlap
    with stage_progress() as progress:
        report = verify(store, progress, overlap=True, max_overlap=limit, orders=True)
    data = {
        "ok": report.ok,
        "problems": report.problems,
        "overlap_problems": report.overlap_problems,
        "max_overlap": limit,
        "overlap": [overlap.as_json() for overlap in report.overlap],
    }
    show(data, report.text(store), as_json=as_json)
    raise typer.Exit(CANNOT_SAY if report.problems else DONE if report.ok else NO)
