"""A sweep of settings that Optuna chooses one after another, each trial a small study of its own."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from reptrain.errors import StudyError
from reptrain.study.collect import collect
from reptrain.study.executor import Executor
from reptrain.study.grid import arm_name
from reptrain.study.runner import run_study
from reptrain.study.schema import StudyConfig

_PREEMPTED = 3
_JOURNAL = "sweep.journal"
_RANGE = re.compile(r"([0-9.eE+-]+)\.\.([0-9.eE+-]+)")


@dataclass(frozen=True)
class Space:
    """The values of one setting.

    Attributes:
        key: Its dotted key.
        values: The values to choose from; empty for a range.
        low, high: The ends of a range, which is searched in its logarithm if `low` is positive.
    """

    key: str
    values: tuple[Any, ...] = ()
    low: float = 0.0
    high: float = 0.0


@dataclass(frozen=True)
class SweepTrials:
    """The trials so far.

    Attributes:
        trials: Settings and mean selection loss of each finished trial, the best first.
        num_failed: Trials without a finite loss.
        stopped: Whether a signal stopped it before all trials ended.
    """

    trials: tuple[tuple[Mapping[str, Any], float], ...]
    num_failed: int
    stopped: bool = False


def parse_space(text: str) -> Space:
    """A setting as on the command line: ``optimizer.lr=1e-4..1e-2`` or ``model.dropout.residual=0,0.1,0.2``.

    Raises:
        StudyError: If it is neither.
    """
    key, equals, values = text.partition("=")
    try:
        if match := _RANGE.fullmatch(values):
            low, high = float(match[1]), float(match[2])
            if equals and math.isfinite(low) and low < high < math.inf:
                return Space(key, low=low, high=high)
        elif equals and values:
            return Space(key, tuple(float(value) for value in values.split(",")))
    except ValueError:
        pass
    raise StudyError(
        "--over",
        got=repr(text),
        rule="must be KEY=LOW..HIGH or KEY=VALUE,VALUE,...",
        remedy="For example optimizer.lr=1e-4..1e-2.",
    )


def run_sweep(
    study: StudyConfig,
    out: Path,
    spaces: Sequence[Space],
    *,
    num_trials: int,
    seed: int = 0,
    launch: Sequence[str] | None = None,
    executor: Executor | None = None,
) -> SweepTrials:
    """Run trials until so many have ended. Several processes may work on one folder, also a shared one.

    Settings that are all lists are searched as a grid, else by Optuna's default sampler.

    Args:
        study: The study; it has no axes and at most one named arm. A trial runs all its seeds.
        out: The folder of the sweep.
        spaces: The settings to vary.
        num_trials: Trials to have in all, those of earlier calls included.
        seed: Seed of the sampler.
        launch: See `run_study`.
        executor: See `run_study`.

    Raises:
        StudyError: If Optuna is not installed, or a setting is wrong.
    """
    if study.axes or len(study.arms) > 1 or any(entry.axes for entry in study.arms):
        raise StudyError(
            f"study {study.name}",
            got="axes or arms",
            rule="must have neither in a sweep, which varies the settings itself",
            remedy="Remove them; or name the arms with --proxy and --target.",
        )
    optuna = _optuna()
    trials, stopped = _open(optuna, out, seed), False
    if all(space.values for space in spaces):
        grid = [*itertools.product(*(space.values for space in spaces))]
        for point in grid:
            trials.enqueue_trial(
                {space.key: value for space, value in zip(spaces, point, strict=True)}, skip_if_exists=True
            )
        num_trials = min(num_trials, len(grid))
    while len(_ended(optuna, trials)) < num_trials:
        trial = trials.ask()
        values = {space.key: _suggest(trial, space) for space in spaces}
        stopped, loss = _run_trial(study, out, values, launch, executor)
        if stopped:
            # The next call gets the same settings, and their runs resume.
            trials.tell(trial, state=optuna.trial.TrialState.PRUNED)
            trials.enqueue_trial(values)
            break
        if loss is None:
            trials.tell(trial, state=optuna.trial.TrialState.FAIL)
        else:
            trials.tell(trial, loss)
    done = [trial for trial in _ended(optuna, trials) if trial.value is not None]
    ranked = sorted(((trial.params, float(trial.value)) for trial in done), key=lambda pair: pair[1])
    return SweepTrials(tuple(ranked), len(_ended(optuna, trials)) - len(done), stopped)


def trial_folder(out: Path, values: Mapping[str, Any]) -> Path:
    """The study folder of a trial."""
    return out / "trials" / arm_name(values)


def _optuna() -> Any:
    try:
        import optuna
    except ImportError as error:
        raise StudyError(
            "optuna",
            got="no such package",
            rule="must be installed for a sweep",
            remedy="pip install 'reptrain[sweep]'",
        ) from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def _open(optuna: Any, out: Path, seed: int) -> Any:
    """The journal of the sweep; its lock is a file, so that it works on network file systems."""
    from optuna.storages.journal import JournalFileBackend, JournalFileOpenLock

    out.mkdir(parents=True, exist_ok=True)
    journal = str(out / _JOURNAL)
    storage = optuna.storages.JournalStorage(
        JournalFileBackend(journal, lock_obj=JournalFileOpenLock(journal))
    )
    sampler = optuna.samplers.TPESampler(seed=seed)
    return optuna.create_study(storage=storage, sampler=sampler, study_name="sweep", load_if_exists=True)


def _ended(optuna: Any, trials: Any) -> list[Any]:
    states = (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.FAIL)
    return list(trials.get_trials(deepcopy=False, states=states))


def _suggest(trial: Any, space: Space) -> Any:
    if space.values:
        return trial.suggest_categorical(space.key, [*space.values])
    return trial.suggest_float(space.key, space.low, space.high, log=space.low > 0)


def _run_trial(
    study: StudyConfig,
    out: Path,
    values: Mapping[str, Any],
    launch: Sequence[str] | None,
    executor: Executor | None,
) -> tuple[bool, float | None]:
    """Whether a signal stopped it, and the mean over seeds of the lowest selection loss; None without one."""
    one = StudyConfig.model_validate(
        {
            **study.model_dump(mode="json", exclude={"claims", "fits", "then", "tune"}),
            "axes": {key: [value] for key, value in values.items()},
        }
    )
    folder = trial_folder(out, values)
    if run_study(one, folder, launch=launch, executor=executor).exit_code == _PREEMPTED:
        return True, None
    losses = [row.best_select_nats for row in collect(one, folder) if row.state == "done"]
    found = [loss for loss in losses if loss is not None and math.isfinite(loss)]
    complete = found and len(found) == max(1, len(one.seeds))
    return False, sum(found) / len(found) if complete else None
