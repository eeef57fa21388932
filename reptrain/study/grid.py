"""From a study to its arms: entries, axes and seeds, each a validated configuration."""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from reptrain.config.json_digest import fingerprint
from reptrain.errors import StudyError
from reptrain.study.arm import Arm
from reptrain.study.brief import brief_values
from reptrain.study.chains import with_parents, with_seeds_of_parents
from reptrain.study.constraints import constrain
from reptrain.study.point import MEMBER, Point, config_of, setting
from reptrain.study.schema import StudyConfig
from reptrain.study.sections import ArmEntry
from reptrain.study.words import settings_text

_MOST_ARMS = 10_000


def arms(
    study: StudyConfig,
    tuned: Mapping[str, Mapping[str, Any]] | None = None,
    more_seeds: Mapping[str, Sequence[int]] | None = None,
    *,
    out: Path | None = None,
) -> list[Arm]:
    """All arms in the order of entries and axes. The seed changes fastest, then the last axis.

    Args:
        study: The study.
        tuned: Settings that tuning chose, by name of the arm without the seed.
        more_seeds: Seeds that the second looks of claims have added, by the same name.
        out: The study's folder, for the paths of runs that others start from. None: their names remain.

    Raises:
        StudyError: If an arm's configuration is wrong, or two arms are the same.
    """
    _check_number(study)
    points = constrain(study, [point for entry in _entries(study) for point in _points(study, entry)])
    declared = with_parents(study.name, _checked(study, _seeded(study, points, tuned or {}, {})), out)
    if not more_seeds:
        return declared
    more = with_seeds_of_parents(declared, more_seeds)
    return with_parents(study.name, _checked(study, _seeded(study, points, tuned or {}, more)), out)


def _seeded(
    study: StudyConfig,
    points: Sequence[Point],
    tuned: Mapping[str, Mapping[str, Any]],
    more_seeds: Mapping[str, Sequence[int]],
) -> list[Arm]:
    keys = varied_keys(study)
    return [arm for point in points for arm in _arms_of(study, point, keys, tuned, more_seeds)]


def _checked(study: StudyConfig, all_arms: list[Arm]) -> list[Arm]:
    """The arms, if there are some and their names differ, with what distinguishes them."""
    if not all_arms:
        raise StudyError(
            f"study {study.name}",
            got="no arm",
            rule="must have arms",
            remedy="Drop fewer arms in constraints.",
        )
    name, times = Counter(arm.name for arm in all_arms).most_common(1)[0]
    if times > 1:
        raise StudyError(
            f"study {study.name}",
            got=f"{name} {times} times",
            rule="must contain each arm once",
            remedy="Remove the repeated value from its axis or from seeds.",
        )
    briefs = brief_values([arm.shown for arm in all_arms], [arm.point.axes for arm in all_arms])
    return [replace(arm, brief=brief) for arm, brief in zip(all_arms, briefs, strict=True)]


def varied_keys(study: StudyConfig) -> list[str]:
    """The dotted keys that differ between arms by the study file, those of tuning included."""
    keys = [*study.axes]
    for entry in study.arms:
        keys += [*entry.set, *entry.axes, *entry.tune]
    if study.tune is not None:
        keys += [*study.tune.axes]
    return [*dict.fromkeys(keys)]


def _check_number(study: StudyConfig) -> None:
    num_arms = 0
    for entry in _entries(study):
        points = math.prod(map(len, (study.axes | entry.axes).values()))
        num_arms += points * entry.members * max(1, len(entry.seeds or study.seeds))
    if num_arms > _MOST_ARMS:
        raise StudyError(
            f"study {study.name}",
            got=f"{num_arms} arms" if num_arms < 10**12 else "10**12 arms or more",
            rule=f"must have at most {_MOST_ARMS}",
            remedy="Remove values of an axis, or seeds.",
        )


def _entries(study: StudyConfig) -> Sequence[ArmEntry]:
    return study.arms or [_UNNAMED]


_UNNAMED = ArmEntry.model_construct(name="", set={}, axes={}, seeds=[], members=1, tune={})


