"""Commands that prepare a task and fine-tune on it."""

from __future__ import annotations

import json
import os
import shlex
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from reptrain.cli.common import PREEMPTED, app, join_launched_ranks, show, tasks_app
from reptrain.cli.options import AsJson, Step, TokenizerFile
from reptrain.errors import ConfigError

Validation = Annotated[
    Path | None,
    typer.Option("--validation", metavar="PATH", help="The report split, if SOURCE is a single split."),
]


@tasks_app.command("prepare")
def tasks_prepare(
    form: Annotated[
        Literal["squad", "rows"],
        typer.Argument(
            metavar="FORM",
            help="squad: SQuAD files. rows: a folder saved by `datasets`, with any columns.",
        ),
    ],
    source: Annotated[
        Path,
        typer.Argument(
            metavar="SOURCE",
            help="A file such as train-v1.1.json, or a folder with both splits: JSON, or made by `datasets`.",
        ),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Task folder to write.")],
    validation: Validation = None,
    kind: Annotated[
        Literal["qa", "generation", "classification"] | None,
        typer.Option("--kind", help="With rows: the kind of the task."),
    ] = None,
    text: Annotated[
        str | None,
        typer.Option(
            "--input", metavar="TEXT", help="With rows: template of the input, such as '{question}'."
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            "--target", metavar="TEXT", help="With rows: template of the target, such as '{answer}'."
        ),
    ] = None,
    group: Annotated[
        str | None,
        typer.Option("--group", metavar="COLUMN", help="With rows: groups are never divided between splits."),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option("--labels", metavar="A,B", help="With rows: the labels of a classification."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Convert published files into a task for `finetune`."""
    from reptrain.tasks.prepare import prepare_rows, prepare_squad

    given = {"kind": kind, "input": text, "target": target, "group": group}
    settings: dict[str, Any] = {key: value for key, value in given.items() if value is not None}
    if labels is not None:
        settings["labels"] = labels.split(",")
    if form == "rows":
        done = prepare_rows(source, out, settings, validation=validation)
    elif settings:
        option = f"--{next(iter(settings))}"
        raise ConfigError(
            option, got="squad", rule="must be used with the form rows only", remedy="Remove it."
        )
    else:
        done = prepare_squad(source, out, validation=validation)
    show(done._asdict(), done.text(), as_json=as_json)


@app.command()
def finetune(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="A run, an imported model, or a Hugging Face folder.")
    ],
    task: Annotated[
        Path, typer.Argument(metavar="TASK", help="A folder with a task.yaml, or the path of such a file.")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to write.")],
    overrides: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="KEY=VALUE",
            help="Overrides, such as epochs=2 or task.data=FOLDER; `config schema finetune` lists all keys.",
        ),
    ] = None,
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="Number of seeds, starting with `seed`.")] = 1,
    against: Annotated[
        Path | None,
        typer.Option(
            "--against", metavar="DIR", help="Another fine-tuning folder of the task: print the difference."
        ),
    ] = None,
    step: Step = None,
    tokenizer: TokenizerFile = None,
    as_json: AsJson = False,
) -> None:
    """Fine-tune a model on a task, and score it over seeds.

    The best and the last checkpoint are scored, with intervals over the seeds. The best checkpoint is chosen
    on the selection split and scored on the report split. The same command resumes. A stop signal saves a
    checkpoint and exits with code 3.
    """
    # See `train`.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from reptrain_launcher.rank_environment import is_main_rank, read_rank_environment

    join_launched_ranks()
    read_rank_environment()
    from reptrain.tasks.finetune import finetune as tune
    from reptrain.tasks.finetune import load_finetune
    from reptrain.tasks.records import against as compare
    from reptrain.tasks.records import read_results

    config = load_finetune(task, overrides or [])
    others = read_results(against) if against is not None else None
    done = tune(run, config, out, seeds=seeds, step=step, tokenizer=tokenizer)
    is_main = is_main_rank()
    if done.results is None:
        if is_main:
            typer.echo(f"stopped ({done.reason}): the same command resumes")
        raise typer.Exit(PREEMPTED)
    data, text = json.loads(done.results.model_dump_json()), done.results.text()
    if others is not None:
        differences = compare(done.results, others)
        data["against"] = {
            which: {name: interval.model_dump() for name, interval in figures.items()}
            for which, figures in differences.items()
        }
        for which, figures in differences.items():
            text += f"\n{which} checkpoint, difference from {against}"
            for name, interval in figures.items():
                suffix = {None: "", True: ", excludes zero", False: ", includes zero"}
                method = f", {interval.method} t" if interval.method else ""
                text += f"\n  {name}: {interval}{suffix[interval.excludes_zero]}{method}"
    if is_main:
        show(data, f"{text}\n{_next(out, task, overrides or [])}", as_json=as_json)


def _next(out: Path, task: Path, overrides: list[str]) -> str:
    """Suggested next commands."""
    from reptrain.tasks.records import seed_folders

    seed = seed_folders(out)[0]
    task_overrides = [
        word for text in overrides if text.startswith(("task.", "limits.")) for word in ("--set", text)
    ]
    commands = [
        ["reptrain", "score-task", str(seed), "--task", str(task), *task_overrides],
        ["reptrain", "generate", str(seed), "--prompt", "TEXT"],
    ]
    return "\n".join(
        f"  {'' if place else 'next':<4}  {shlex.join(words)}" for place, words in enumerate(commands)
    )
