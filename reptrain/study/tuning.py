"""Tuning: settings that are chosen for each group of arms, by runs of their own on the selection split.

The state of a tuning is a function of the run folders: which values were tried, with which losses, and
whether the best value lies inside the range that was tried.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from reptrain.config import RunConfig
from reptrain.config.json_digest import fingerprint
from reptrain.runs.folder import RunFolder
from reptrain.study.arm import Arm
from reptrain.study.chains import INIT_FROM, StudyTraining, training_fingerprints
from reptrain.study.done_table import DoneRow, load_done
from reptrain.study.graph import store_fingerprints
from reptrain.study.grid import arm_name, arms, varied_keys
from reptrain.study.looks import added_seeds
from reptrain.study.node_state import has_diverged
from reptrain.study.paths import is_run_of, run_path
from reptrain.study.point import EPOCHS, config_of, epochs, set_epochs, setting
from reptrain.study.schema import StudyConfig
from reptrain.study.sections import Tune
from reptrain.study.tuning_labels import group_labels

Losses = Callable[[RunConfig, str], float | None]
"""The lowest selection loss of a run by its configuration and name; None if it has not ended."""
Values = tuple[Any, ...]


@dataclass(frozen=True)
class Trial:
    """One tuning run."""

    name: str
    config: RunConfig
    values: Mapping[str, Any]
    """The varied keys, those that are tuned included."""
    parent: str | None = None
    """The run that it starts from; None if there is none."""


@dataclass(frozen=True)
class TunedGroup:
    """A group of arms with the state of its tuning.

    Attributes:
        name: Name of the group, a part of a file name.
        arms: Names of its arms, without their seeds.
        trials: Its tuning runs so far.
        means: Mean loss of each combination of values over the seeds, where all have ended; infinite if one
            diverged.
        best: The chosen settings by dotted key; None until they are known.
        at_edge: Keys whose best value is at an edge of the range, after all extensions.
        keys: The tuned keys, in the order of the combinations' values.
        num_seeds: Tuning runs of each combination.
        label: The group in words.
    """

    name: str
    arms: tuple[str, ...]
    trials: tuple[Trial, ...]
    means: Mapping[Values, float]
    best: Mapping[str, Any] | None
    at_edge: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    num_seeds: int = 1
    label: str = ""


def tuned_arms(study: StudyConfig, out: Path) -> tuple[list[Arm], list[TunedGroup]]:
    """The arms of a study with the settings that tuning chose so far, and the groups.

    Args:
        study: The study.
        out: Its folder.

    Raises:
        StudyError: If the study itself is wrong.
    """
    more_seeds = added_seeds(out)
    if study.tune is None:
        return arms(study, more_seeds=more_seeds, out=out), []
    found, done = folder_losses(out), load_done(out)
    tuned, groups = tuned_by(study, found, more_seeds, out=out)
    settled: set[str] | None = None
    # A tuned parent settles the fingerprints of the tuning runs that start from it.
    while done and settled != (now := {group.name for group in groups if group.best is not None}):
        settled = now
        known = _fingerprints(tuned, groups)
        rows = {name: done[key] for name, key in known.items() if key in done}

        def losses(config: RunConfig, name: str, rows: Mapping[str, DoneRow] = rows) -> float | None:
            own = found(config, name)
            return rows[name].loss_select_best_nats if own is None and name in rows else own

        tuned, groups = tuned_by(study, losses, more_seeds, out=out)
    return tuned, groups


def _fingerprints(tuned: Sequence[Arm], groups: Sequence[TunedGroup]) -> dict[str, str]:
    """Fingerprints of the tuning runs, without those that start from a run that is still to be tuned."""
    trials = [trial for group in groups for trial in group.trials]
    trainings: list[StudyTraining] = [*tuned, *trials]
    stores = store_fingerprints(training.config for training in trainings)
    known = training_fingerprints(trainings, stores)
    untuned = untuned_arms(tuned, groups)
    return {trial.name: known[trial.name] for trial in trials if trial.parent not in untuned}


def untuned_arms(tuned: Sequence[Arm], groups: Sequence[TunedGroup]) -> set[str]:
    """The arms with settings that are still to be tuned, their own or those of a parent."""
    waiting = {name for group in groups if group.best is None for name in group.arms}
    by_name = {arm.name: arm for arm in tuned}

    def is_untuned(arm: Arm) -> bool:
        return arm.group in waiting or (arm.parent is not None and is_untuned(by_name[arm.parent]))

    return {arm.name for arm in tuned if is_untuned(arm)}


def tuned_by(
    study: StudyConfig,
    losses: Losses,
    more_seeds: Mapping[str, Sequence[int]] | None = None,
    *,
    out: Path | None = None,
) -> tuple[list[Arm], list[TunedGroup]]:
    """`tuned_arms`, with the losses of the tuning runs as a function and the seeds added by second looks."""
    tune = study.tune
    assert tune is not None
    # Before tuning, the first value stands for the one to be chosen.
    first = arms(study, out=out)
    by_group: dict[Values, list[Arm]] = {}
    for arm in first:
        by_group.setdefault(_group_key(arm, tune), []).append(arm)
    groups = [_group(study, tune, key, members, losses) for key, members in by_group.items()]
    labels = group_labels([*by_group.values()], [_at_of(key, tune) for key in by_group])
    groups = [replace(group, label=label) for group, label in zip(groups, labels, strict=True)]
    chosen = {arm: group.best for group in groups if group.best is not None for arm in group.arms}
    return arms(study, chosen, more_seeds, out=out), groups


def folder_losses(out: Path) -> Losses:
    """The losses of the runs in a study's folder."""

    def loss(config: RunConfig, name: str) -> float | None:
        run = run_path(out, name)
        if not (run / "status.json").exists():
            return None
        folder = RunFolder.open(run)
        if not is_run_of(config, folder):
            return None
        if has_diverged(folder):
            return math.inf
        return _lowest_select(folder) if folder.status().state == "done" else None

    return loss