def _points(study: StudyConfig, entry: ArmEntry) -> list[Point]:
    """The settings of an entry's arms, before constraints and seeds."""
    axes = study.axes | entry.axes
    if entry.members > 1:
        axes |= {MEMBER: [*range(1, entry.members + 1)]}
    points = []
    for values in itertools.product(*axes.values()):
        axis = dict(zip(axes, values, strict=True))
        data = dict(study.base)
        where = ", ".join(
            [*([entry.name] if entry.name else []), *(f"{k}={_written(v)}" for k, v in axis.items())]
        )
        point = Point(study.name, entry, axis, data, where)
        for key, value in {**study.set, **entry.set, **axis}.items():
            if key != MEMBER:
                point.set(key, value)
        points.append(point)
    return points


def _written(value: Any) -> str:
    """A value as in a study file: ``{d_model: 64}`` for a mapping."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_written(item)}" for key, item in value.items()) + "}"
    return str(value)


def _arms_of(
    study: StudyConfig,
    point: Point,
    keys: Sequence[str],
    tuned: Mapping[str, Mapping[str, Any]],
    more_seeds: Mapping[str, Sequence[int]],
) -> list[Arm]:
    """The arms of a point, one for each seed."""
    own: list[int | None] = [*(point.entry.seeds or study.seeds)] or [None]
    shown = {key: value if key == MEMBER else setting(point.config, key) for key, value in point.axes.items()}
    group = arm_name(shown, entry=point.entry.name)
    if tuned.get(group):
        point = replace(point, data=dict(point.data))
        for key, value in tuned[group].items():
            point.set(key, value)
    entry: dict[str, Any] = {"entry": point.entry.name} if point.entry.name else {}
    if any(one.members > 1 for one in study.arms):
        entry[MEMBER] = point.member
    many = len(study.all_seeds) > 1
    found = []
    for seed in [*own, *(seed for seed in more_seeds.get(group, []) if seed not in own)]:
        config = config_of(point, seed, study.seed_changes)
        name = arm_name(shown, entry=point.entry.name, seed=config.seed if many else None)
        found.append(
            Arm(
                name=name,
                config=config.model_copy(update={"name": name}),
                values=entry | {key: setting(config, key) for key in keys},
                shown={"arm": point.entry.name, **shown} if point.entry.name else shown,
                group=group,
                point=point,
                look=1 if seed in own else 2,
            )
        )
    return found


def short_keys(keys: Iterable[str]) -> dict[str, str]:
    """Each dotted key with its last part, or with itself if two keys end alike."""
    last = {key: key.rpartition(".")[2] for key in keys}
    times = Counter(last.values())
    return {key: leaf if times[leaf] == 1 else key for key, leaf in last.items()}


def arm_name(values: Mapping[str, Any], *, entry: str = "", seed: int | None = None) -> str:
    """A file name: ``{"data.unique_tokens": 4096, "optimizer.lr": 0.001}``
    gives ``unique_tokens-4096.lr-0.001``.

    Args:
        values: The value of each axis by dotted key.
        entry: Name of the arm's entry, if it has one.
        seed: The run's seed, if the study has several.
    """
    short = short_keys(values)
    parts = [entry] if entry else []
    parts += [f"{short[key]}-{_slug(value)}" for key, value in values.items()]
    if seed is not None:
        parts.append(f"seed-{seed}")
    return ".".join(parts) or "base"


def hashed_settings(arms: Iterable[Arm]) -> dict[str, str]:
    """The settings behind the hashes in the names of arms: ``{"model-88518dc0": "d_model 64, d_ff 160"}``."""
    found = {}
    for arm in arms:
        axes = {key: value for key, value in arm.shown.items() if key != "arm"}
        short = short_keys(axes)
        for axis, value in axes.items():
            if isinstance(value, dict):
                settings = {key: one for key, one in arm.brief.items() if key.startswith(f"{axis}.")}
                found[f"{short[axis]}-{_slug(value)}"] = settings_text(settings)
    return found


def _slug(value: Any) -> str:
    if isinstance(value, (dict, list)):
        return fingerprint(value)[:8]
    text = "null" if value is None else str(value)
    clean = re.sub(r"[^A-Za-z0-9.+-]", "_", text)
    # A changed value gets a hash, so that two values never share a name.
    return clean if clean == text else f"{clean}-{fingerprint(text)[:8]}"
