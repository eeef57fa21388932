"""Tasks of lm-eval, on models exported for transformers."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from reptrain.errors import ConfigError
from reptrain.evaluation.evaluate import open_run
from reptrain.evaluation.pseudo_likelihood import PseudoLikelihood
from reptrain.hub.export import export_model
from reptrain.hub.saved_model import open_saved_model
from reptrain.text import Tokenizer


class LmEvalScore(NamedTuple):
    """A score reported by lm-eval."""

    run: str
    task: str
    metric: str
    """Name of the metric, with lm-eval's filter if there is one: `acc`, `exact_match,strict-match`."""
    value: float
    stderr: float | None
    """Standard error; None if lm-eval reports none."""


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
    pseudo: bool = False,
) -> list[LmEvalScore]:
    """Score a model with lm-eval, exported as a Hugging Face folder.

    Args:
        run: A run folder, one of its checkpoints, or an imported or fine-tuned model.
        tasks: Names of lm-eval tasks.
        include: Folder with more task files; their data_files are relative to the working folder.
        step: Step of the checkpoint; None: the newest intact one.
        limit: Maximum number of documents of each task; None: all.
        num_fewshot: Examples in the prompt; None: the task's default.
        batch_rows: Requests in a batch.
        device: cpu or cuda.
        pseudo: Score texts by their pseudo-log-likelihood (see `PseudoLikelihood`), without an export. Needs
            a run.

    Raises:
        ConfigError: If lm-eval is not installed, a task is unknown, its data cannot be loaded, or it needs
            generated text with ``pseudo``.
        ReptrainError: If the model cannot be exported, or has no pseudo-log-likelihood.
    """
    evaluator, manager_class, model_class, base_class = _library()
    manager = manager_class(include_path=None if include is None else str(include))
    unknown = [name for name in tasks if not manager.match_tasks([name])]
    if unknown:
        raise ConfigError(
            "--tasks",
            got=", ".join(unknown),
            rule="must be names of lm-eval's tasks",
            remedy="`lm-eval ls tasks` lists them; --include adds a folder of tasks.",
        )
    with ExitStack() as held:
        if pseudo:
            scorer = PseudoLikelihood(open_run(run, step=step, device=device))
            model = _pseudo_model(base_class, scorer, open_saved_model(run, step).tokenizer())
        else:
            folder = held.enter_context(tempfile.TemporaryDirectory())
            exported = export_model(run, Path(folder) / "model", step=step)
            model = model_class(
                pretrained=str(exported.path), device=device, batch_size=batch_rows, dtype="float32"
            )
        try:
            report = evaluator.simple_evaluate(
                model=model,
                tasks=list(tasks),
                task_manager=manager,
                limit=limit,
                num_fewshot=num_fewshot,
                bootstrap_iters=1000,
            )
        # No network, offline mode, and a missing dataset or file are all subclasses.
        except OSError as error:
            raise ConfigError(
                f"--tasks {','.join(tasks)}",
                got=str(error).splitlines()[0] if str(error) else type(error).__name__,
                rule="must be tasks whose data can be loaded",
                remedy="Download the data where there is a network (HF_HOME is the cache), or pass --include"
                " with a folder of tasks on your own files.",
            ) from error
    return [score for name, values in report["results"].items() for score in _scores(str(run), name, values)]


def _scores(run: str, task: str, values: dict[str, Any]) -> list[LmEvalScore]:
    """Scores of a task. lm-eval reports `acc,none` and `acc_stderr,none` side by side."""
    scores = []
    for key, value in values.items():
        metric, _, kind = key.partition(",")
        if metric.endswith("_stderr") or not isinstance(value, (int, float)) or not kind:
            continue
        error = values.get(f"{metric}_stderr,{kind}")
        shown = metric if kind == "none" else f"{metric},{kind}"
        scores.append(
            LmEvalScore(run, task, shown, float(value), float(error) if isinstance(error, float) else None)
        )
    return scores


def _pseudo_model(base_class: Any, scorer: PseudoLikelihood, tokenizer: Tokenizer) -> Any:
    """A model of lm-eval that answers with pseudo-log-likelihoods."""

    def nats(context: str, text: str) -> float:
        given, whole = tokenizer.encode([context, context + text])
        # A token that spans the border counts as text.
        return scorer.nats(whole.tolist(), min(len(given), len(whole) - 1))

    class Pseudo(base_class):
        def loglikelihood(self, requests: Any, **options: Any) -> list[tuple[float, bool]]:
            return [(-nats(*request.args), False) for request in requests]

        def loglikelihood_rolling(self, requests: Any, **options: Any) -> list[float]:
            return [-nats("", request.args[0]) for request in requests]

        def generate_until(self, requests: Any, **options: Any) -> list[str]:
            raise ConfigError(
                "--tasks",
                got="a task that generates text, with --pseudo",
                rule="must compare the likelihood of given texts",
                remedy="Leave --pseudo out, or choose a task such as blimp.",
            )

    return Pseudo()


def _library() -> tuple[Any, Any, Any, Any]:
    try:
        from lm_eval import evaluator
        from lm_eval.api.model import LM
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise ConfigError(
            "lm-eval",
            got=f"no package {error.name}",
            rule="must be installed",
            remedy="Install it: pip install 'reptrain[lm-eval]'.",
        ) from error

    class Model(HFLM):
        """Scores whole texts without their start token.

        By default lm-eval puts a second start token before the text and scores the first one too.
        """

        add_bos_token: bool

        def loglikelihood_rolling(self, *args: Any, **kwargs: Any) -> Any:
            before, self.add_bos_token = self.add_bos_token, False
            try:
                return super().loglikelihood_rolling(*args, **kwargs)
            finally:
                self.add_bos_token = before

    return evaluator, TaskManager, Model, LM