def _lowest_select(folder: RunFolder) -> float:
    """The lowest loss on the selection split after the first step, as a mean over the sources."""
    by_step: dict[int, list[float]] = {}
    for record in folder.metrics.records("valid"):
        if record.set.split("/")[0] == "select" and record.weights == "own" and record.step > 0:
            by_step.setdefault(record.step, []).append(record.nats)
    means = [statistics.fmean(nats) for nats in by_step.values()]
    return min((mean for mean in means if math.isfinite(mean)), default=math.inf)


def _group_key(arm: Arm, tune: Tune) -> Values:
    """What the arms of a group agree on."""

    def counts(key: str) -> bool:
        return any(key == one or key.startswith(f"{one}.") for one in tune.per)

    axes = _axes(arm, tune)
    entry = arm.shown.get("arm") if "arm" in tune.per or arm.point.entry.tune else None
    own = [(key, _frozen(value)) for key, value in arm.values.items() if counts(key) and key not in axes]
    at = [(key, _nearest(_value(arm.config, key), values)) for key, values in _at(tune, arm).items()]
    return (entry, *own, *at)


def _at_of(key: Values, tune: Tune) -> dict[str, Any]:
    """The values of `at` in the key of a group."""
    return dict(key[len(key) - len(tune.at) :])


def _axes(arm: Arm, tune: Tune) -> dict[str, list[Any]]:
    """The keys to tune for an arm, with their values."""
    return arm.point.entry.tune or tune.axes


def _at(tune: Tune, arm: Arm) -> dict[str, list[Any]]:
    """The values of `at` as a configuration has them."""
    return {
        key: values if key == EPOCHS else [_read(arm, key, value) for value in values]
        for key, values in tune.at.items()
    }


def _value(config: RunConfig, key: str) -> Any:
    return epochs(config) if key == EPOCHS else setting(config, key)


def _read(arm: Arm, key: str, value: Any) -> Any:
    """A value as in the arm's configuration: `2**18` as a number."""
    point = replace(arm.point, data=dict(arm.point.data))
    point.set(key, value)
    return setting(point.config, key)


def _nearest(value: Any, values: Sequence[Any]) -> Any:
    """The nearest value: in proportion where all are positive numbers, else the equal one."""
    numbers = [value, *values]
    if all(isinstance(one, int | float) and one > 0 for one in numbers):
        return min(values, key=lambda one: abs(math.log(one / value)))
    return value if value in values else values[0]


def _frozen(value: Any) -> Any:
    return fingerprint(value) if isinstance(value, dict | list) else value


