"""The command that scores runs."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Literal

import typer

from reptrain.cli.common import AsJson, app, count_option, show
from reptrain.errors import ConfigError


class Set(StrEnum):
    """A set of windows."""

    PROBE = "probe"
    SELECT = "select"
    REPORT = "report"


@app.command()
def evaluate(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Run folders.")],
    sets: Annotated[
        list[Set] | None, typer.Option("--set", help="May be given several times.", show_default="all three")
    ] = None,
    objectives: Annotated[
        list[str] | None,
        typer.Option(
            "--objective",
            metavar="NAME|YAML",
            help="Another objective that the model can run: a name, or such as"
            " '{name: span_corruption, mean_span_tokens: 8}'. May be given several times.",
            show_default="the run's",
        ),
    ] = None,
    store: Annotated[
        list[str] | None,
        typer.Option(
            "--store",
            metavar="PATH",
            help="Where the store is now, or another one of the same tokenizer; in a mixture NAME=PATH.",
        ),
    ] = None,
    step: Annotated[
        int | None, typer.Option("--step", help="Whose checkpoint.", show_default="the newest")
    ] = None,
    max_windows: Annotated[
        int | None, count_option("--max-windows", help="Of each set.", show_default="the run's")
    ] = None,
    noise_samples: Annotated[
        int | None,
        typer.Option(
            "--noise-samples", min=1, help="How often each, under other noise.", show_default="the run's"
        ),
    ] = None,
    memorised: Annotated[
        int | None,
        typer.Option(
            "--memorised",
            min=1,
            metavar="K",
            help="Instead tell for how many windows the model gives the next K tokens, by their exposures.",
        ),
    ] = None,
    prefix_tokens: Annotated[
        int | None,
        typer.Option("--prefix-tokens", min=1, help="Of the prompt, with --memorised.", show_default="32"),
    ] = None,
    ensemble: Annotated[
        bool, typer.Option("--ensemble", help="Also score the mean of the runs' probabilities.")
    ] = False,
    task: Annotated[
        Path | None,
        typer.Option(
            "--task",
            metavar="TASK",
            help="Instead score on a task: a folder with a task.yaml, or such a file.",
        ),
    ] = None,
    lm_eval: Annotated[
        str | None,
        typer.Option(
            "--lm-eval", metavar="TASKS", help="Instead let lm-eval score: names, with commas between."
        ),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set-task",
            metavar="KEY=VALUE",
            help="With --task, of it or its limits, as in task.data=FOLDER or limits.input_tokens=256.",
        ),
    ] = None,
    include: Annotated[
        Path | None, typer.Option("--include", metavar="DIR", help="With --lm-eval, a folder of more tasks.")
    ] = None,
    max_examples: Annotated[
        int | None,
        typer.Option("--max-examples", min=1, help="With --task or --lm-eval.", show_default="all"),
    ] = None,
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option("--device", help="To score on.")] = "auto",
    as_json: AsJson = False,
) -> None:
    """Score runs in fp32: nats per token, bits per byte, accuracy, and the gap to training windows.

    Windows and noise are those of the run's own evaluations, and the same for all runs on a store.
    """
    _refuse_what_goes_unused(
        {
            "--task": task,
            "--lm-eval": lm_eval,
            "--memorised": memorised,
            "--set": sets,
            "--objective": objectives,
            "--store": store,
            "--max-windows": max_windows,
            "--noise-samples": noise_samples,
            "--prefix-tokens": prefix_tokens,
            "--ensemble": ensemble,
            "--set-task": settings,
            "--include": include,
            "--max-examples": max_examples,
        }
    )
    if task is not None or lm_eval is not None:
        from reptrain.cli.task_scores import rows_on_lm_eval, rows_on_task

        if task is not None:
            rows = rows_on_task(
                runs, task, settings or [], step=step, max_examples=max_examples, device=device
            )
        else:
            names = str(lm_eval).split(",")
            rows = rows_on_lm_eval(
                runs, names, include=include, step=step, max_examples=max_examples, device=device
            )
        show(rows, table(rows), as_json=as_json)
        return
    from reptrain.auditing.audit import store_places
    from reptrain.evaluation.evaluate import SETS, open_run, score_run
    from reptrain.evaluation.memorization import memorized as ask

    rows = []
    opened = []
    for path in runs:
        run = open_run(path, step=step, stores=store_places(path, store or []), device=device)
        if memorised is not None:
            rows += [
                found._asdict() | {"share": found.share}
                for found in ask(
                    run,
                    prefix_tokens=prefix_tokens or 32,
                    continuation_tokens=memorised,
                    max_windows=max_windows or 256,
                )
            ]
            continue
        opened.append(run)
    if ensemble and opened:
        from reptrain.evaluation.ensemble import ensemble_of

        opened.append(ensemble_of(opened))
    for run in opened:
        rows += [
            score._asdict()
            for score in score_run(
                run,
                sets=sets or SETS,
                objectives=objectives or [],
                max_windows=max_windows,
                noise_samples=noise_samples,
            )
        ]
    show(rows, table(rows), as_json=as_json)


_PLAIN = "scores of windows"
# What is scored, and what else may then be given.
_KINDS = {
    "--task": {"--set-task", "--max-examples"},
    "--lm-eval": {"--include", "--max-examples"},
    "--memorised": {"--prefix-tokens", "--store", "--max-windows"},
    _PLAIN: {"--set", "--objective", "--store", "--max-windows", "--noise-samples", "--ensemble"},
}


def _refuse_what_goes_unused(given: dict[str, object]) -> None:
    """Raise a ConfigError for an option that what is scored has no use for."""
    options = {name for name, value in given.items() if value}
    kind = next((kind for kind in _KINDS if kind in options), _PLAIN)
    for option in sorted(options - _KINDS[kind] - {kind}):
        fitting = [name for name, known in _KINDS.items() if option in known]
        raise ConfigError(
            option,
            got=f"it with {kind}",
            rule=f"goes with {' or '.join(fitting)} only" if fitting else "goes with no other kind of score",
            remedy="Ask for one thing at a time.",
        )


def table(rows: list[dict[str, object]]) -> str:
    """Rows of equal keys as lines of text, with a heading."""
    if not rows:
        return "nothing to tell"
    lines = [[key.replace("_", " ") for key in rows[0]]]
    lines += [[_cell(value) for value in row.values()] for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    aligned = ("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)
    return "\n".join(aligned)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else f"{value}"
