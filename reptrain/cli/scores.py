"""The commands that score models: on held-out sets, on memorization, on tasks, and by lm-eval."""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from reptrain.cli.common import app, show, table
from reptrain.cli.options import (
    AsJson,
    Device,
    MaxExamples,
    Models,
    MovedStores,
    RunFolders,
    Step,
    count_option,
)
from reptrain.errors import ConfigError

if TYPE_CHECKING:
    from reptrain.evaluation.evaluate import ScoredRun


class Set(StrEnum):
    """An evaluation set."""

    PROBE = "probe"
    SELECT = "select"
    REPORT = "report"


def _moved_option(*names: str, to: str) -> Any:
    """A hidden option of `evaluate` that is refused, with the command that replaces it."""

    def refuse(value: str | None) -> None:
        if value is not None:
            raise ConfigError(
                names[0],
                got=repr(value),
                rule="is no longer an option of evaluate",
                remedy=f"Run `reptrain {to}`.",
            )

    return typer.Option(*names, hidden=True, callback=refuse)


_MEMORIZATION = "memorization RUN... --prefix-tokens N --continuation-tokens N"
_SCORE_TASK = "score-task RUN... --task TASK --set KEY=VALUE"
_LM_EVAL = "lm-eval RUN... --tasks NAMES --include DIR"


Sets = Annotated[
    list[Set] | None, typer.Option("--set", help="Set to score; repeatable.", show_default="all three")
]
Objectives = Annotated[
    list[str] | None,
    typer.Option(
        "--objective",
        metavar="NAME|YAML",
        help="Score under this objective: a name, or a mapping such as"
        " '{name: span_corruption, mean_span_tokens: 8}'; repeatable.",
        show_default="the run's",
    ),
]
ScoredStores = Annotated[
    list[str] | None,
    typer.Option(
        "--store",
        metavar="PATH",
        help="New location of a moved store, or another store of the same tokenizer; in a mixture NAME=PATH.",
    ),
]
MaxWindows = Annotated[
    int | None,
    count_option("--max-windows", help="Largest number of windows per set.", show_default="the run's"),
]
NoiseSamples = Annotated[
    int | None,
    typer.Option("--noise-samples", min=1, help="Noise samples per window.", show_default="the run's"),
]
Ensemble = Annotated[
    bool, typer.Option("--ensemble", help="Also score the ensemble: the mean of the runs' probabilities.")
]
Snapshots = Annotated[
    bool,
    typer.Option(
        "--snapshots",
        help="Score the checkpoint at the end of each cycle of a cyclic learning rate,"
        " instead of the newest one.",
    ),
]
LearnWeights = Annotated[
    bool,
    typer.Option(
        "--learn-weights",
        help="With --ensemble: learn the weights of the members on the select split;"
        " without it they are equal.",
    ),
]


ContextGain = Annotated[
    bool,
    typer.Option(
        "--context-gain",
        help="Also score encoder-decoders with the encoder inputs of other windows, and print the difference"
        " of the losses.",
    ),
]


@app.command()
def evaluate(
    runs: RunFolders,
    sets: Sets = None,
    objectives: Objectives = None,
    store: ScoredStores = None,
    step: Step = None,
    max_windows: MaxWindows = None,
    noise_samples: NoiseSamples = None,
    ensemble: Ensemble = False,
    snapshots: Snapshots = False,
    learn_weights: LearnWeights = False,
    context_gain: ContextGain = False,
    device: Device = "auto",
    as_json: AsJson = False,
    memorization: Annotated[str | None, _moved_option("--memorised", "--memorized", to=_MEMORIZATION)] = None,
    prefix_tokens: Annotated[str | None, _moved_option("--prefix-tokens", to=_MEMORIZATION)] = None,
    task: Annotated[str | None, _moved_option("--task", to=_SCORE_TASK)] = None,
    settings: Annotated[str | None, _moved_option("--set-task", to=_SCORE_TASK)] = None,
    lm_eval: Annotated[str | None, _moved_option("--lm-eval", to=_LM_EVAL)] = None,
    include: Annotated[str | None, _moved_option("--include", to=_LM_EVAL)] = None,
    max_examples: Annotated[str | None, _moved_option("--max-examples", to=_SCORE_TASK)] = None,
) -> None:
    """Score runs on their evaluation sets, in fp32.

    The scores are nats per token, bits per byte, accuracy, and the gap to the training probe. Windows and
    noise are the same as in the run's own evaluations, and the same for all runs on a store.
    """
    from reptrain.auditing.audit import store_places
    from reptrain.evaluation.evaluate import SETS, open_run, score_run

    _check_ensemble(ensemble=ensemble, snapshots=snapshots, learn_weights=learn_weights, step=step)
    opened = [
        open_run(path, step=number, stores=store_places(path, store or []), device=device)
        for path in runs
        for number in (_snapshots(path) if snapshots else [step])
    ]
    learned: list[float] | None = None
    lines: list[str] = []
    if ensemble:
        from reptrain.evaluation.ensemble import ensemble_of

        if learn_weights:
            learned, lines = _learned_weights(opened, max_windows)
        opened.append(ensemble_of(opened, learned))
    rows: list[tuple[dict[str, object], dict[str, object]]] = []
    for run in opened:
        scores = score_run(
            run, sets=sets or SETS, objectives=objectives or [], max_windows=max_windows,
            noise_samples=noise_samples, context_gain=context_gain,
        )  # fmt: skip
        more: dict[str, object] = {}
        if learned is not None:
            more["member_weights"] = learned if run is opened[-1] else None
        rows += [(score.row(), more) for score in scores]
    text = "\n".join([table([row for row, _ in rows]), *lines])
    show([row | more for row, more in rows], text, as_json=as_json)


