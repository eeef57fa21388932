"""Tasks of lm-eval, on models as transformers has them."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from reptrain.errors import ConfigError
from reptrain.hub.export import export_model


class LmEvalScore(NamedTuple):
    """A figure of lm-eval."""

    run: str
    task: str
    metric: str
    """With lm-eval's filter where it is none of the usual: `acc`, `exact_match,strict-match`."""
    value: float
    stderr: float | None
    """Its standard error; None where lm-eval tells none."""


def score_by_lm_eval(
    run: Path,
    tasks: Sequence[str],
    *,
    include: Path | None = None,
    step: int | None = None,
    limit: int | None = None,
    num_fewshot: int | None = None,
    batch_rows: int = 16,
    device: str = "cpu",
) -> list[LmEvalScore]:
    """Export a model as a Hugging Face folder, and let lm-eval score it.

    Args:
        run: A run folder, one of its checkpoints, or an imported or fine-tuned model.
        tasks: Names that lm-eval knows.
        include: A folder of task files besides lm-eval's own; a task's data_files are taken from the working
            folder.
        step: Of a run, whose checkpoint; None takes the newest that is whole.
        limit: Documents of each task; None takes all.
        num_fewshot: Examples in the prompt; None takes the task's.
        batch_rows: Requests at a time.
        device: cpu or cuda.

    Raises:
        ConfigError: If lm-eval is not installed, knows no such task, or cannot load a task's data.
        ReptrainError: If the model cannot be exported.
    """
    evaluator, manager_class, model_class = _library()
    manager = manager_class(include_path=None if include is None else str(include))
    unknown = [name for name in tasks if not manager.match_tasks([name])]
    if unknown:
        raise ConfigError(
            "--tasks",
            got=", ".join(unknown),
            rule="must be names of lm-eval's tasks",
            remedy="`lm-eval ls tasks` lists them; --include names a folder of more.",
        )
    with tempfile.TemporaryDirectory() as folder:
        exported = export_model(run, Path(folder) / "model", step=step)
        model = model_class(
            pretrained=str(exported.path), device=device, batch_size=batch_rows, dtype="float32"
        )
        try:
            found = evaluator.simple_evaluate(
                model=model,
                tasks=list(tasks),
                task_manager=manager,
                limit=limit,
                num_fewshot=num_fewshot,
                bootstrap_iters=1000,
            )
        # No network, offline mode, no such dataset or file: all are kinds of it.
        except OSError as error:
            raise ConfigError(
                f"--tasks {','.join(tasks)}",
                got=str(error).splitlines()[0] if str(error) else type(error).__name__,
                rule="must be tasks whose data can be loaded",
                remedy="Download it once where there is a network (HF_HOME is the cache), or name a folder of"
                " tasks with files of your own by --include.",
            ) from error
    return [score for name, figures in found["results"].items() for score in _scores(str(run), name, figures)]


def _scores(run: str, task: str, figures: dict[str, Any]) -> list[LmEvalScore]:
    """lm-eval tells `acc,none` and `acc_stderr,none` side by side."""
    found = []
    for key, value in figures.items():
        metric, _, kind = key.partition(",")
        if metric.endswith("_stderr") or not isinstance(value, (int, float)) or not kind:
            continue
        error = figures.get(f"{metric}_stderr,{kind}")
        shown = metric if kind == "none" else f"{metric},{kind}"
        found.append(
            LmEvalScore(run, task, shown, float(value), float(error) if isinstance(error, float) else None)
        )
    return found


def _library() -> tuple[Any, Any, Any]:
    try:
        from lm_eval import evaluator
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise ConfigError(
            "lm-eval",
            got=f"no package {error.name}",
            rule="must be installed",
            remedy="Install it: pip install 'reptrain[lm-eval]'.",
        ) from error

    class Model(HFLM):  # type: ignore[misc]
        """Of whole texts only the text is scored: left alone, lm-eval has the start token predicted too, from
        another one that it puts before it."""

        def loglikelihood_rolling(self, *arguments: Any, **more: Any) -> Any:
            before, self.add_bos_token = self.add_bos_token, False
            try:
                return super().loglikelihood_rolling(*arguments, **more)
            finally:
                self.add_bos_token = before

    return evaluator, TaskManager, Model
