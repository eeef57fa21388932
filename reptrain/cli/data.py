"""Commands for text and token stores."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from reptrain.cli.common import DONE, NO, app, show, store_app
from reptrain.cli.options import AsJson, StoreFolder, count_option


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
    out: Annotated[Path, typer.Option("--out", help="Folder of the store to write.")],
    tokenizer: Annotated[
        Path | None,
        typer.Option(
            "--tokenizer",
            help="A SentencePiece model or a tokenizer.json.",
            show_default="trained on the sources",
        ),
    ] = None,
    eos: Annotated[
        str | None,
        typer.Option("--eos", metavar="PIECE", help="Special piece of --tokenizer that ends a document."),
    ] = None,
    vocab_size: Annotated[
        int | None,
        count_option(
            "--vocab-size",
            help="Vocabulary size of the tokenizer to train.",
            show_default="2048, or as close as the text allows",
        ),
    ] = None,
    num_sentinels: Annotated[
        int | None,
        count_option(
            "--num-sentinels",
            least=0,
            help="Pieces reserved as sentinels of hidden spans.",
            show_default="32",
        ),
    ] = None,
    dedup: Annotated[
        Literal["none", "exact", "minhash", "group"],
        typer.Option(
            "--dedup",
            help="exact: drop documents of equal text. minhash: also drop near-duplicates. group: keep "
            "near-duplicates, with each cluster on one side of the train/held-out split.",
        ),
    ] = "exact",
    held_out: Annotated[
        float,
        typer.Option(
            "--held-out", help="Share of the documents to hold out, for the splits select and report."
        ),
    ] = 0.05,
    near: Annotated[
        list[str] | None,
        typer.Option(
            "--near",
            metavar="KEY=VALUE",
            help="MinHash setting: shingle_words, permutations, bands, rows, threshold or seed; repeatable.",
        ),
    ] = None,
    passages: Annotated[
        int | None,
        count_option(
            "--passages",
            help="Split documents into passages of at most N tokens, EOS included.",
        ),
    ] = None,
    processes: Annotated[
        int,
        typer.Option(
            "--processes", help="Worker processes; they do not change the store.", show_default="one per core"
        ),
    ] = 0,
    text_field: Annotated[
        str,
        typer.Option("--text-field", help="JSON key or column of the text; a.b is a nested key."),
    ] = "text",
    id_field: Annotated[
        str, typer.Option("--id-field", help="JSON key or column of the document's id.")
    ] = "id",
    metadata_fields: Annotated[
        list[str] | None,
        typer.Option(
            "--metadata-field",
            metavar="NAME",
            help="JSON key or column to store with each document; repeatable.",
        ),
    ] = None,
    tags: Annotated[
        list[str] | None,
        typer.Option(
            "--tag",
            metavar="[SOURCE:]KEY=VALUE",
            help="Tag to store with each document, of all sources or of one; repeatable.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Turn text into a sealed token store. A killed run resumes if started again."""
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
def store_show(store: StoreFolder, as_json: AsJson = False) -> None:
    """Print the contents of a store: documents, tokens, splits and tokenizer."""
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
    """Verify the hash and counts of every shard, and the overlap of held-out and training text.

    Exit code 1 if a shard differs from its manifest, or if the overlap exceeds --max-overlap.
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
        "overlap": [overlap.as_json() for overlap in report.overlap],
    }
    show(data, report.text(store), as_json=as_json)
    raise typer.Exit(DONE if report.ok else NO)
