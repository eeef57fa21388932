"""The commands: parse, call, print, exit code. Each imports what it needs when it runs."""

from __future__ import annotations

import errno
import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer

from reptrain.errors import ReptrainError

app = typer.Typer(
    name="reptrain",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
config_app = typer.Typer(
    no_args_is_help=True, help="Show a resolved configuration, or what is allowed in one."
)
store_app = typer.Typer(
    no_args_is_help=True, help="Show a token store, or hold its bytes against its manifest."
)
study_app = typer.Typer(no_args_is_help=True, help="Many runs and the question that they answer.")
app.add_typer(config_app, name="config")
app.add_typer(store_app, name="store")
app.add_typer(study_app, name="study")

DONE, NO, WRONG_INPUT, PREEMPTED = 0, 1, 2, 3

Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Settings, such as train.total_tokens=64epochs."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
MaxMinutes = Annotated[
    float | None,
    typer.Option(
        "--max-minutes", min=0.0, help="Stop with a checkpoint so long after the start of the process."
    ),
]
Out = Annotated[Path | None, typer.Option("--out", help="Folder to write to.")]


@app.callback()
def _common(local_rank: Annotated[int | None, typer.Option("--local_rank", hidden=True)] = None) -> None:
    """Train language models that must repeat their data: exact epochs, and proof of them."""
    # The deepspeed launcher passes --local_rank unless told not to; its environment says the same.


def main() -> None:
    """Run a command; an error that the user can mend is one line and exit code 2."""
    try:
        app()
    except ReptrainError as error:
        _refuse(error)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            _refuse(
                f"{error.filename or 'disk'}: {error.strerror}. Free space and run the same command again."
            )
        if error.filename is None:
            raise
        _refuse(f"{error.filename}: {error.strerror}. Check the path and its permissions.")


def _refuse(message: object) -> NoReturn:
    rank = os.environ.get("RANK", "0")
    typer.echo(f"error: {message}" if rank == "0" else f"rank {rank}: error: {message}", err=True)
    sys.exit(WRONG_INPUT)


def _tell(data: Any, text: str, *, as_json: bool) -> None:
    typer.echo(json.dumps(data, indent=2, ensure_ascii=False) if as_json else text)


@app.command()
def demo(
    text: Annotated[
        list[Path] | None,
        typer.Option("--text", help="Your own files or folders, instead of Python's docs."),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="Its folder; runs/demo, or runs/demo-quick, if left out.")
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Less text and a thirty-second of the training: under a minute.")
    ] = False,
    store_only: Annotated[
        bool, typer.Option("--store-only", help="Make the token store and train nothing.")
    ] = False,
) -> None:
    """Train one model for 4, 16 and 64 epochs on the same budget, audit the runs, and write a report."""
    from reptrain.demo import run_demo

    folder = out or Path("runs") / ("demo-quick" if quick else "demo")
    raise typer.Exit(run_demo(folder, text=text or [], quick=quick, store_only=store_only))


@config_app.command("show")
def config_show(
    config: Annotated[Path, typer.Argument(help="A run's YAML file.")],
    overrides: Overrides = None,
    as_json: AsJson = False,
) -> None:
    """Print a run's configuration with every default filled in."""
    from reptrain.config import config_fingerprint, load_run_config
    from reptrain.config.load import dump_yaml

    resolved = load_run_config(config, overrides or [])
    data = resolved.model_dump(mode="json")
    text = f"{dump_yaml(data)}# fingerprint of the mathematics: {config_fingerprint(resolved)}"
    _tell(data, text, as_json=as_json)