def _learned_weights(members: Sequence[ScoredRun], max_windows: int | None) -> tuple[list[float], list[str]]:
    """Weights of an ensemble's members that are learned on the select split, and the lines that show them."""
    from reptrain.evaluation.ensemble import learned_weights, member_names

    learned = learned_weights(members, max_windows=max_windows)
    pairs = zip(learned, member_names(members), strict=True)
    return learned, ["", "weights learned on select:", *(f"{weight:.4f}  {name}" for weight, name in pairs)]


def _snapshots(path: Path) -> list[int]:
    from reptrain.evaluation.ensemble import snapshot_steps

    return snapshot_steps(path)


def _check_ensemble(*, ensemble: bool, snapshots: bool, learn_weights: bool, step: int | None) -> None:
    """Refuse options that exclude or need each other."""
    if snapshots and step is not None:
        raise ConfigError(
            "--step",
            got=f"{step}, with --snapshots",
            rule="must be left out with --snapshots, which scores several steps",
            remedy="Leave one of them out.",
        )
    if learn_weights and not ensemble:
        raise ConfigError(
            "--learn-weights",
            got="no --ensemble",
            rule="needs --ensemble, whose members it weights",
            remedy="Add --ensemble.",
        )


@app.command("memorisation", hidden=True)
@app.command()
def memorization(
    runs: RunFolders,
    prefix_tokens: Annotated[
        int,
        typer.Option("--prefix-tokens", min=1, help="Length of the prompt, the first tokens of the window."),
    ] = 32,
    continuation_tokens: Annotated[
        int,
        typer.Option("--continuation-tokens", min=1, help="Length of the continuation, after the prompt."),
    ] = 32,
    store: MovedStores = None,
    step: Step = None,
    max_windows: Annotated[
        int, count_option("--max-windows", help="Largest number of windows per subset.")
    ] = 256,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Count the windows that a model reproduces exactly.

    The model gets the first tokens of a window and continues them greedily. The counts are grouped by the
    number of exposures of the windows.
    """
    from reptrain.auditing.audit import store_places
    from reptrain.evaluation.evaluate import open_run
    from reptrain.evaluation.memorization import memorized

    rows = []
    for path in runs:
        run = open_run(path, step=step, stores=store_places(path, store or []), device=device)
        counts = memorized(
            run,
            prefix_tokens=prefix_tokens,
            continuation_tokens=continuation_tokens,
            max_windows=max_windows,
        )
        rows += [count._asdict() | {"share": count.share} for count in counts]
    show(rows, table(rows), as_json=as_json)


@app.command("score-task")
def score_task(
    models: Models,
    task: Annotated[
        Path,
        typer.Option("--task", metavar="TASK", help="A folder with a task.yaml, or the path of such a file."),
    ],
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="Override, such as task.data=FOLDER or limits.input_tokens=256; repeatable.",
        ),
    ] = None,
    step: Step = None,
    max_examples: MaxExamples = None,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Score models on a task, without fine-tuning them."""
    from reptrain.tasks.evaluate import score_on_task
    from reptrain.tasks.finetune import load_finetune

    config = load_finetune(task, settings or [])
    changes = {} if max_examples is None else {"report_examples": max_examples}
    limits = config.limits.model_copy(update=changes)
    rows = []
    for model in models:
        result = score_on_task(model, config.task, limits, step=step, device=device)
        score = result.score
        rows.append(
            {"run": result.run, "step": result.step, "task": config.task.name, "examples": score.examples}
            | score.figures
            | {"cut_inputs": score.cut_inputs, "cut_targets": score.cut_targets}
        )
    show(rows, table(rows), as_json=as_json)


@app.command("lm-eval")
def lm_eval(
    models: Models,
    tasks: Annotated[
        str, typer.Option("--tasks", metavar="NAMES", help="Tasks of lm-eval, separated by commas.")
    ],
    include: Annotated[
        Path | None, typer.Option("--include", metavar="DIR", help="Folder of your own lm-eval tasks.")
    ] = None,
    step: Step = None,
    max_examples: MaxExamples = None,
    pseudo: Annotated[
        bool,
        typer.Option(
            "--pseudo",
            help="Predict each token from all others, for runs under span_corruption or masked_diffusion.",
        ),
    ] = False,
    device: Device = "auto",
    as_json: AsJson = False,
) -> None:
    """Score models on tasks of lm-eval.

    The models are exported to Hugging Face folders first.
    """
    from reptrain.distributed.world import choose_device
    from reptrain.evaluation.lm_eval import score_by_lm_eval

    chosen = choose_device(device).type
    rows = [
        score._asdict()
        for model in models
        for score in score_by_lm_eval(
            model,
            tasks.split(","),
            include=include,
            step=step,
            limit=max_examples,
            device=chosen,
            pseudo=pseudo,
        )
    ]
    show(rows, table(rows), as_json=as_json)
