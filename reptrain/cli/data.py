"""Commands for text and token stores."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from reptrain.cli.common import DONE, NO, AsJson, app, count_option, show, store_app


@app.command()
def tokenize(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...",
            help=".txt, .jsonl, .jsonl.gz, .jsonl.zst, .parquet or .arrow files; folders, quoted globs and "
            "URLs of them.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder of the new store.")],
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            "--tokenizer",
            help="A SentencePiece model or a tokenizer.json; without it one is trained on the sources.",
        ),
    ] = None,
    eos: Annotated[
        str | None,
        typer.Option(
            "--eos", metavar="PIECE", help="Special piece of the given tokenizer that ends a document."
        ),
    ] = None,
    vocab_size: Annotated[
        int | None,
        count_option(
            "--vocab-size",
            help="Pieces of the tokenizer to train.",
            show_default="2048, or as near as the text allows",
        ),
    ] = None,
    num_sentinels: Annotated[
        int | None,
        count_option(
            "--num-sentinels",
            least=0,
            help="Of them, those kept for spans that are hidden.",
            show_default="32",
        ),
    ] = None,
    dedup: Annotated[
        Literal["none", "exact", "minhash", "group"],
        typer.Option(
            "--dedup",
            help="exact: drop documents of equal text. minhash: near-duplicates too. group: keep those, "
            "but hold each cluster of them out whole or not at all.",
        ),
    ] = "exact",
    held_out: Annotated[
        float,
        typer.Option("--held-out", help="Share of the documents sealed as held-out text, select and report."),
    ] = 0.05,
    near: Annotated[
        list[str] | None,
        typer.Option(
            "--near",
            metavar="KEY=VALUE",
            help="How near-duplicates are found: shingle_words, permutations, bands, rows, threshold, seed.",
        ),
    ] = None,
    passages: Annotated[
        int | None,
        count_option(
            "--passages",
            help="Cut documents into passages of at most N tokens, EOS of each included.",
        ),
    ] = None,
    processes: Annotated[
        int,
        typer.Option(
            "--processes", help="Worker processes; the bytes are the same.", show_default="one for each core"
        ),
    ] = 0,
    text_field: Annotated[
        str,
        typer.Option("--text-field", help="Key of the text in a JSON line, or column; a.b reaches into a."),
    ] = "text",
    id_field: Annotated[str, typer.Option("--id-field", help="Key or column of the document's id.")] = "id",
    metadata_fields: Annotated[
        list[str] | None,
        typer.Option(
            "--metadata-field",
            metavar="NAME",
            help="Key or column that is kept with each document; give it once for each.",
        ),
    ] = None,
    tags: Annotated[
        list[str] | None,
        typer.Option(
            "--tag",
            metavar="[SOURCE:]KEY=VALUE",
            help="Kept with each document, of all sources or of one; give it once for each.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Turn text into a sealed token store. A killed run goes on where it was."""
    from reptrain.progress import stage_progress
    from reptrain.store import describe, describe_text, open_store
    from reptrain.tokenization import near_settings, tag_pairs
    from reptrain.tokenization import tokenize as build

    with stage_progress() as progress:
        build(
            sources,
            out,
            tokenizer=tokenizer,
            vocab_size=vocab_size,
            num_sentinels=num_sentinels,
            dedup=dedup,
            near=near_settings(near) if near else None,
            passages=passages,
            held_out_fraction=held_out,
            processes=processes or os.cpu_count() or 1,
            text_field=text_field,
            id_field=id_field,
            metadata_fields=metadata_fields or [],
            tags=tag_pairs(tags or []),
            eos=eos,
            progress=progress,
        )
    store = open_store(out)
    show(describe(store), describe_text(store), as_json=as_json)


@store_app.command("show")
def store_show(
    store: Annotated[Path, typer.Argument(help="Folder of the store.")], as_json: AsJson = False
) -> None:
    """Print what a store holds."""
    from reptrain.store import describe, describe_text, open_store

    opened = open_store(store)
    show(describe(opened), describe_text(opened), as_json=as_json)


@store_app.command("verify")
def store_verify(
    store: Annotated[Path, typer.Argument(help="Folder of the store.")],
    max_overlap: Annotated[
        float | None,
        typer.Option(
            "--max-overlap",
            help="Largest share, 0 to 1, of a held-out split's distinct 13-grams of tokens that may also"
            " occur in train.",
            min=0.0,
            max=1.0,
            show_default="0.25",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Hash every shard again, recount it, and compare held-out with training text.

    Exit code 1 if anything is not as sealed, or if they share more than the limit.
    """
    from reptrain.progress import stage_progress
    from reptrain.store import MAX_OVERLAP, verify

    limit = MAX_OVERLAP if max_overlap is None else max_overlap
    with stage_progress() as progress:
        report = verify(store, progress, overlap=True, max_overlap=limit)
    data = {
        "ok": report.ok,
        "problems": list(report.problems),
        "max_overlap": limit,
        "overlap": [found.as_json() for found in report.overlap],
    }
    show(data, report.text(store), as_json=as_json)
    raise typer.Exit(DONE if report.ok else NO)