def _group(study: StudyConfig, tune: Tune, key: Values, members: Sequence[Arm], losses: Losses) -> TunedGroup:
    """Follow a group's tuning as far as its runs have ended."""
    arm = members[0]
    at = _at_of(key, tune)
    name = _group_name(arm, at, tune)
    ranges = {axis: _as_read(arm, axis, values) for axis, values in _axes(arm, tune).items()}
    extended = dict.fromkeys(ranges, 0)
    keys, num_seeds = tuple(ranges), len(tune.seeds)
    names = tuple(dict.fromkeys(member.group for member in members))
    trials: dict[str, Trial] = {}
    means: dict[Values, float] = {}
    while True:
        for point in itertools.product(*ranges.values()):
            values: Values = tuple(point)
            made = [
                _trial(study, tune, arm, at, name, dict(zip(ranges, values, strict=True)), seed)
                for seed in tune.seeds
            ]
            trials |= {trial.name: trial for trial in made}
            found = [losses(trial.config, trial.name) for trial in made]
            if None not in found:
                means[values] = statistics.fmean(loss for loss in found if loss is not None)
        if len(means) < math.prod(map(len, ranges.values())):
            return TunedGroup(name, names, tuple(trials.values()), means, None, (), keys, num_seeds)
        lowest: Values = min(means, key=lambda one: means[one])
        best = dict(zip(ranges, lowest, strict=True))
        edges = [axis for axis in ranges if beyond(ranges[axis], best[axis]) is not None]
        growing = [axis for axis in edges if extended[axis] < tune.extend]
        if not growing or not math.isfinite(min(means.values())):
            found_best = best if math.isfinite(min(means.values())) else None
            return TunedGroup(
                name, names, tuple(trials.values()), means, found_best, tuple(edges), keys, num_seeds
            )
        for axis in growing:
            extended[axis] += 1
            ranges[axis] = sorted([*ranges[axis], beyond(ranges[axis], best[axis])])


def beyond(values: Sequence[Any], best: Any) -> float | None:
    """The next value beyond an edge at the distance of the last two; None if the best one is inside.

    Positive values grow in proportion, others by differences. What is no number is never extended.

    >>> beyond([1.0, 2.0, 4.0], 4.0), beyond([0.0, 0.1, 0.2], 0.0), beyond([1.0, 2.0, 4.0], 2.0)
    (8.0, None, None)
    """
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values):
        return None
    ordered = sorted(values)
    if best not in (ordered[0], ordered[-1]):
        return None
    edge, beside = (ordered[0], ordered[1]) if best == ordered[0] else (ordered[-1], ordered[-2])
    if ordered[0] > 0:
        # A clean number: 0.002 and not 0.0020000000000000005.
        return float(f"{edge * edge / beside:.12g}")
    grown = float(f"{2 * edge - beside:.12g}")
    return grown if grown >= 0 else None


def _as_read(arm: Arm, key: str, values: Sequence[Any]) -> list[Any]:
    """Values as a configuration has them, each once."""
    read = [_read(arm, key, value) for value in values]
    return [*dict.fromkeys(read)] if all(isinstance(v, int | float | str) for v in read) else read


def _group_name(arm: Arm, at: Mapping[str, Any], tune: Tune) -> str:
    shown = {key: value for key, value in arm.shown.items() if key != "arm"}
    kept = {
        key: value
        for key, value in shown.items()
        if any(key == one or key.startswith(f"{one}.") for one in tune.per)
    }
    return arm_name(kept | dict(at), entry=arm.point.entry.name)


def _trial(
    study: StudyConfig,
    tune: Tune,
    arm: Arm,
    at: Mapping[str, Any],
    group: str,
    values: Mapping[str, Any],
    seed: int,
) -> Trial:
    point = replace(arm.point, data=dict(arm.point.data))
    for key, value in {**at, **tune.set, **values}.items():
        if key != EPOCHS:
            point.set(key, value)
    if EPOCHS in at:
        set_epochs(point, at[EPOCHS])
    config = config_of(point, seed, study.seed_changes)
    name = f"tune.{group}.{arm_name(values, seed=seed)}"
    keys = [key for key in dict.fromkeys([*varied_keys(study), *at, *tune.set]) if key != EPOCHS]
    shown = {key: setting(config, key) for key in keys}
    # A tuning run starts from the run that the arm's first seed starts from.
    placed = {"name": name} | ({INIT_FROM: arm.config.init_from} if arm.parent is not None else {})
    return Trial(name, config.model_copy(update=placed), shown, arm.parent)
