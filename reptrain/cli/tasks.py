"""The command that fine-tunes on a task."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated

import typer

from reptrain.cli.common import PREEMPTED, AsJson, app, show
from reptrain.cli.trained import Step, TokenizerFile


@app.command()
def finetune(
    run: Annotated[Path, typer.Argument(help="A run, an imported model, or a Hugging Face folder.")],
    task: Annotated[Path, typer.Argument(help="A folder with a task.yaml, or such a file.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to write to.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY=VALUE]...",
            help="Settings, such as epochs=2 or task.data=FOLDER; `config schema finetune` lists them.",
        ),
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="How many fine-tunings, from `seed` on.")] = 1,
    against: Annotated[
        Path | None,
        typer.Option(
            "--against", metavar="DIR", help="Another fine-tuning on the task: tell the difference."
        ),
    ] = None,
    step: Step = None,
    tokenizer: TokenizerFile = None,
    as_json: AsJson = False,
) -> None:
    """Fine-tune on a task, and tell how the best and the last checkpoint do, with intervals over seeds.

    The best is chosen by examples that are kept apart from those that are told of. Called again it goes on;
    a signal to stop leads to a checkpoint and exit code 3.
    """
    # As in `train`.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from reptrain.tasks.finetune import finetune as tune
    from reptrain.tasks.finetune import load_finetune
    from reptrain.tasks.records import against as differ
    from reptrain.tasks.records import read_results

    config = load_finetune(task, overrides or [])
    others = read_results(against) if against is not None else None
    done = tune(run, config, out, seeds=seeds, step=step, tokenizer=tokenizer)
    is_main = os.environ.get("RANK", "0") == "0"
    if done.results is None:
        if is_main:
            typer.echo(f"stopped ({done.reason}): the same command goes on")
        raise typer.Exit(PREEMPTED)
    data, text = json.loads(done.results.model_dump_json()), done.results.text()
    if others is not None:
        gained = differ(done.results, others)
        data["against"] = {
            which: {name: interval.model_dump() for name, interval in figures.items()}
            for which, figures in gained.items()
        }
        for which, figures in gained.items():
            text += f"\n{which} checkpoint, less that of {against}"
            for name, interval in figures.items():
                beyond = (
                    ""
                    if interval.low is None
                    else ", zero outside"
                    if interval.excludes_zero
                    else ", zero inside"
                )
                text += f"\n  {name}: {interval}{beyond}"
    if is_main:
        show(data, text, as_json=as_json)
