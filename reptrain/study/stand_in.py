"""A cheap model as a proxy: sweep a setting on it, then train the target at the pick, or at every value.

The result is an ordinary study with two arms. It contains links to the runs of the sweep.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from reptrain.analysis.questions import EXPLORATORY, FEWEST_SEEDS
from reptrain.errors import StudyError
from reptrain.study.begun import write_questions
from reptrain.study.executor import Executor
from reptrain.study.grid import arms
from reptrain.study.paths import questions_path, run_path
from reptrain.study.schema import StudyConfig, open_study
from reptrain.study.sections import ArmEntry
from reptrain.study.sweep import Space, SweepTrials, run_sweep, trial_folder

CLAIM = "pick-is-good"
"""Name of the claim that is judged unless the study has a claim of the kind `regret`."""
MOST_REGRET = 0.02
"""Its margin in nats."""
_SWEEP = "sweep"


class StandIn(NamedTuple):
    """How a proxy stands in for a target.

    Args:
        proxy: Name of the proxy's arm: a sparse model, a smaller one, or a narrower one with muP.
        target: Name of the target's arm.
        judge: Whether the target is trained at every value of the proxy, and not only at the pick.
        num_trials: Total number of trials.
        seed: Seed of the sampler.
    """

    proxy: str
    target: str
    judge: bool
    num_trials: int
    seed: int = 0

    def folder(self, out: Path) -> Path:
        """The folder of the study of both arms."""
        return out / ("judged" if self.judge else "target")


def stand_in(
    study: StudyConfig,
    out: Path,
    space: Space,
    means: StandIn,
    *,
    launch: Sequence[str] | None = None,
    executor: Executor | None = None,
) -> tuple[SweepTrials, StudyConfig | None]:
    """Sweep a setting on the proxy, and prepare the study that trains the target.

    Args:
        study: A study with an arm for the proxy and one for the target, and no axes.
        out: The folder of the trials and of the study of both arms.
        space: The setting to sweep.
        means: Proxy, target and trials.
        launch: See `run_study`.
        executor: See `run_study`.

    Returns:
        The sweep, and the study to run in ``means.folder(out)``; None if a signal stopped the sweep.

    Raises:
        StudyError: If an arm is missing, the study has axes or one seed, or no trial has a loss.
    """
    if means.judge and len(study.all_seeds) < 2:
        raise StudyError(
            f"study {study.name}",
            got=f"{max(1, len(study.all_seeds))} seed",
            rule="must have at least 2 seeds to judge the proxy",
            remedy="List seeds, 5 or more for a verdict.",
        )
    proxy, _ = (_entry(study, name) for name in (means.proxy, means.target))
    alone = study.model_copy(update={"arms": [proxy]})
    sweep = run_sweep(
        alone,
        out / _SWEEP,
        [space],
        num_trials=means.num_trials,
        seed=means.seed,
        launch=launch,
        executor=executor,
    )
    if sweep.stopped:
        return sweep, None
    if not sweep.trials:
        raise StudyError(
            f"sweep of {means.proxy}",
            got=f"{sweep.num_failed} trials, all without a finite loss",
            rule="must have a trial with a loss",
            remedy="Change the values of --over. The logs are in the folder of each trial.",
        )
    folder = means.folder(out)
    prepared = _with_target(study, means, sweep, _begun_values(folder, means.target, space.key))
    if not questions_path(folder).exists():
        folder.mkdir(parents=True, exist_ok=True)
        write_questions(prepared, folder)
    _link_runs(prepared, folder, out, sweep)
    return sweep, prepared


def _entry(study: StudyConfig, name: str) -> ArmEntry:
    found = next((entry for entry in study.arms if entry.name == name), None)
    if found is None:
        raise StudyError(
            f"study {study.name}",
            got=f"the arms {', '.join(entry.name for entry in study.arms) or 'none'}",
            rule=f"must have an arm {name}",
            remedy="Name arms of the study with --proxy and --target.",
        )
    return found


def _begun_values(folder: Path, target: str, key: str) -> list[Any]:
    """The values at which earlier calls started the target, since more trials may have changed the pick."""
    if not (folder / "study.yaml").exists():
        return []
    return list(_entry(open_study(folder), target).axes.get(key, []))


def _with_target(study: StudyConfig, means: StandIn, sweep: SweepTrials, begun: Sequence[Any]) -> StudyConfig:
    """The study of both arms: the proxy at all tried values, and the target."""
    (key,) = sweep.trials[0][0]
    tried = [values[key] for values, _ in sweep.trials]
    fields = study.model_dump(mode="json", exclude={"tune"})
    fields["arms"] = [
        _entry(study, name).model_dump(mode="json") | {"axes": {key: sorted({*values})}}
        for name, values in (
            (means.proxy, tried),
            (means.target, [*(tried if means.judge else tried[:1]), *begun]),
        )
    ]
    if means.judge and not any(claim.contrast.kind == "regret" for claim in study.claims):
        fields["claims"].append(_claim(study, means, key))
    return StudyConfig.model_validate(fields)


def _claim(study: StudyConfig, means: StandIn, key: str) -> dict[str, Any]:
    """The claim that the proxy's pick costs the target little, in the format of a study file."""
    seeds = len(study.all_seeds)
    return {
        "name": CLAIM,
        "statement": f"The {key} that is best for {means.proxy} costs {means.target} less than"
        f" {MOST_REGRET:g} nats.",
        "contrast": {
            "kind": "regret",
            "proxy": {"entry": means.proxy},
            "target": {"entry": means.target},
            "tuned": {"over": [key]},
        },
        "direction": "equal",
        "minimum_effect": MOST_REGRET,
        "seeds": seeds,
        "family": "primary" if seeds >= FEWEST_SEEDS else EXPLORATORY,
    }


def _link_runs(study: StudyConfig, folder: Path, out: Path, sweep: SweepTrials) -> None:
    """Link the runs of the trials into the folder of the study, where they then count as done."""
    (key,) = sweep.trials[0][0]
    folders = {values[key]: trial_folder(out / _SWEEP, values) for values, _ in sweep.trials}
    for arm in arms(study):
        if arm.values["entry"] != study.arms[0].name:
            continue
        link = run_path(folder, arm.name)
        if not link.exists():
            link.parent.mkdir(parents=True, exist_ok=True)
            source = run_path(folders[arm.point.axes[key]], arm.name)
            link.symlink_to(os.path.relpath(source, link.parent), target_is_directory=True)