@config_app.command("schema")
def config_schema() -> None:
    """Print the JSON Schema of a run's configuration."""
    from reptrain.config import RunConfig

    typer.echo(json.dumps(RunConfig.model_json_schema(), indent=2))


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
        typer.Option("--vocab-size", help="Pieces of the tokenizer to train.", show_default="2048"),
    ] = None,
    num_sentinels: Annotated[
        int | None,
        typer.Option(
            "--num-sentinels", help="Of them, those kept for spans that are hidden.", show_default="32"
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
        typer.Option(
            "--passages",
            metavar="N",
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
    from reptrain.store import describe, describe_text, near_settings, open_store, tag_pairs
    from reptrain.store import tokenize as build

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
    _tell(describe(store), describe_text(store), as_json=as_json)


@store_app.command("show")
def store_show(
    store: Annotated[Path, typer.Argument(help="Folder of the store.")], as_json: AsJson = False
) -> None:
    """Print what a store holds."""
    from reptrain.store import describe, describe_text, open_store

    opened = open_store(store)
    _tell(describe(opened), describe_text(opened), as_json=as_json)


@store_app.command("verify")
def store_verify(
    store: Annotated[Path, typer.Argument(help="Folder of the store.")],
    max_overlap: Annotated[
        float | None,
        typer.Option(
            "--max-overlap",
            help="Share of a held-out split's distinct 13-grams of tokens that may also stand in train.",
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
    _tell(data, report.text(store), as_json=as_json)
    raise typer.Exit(DONE if report.ok else NO)


@app.command()
def train(
    config: Annotated[Path, typer.Argument(help="A run's YAML file.")],
    overrides: Overrides = None,
    out: Out = None,
    max_minutes: MaxMinutes = None,
    resume: Annotated[
        bool, typer.Option(help="Go on where the run was, or refuse a folder that has a checkpoint.")
    ] = True,
) -> None:
    """Train in one process, or join the ranks that deepspeed or torchrun started.

    Called again it goes on from the newest checkpoint, on any number of ranks and at any ZeRO stage.
    A signal to stop, or the time's end, leads to a checkpoint and exit code 3.
    """
    # Read when torch is loaded. Threads that spin while they wait make a CPU run that shares its cores with
    # one other busy process three times slower, and gain nothing where it has the cores to itself.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from reptrain.config import load_run_config
    from reptrain.engine.loop import train as run
    from reptrain.engine.preempt import StopRequest
    from reptrain.runs.folder import refuse_to_resume

    resolved = load_run_config(config, overrides or [])
    folder = out or Path("runs") / str(resolved.name)
    if not resume:
        refuse_to_resume(folder)
    stop = StopRequest(max_minutes)
    stop.catch()
    try:
        result = run(resolved, folder, stop=stop)
    except BaseException:
        stop.let_go()
        raise
    if result.state != "preempted":
        # Else caught to the end of the process: a signal that is sent again must not change the exit code.
        stop.let_go()
    if os.environ.get("RANK", "0") == "0":
        why = f" ({result.reason})" if result.reason else ""
        typer.echo(f"{result.state}{why}: {result.steps} steps in {result.run}")
    raise typer.Exit(PREEMPTED if result.state == "preempted" else DONE)


@app.command()
def audit(
    run: Annotated[Path, typer.Argument(help="A run folder.")],
    store: Annotated[
        list[str] | None,
        typer.Option(
            "--store", metavar="PATH", help="Where the store is, if it has moved; in a mixture NAME=PATH."
        ),
    ] = None,
    exposures: Annotated[
        Path | None,
        typer.Option("--exposures", metavar="FILE.arrow", help="Also write the count of every token."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Recount how often each token reached the model, from ledger and store. Exit code 1: not exact.

    Exact is a run whose tokens were each consumed floor(k) or ceil(k) times in the k epochs so far. In the
    order `mixed` that is so at the end of a whole number of epochs; elsewhere the report says `as planned`
    where nothing went wrong, and the exit code is 1.
    """
    from reptrain.progress import stage_progress
    from reptrain.runs.audit import audit as recount
    from reptrain.runs.audit import store_places

    with stage_progress() as progress:
        report = recount(run, store=store_places(run, store or []), progress=progress, exposures=exposures)
    _tell(json.loads(report.to_json()), report.text(), as_json=as_json)
    raise typer.Exit(DONE if report.exact else NO)


@app.command()
def launch(
    config: Annotated[Path, typer.Argument(help="A run's YAML file.")],
    overrides: Overrides = None,
    out: Out = None,
    gpus: Annotated[
        int | None, typer.Option("--gpus", help="Ranks on this machine (CPU ranks without a GPU).")
    ] = None,
    hostfile: Annotated[Path | None, typer.Option("--hostfile", help="Lines of HOST slots=N.")] = None,
    max_minutes: MaxMinutes = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the command and do not run it.")] = False,
) -> None:
    """Train on several ranks through the deepspeed launcher."""
    from reptrain.config import load_run_config
    from reptrain_launcher import launch_command, launch_environment, run_launch, shell_line

    device = load_run_config(config, overrides or []).train.device
    command = launch_command(
        config,
        gpus=gpus,
        hostfile=hostfile,
        device=device,
        overrides=overrides or [],
        out=out,
        max_minutes=max_minutes,
    )
    environment = launch_environment(gpus=gpus, hostfile=hostfile, device=device)
    if dry_run:
        typer.echo(shell_line(command, environment))
    else:
        raise typer.Exit(run_launch(command, environment))


@study_app.command("run")
def study_run(
    study: Annotated[Path, typer.Argument(help="A study's YAML file.")],
    overrides: Overrides = None,
    out: Out = None,
) -> None:
    """Run every arm that is not done yet, audit the runs, write the report and tell the answer."""
    from reptrain.demo import carry_out
    from reptrain.study import load_study

    loaded = load_study(study, overrides or [])
    raise typer.Exit(carry_out(loaded, out or Path("runs") / loaded.name))


StudyFolder = Annotated[Path, typer.Argument(metavar="FOLDER", help="The folder that `study run` wrote.")]


@study_app.command("status")
def study_status(folder: StudyFolder, as_json: AsJson = False) -> None:
    """Print where every arm stands."""
    from reptrain.study import open_study
    from reptrain.study import study_status as status

    rows = status(open_study(folder), folder)
    text = "\n".join(
        f"{row.arm}: {row.state}, {row.tokens:,} tokens" + (f" ({row.reason})" if row.reason else "")
        for row in rows
    )
    _tell([row.model_dump(mode="json") for row in rows], text, as_json=as_json)


@study_app.command("report")
def study_report(folder: StudyFolder) -> None:
    """Audit the runs again, rebuild report.html from the run folders, and tell the answer."""
    from reptrain.demo import tell
    from reptrain.study import open_study

    raise typer.Exit(DONE if tell(open_study(folder), folder) else NO)
