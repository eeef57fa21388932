"""Commands for tasks: prepare one, and fine-tune on it."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from reptrain.cli.common import PREEMPTED, AsJson, app, show, tasks_app
from reptrain.cli.trained import Step, TokenizerFile
from reptrain.errors import ConfigError

Validation = Annotated[
    Path | None,
    typer.Option("--validation", metavar="PATH", help="Reporting split, where SOURCE is one split alone."),
]


@tasks_app.command("prepare")
def tasks_prepare(
    form: Annotated[
        Literal["squad", "rows"],
        typer.Argument(
            help="squad: SQuAD's questions. rows: a folder that `datasets` saved, of any columns."
        ),
    ],
    source: Annotated[
        Path,
        typer.Argument(
            help="A file such as train-v1.1.json, or a folder of both splits: JSON, or saved by `datasets`."
        ),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder of the new task.")],
    validation: Validation = None,
    kind: Annotated[
        Literal["qa", "generation", "classification"] | None,
        typer.Option("--kind", help="With rows: the kind of the task."),
    ] = None,
    text: Annotated[
        str | None, typer.Option("--input", metavar="TEXT", help="With rows: what is read, as '{question}'.")
    ] = None,
    target: Annotated[
        str | None,
        typer.Option("--target", metavar="TEXT", help="With rows: what is written, as '{answer}'."),
    ] = None,
    group: Annotated[
        str | None, typer.Option("--group", metavar="COLUMN", help="With rows: kept on one side of a split.")
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option("--labels", metavar="A,B", help="With rows: the targets of a classification."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Make a task for `finetune` of files that others publish."""
    from reptrain.tasks.prepare import prepare_rows, prepare_squad

    given = {"kind": kind, "input": text, "target": target, "group": group}
    settings: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    if labels is not None:
        settings["labels"] = labels.split(",")
    if form == "rows":
        done = prepare_rows(source, out, settings, validation=validation)
    elif settings:
        option = f"--{next(iter(settings))}"
        raise ConfigError(option, got="it with squad", rule="goes with rows only", remedy="Leave it out.")
    else:
        done = prepare_squad(source, out, validation=validation)
    show(done._asdict(), done.text(), as_json=as_json)


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
            "--against", metavar="DIR", help="Another fine-tuning on the task: print the difference."
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
    from reptrain_launcher.rank_environment import is_main_rank, read_rank_environment

    read_rank_environment()
    from reptrain.tasks.finetune import finetune as tune
    from reptrain.tasks.finetune import load_finetune
    from reptrain.tasks.records import against as differ
    from reptrain.tasks.records import read_results

    config = load_finetune(task, overrides or [])
    others = read_results(against) if against is not None else None
    done = tune(run, config, out, seeds=seeds, step=step, tokenizer=tokenizer)
    is_main = is_main_rank()
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
            text += f"\n{which} checkpoint, difference from {against}"
            for name, interval in figures.items():
                judged = {None: "", True: ", excludes zero", False: ", includes zero"}
                method = f", {interval.method} t" if interval.method else ""
                text += f"\n  {name}: {interval}{judged[interval.excludes_zero]}{method}"
    if is_main:
        show(data, f"{text}\n{_next(out, task, overrides or [])}", as_json=as_json)


def _next(out: Path, task: Path, overrides: list[str]) -> str:
    """The commands that come next."""
    seed = min(out.glob("seed-*"), key=lambda folder: int(folder.name.removeprefix("seed-")))
    of_task = [
        word for text in overrides if text.startswith(("task.", "limits.")) for word in ("--set-task", text)
    ]
    commands = [
        ["reptrain", "evaluate", str(seed), "--task", str(task), *of_task],
        ["reptrain", "generate", str(seed), "--prompt", "TEXT"],
    ]
    return "\n".join(
        f"  {'' if place else 'next':<4}  {shlex.join(words)}" for place, words in enumerate(commands)
    )
