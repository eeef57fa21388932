"""From a study to its arms: the product of the axes and the seeds, each a validated configuration."""

from __future__ import annotations

import itertools
import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from reptrain.config import RunConfig, fingerprint
from reptrain.config.load import set_dotted, validate
from reptrain.errors import ConfigError, StudyError
from reptrain.study.schema import StudyConfig

_MOST_ARMS = 10_000


@dataclass(frozen=True)
class Arm:
    """One run of a study.

    Attributes:
        name: Unique within the study, and a file name.
        config: Configuration of the run.
        values: The value of each axis, by dotted key, with defaults filled in and numbers read.
        group: The name without the seed.
    """

    name: str
    config: RunConfig
    values: Mapping[str, Any]
    group: str

    @property
    def run(self) -> RunConfig:
        """The configuration."""
        return self.config


def arms(study: StudyConfig) -> list[Arm]:
    """All arms in the order of the axes. The seed changes fastest, then the last axis.

    Raises:
        StudyError: If an arm's configuration is wrong, or two arms are the same.
    """
    num_arms = math.prod(map(len, study.axes.values())) * max(1, len(study.seeds))
    if num_arms > _MOST_ARMS:
        raise StudyError(
            f"study {study.name}",
            got=f"{num_arms} arms" if num_arms < 10**12 else "10**12 arms or more",
            rule=f"must have at most {_MOST_ARMS}",
            remedy="Remove values of an axis, or seeds.",
        )
    points = itertools.product(*study.axes.values())
    seeds: list[int | None] = [*study.seeds] or [None]
    all_arms = [_arm(study, point, seed) for point, seed in itertools.product(points, seeds)]
    name, times = Counter(arm.name for arm in all_arms).most_common(1)[0]
    if times > 1:
        raise StudyError(
            f"study {study.name}",
            got=f"{name} {times} times",
            rule="must hold each arm once",
            remedy="Remove the repeated value from its axis or from seeds.",
        )
    return all_arms


def _arm(study: StudyConfig, point: tuple[Any, ...], seed: int | None) -> Arm:
    settings = {**study.set, **dict(zip(study.axes, point, strict=True))}
    data = dict(study.base)
    try:
        for key, value in settings.items():
            set_dotted(data, key, value)
        if seed is not None:
            data["seed"] = seed
        config = validate(RunConfig, data)
    except ConfigError as error:
        where = ", ".join(f"{key}={value}" for key, value in zip(study.axes, point, strict=True))
        arm = f", arm {where}" if where else ""
        raise StudyError(
            f"study {study.name}{arm}: {error.what}", got=error.got, rule=error.rule, remedy=error.remedy
        ) from error
    values = {key: setting(config, key) for key in study.axes}
    name = arm_name(values, seed=config.seed if len(study.seeds) > 1 else None)
    return Arm(name, config.model_copy(update={"name": name}), values, arm_name(values))


def setting(config: RunConfig, key: str) -> Any:
    """The value at a dotted key as JSON has it: defaults filled in, ``2**18`` read as a number."""
    value: Any = config.model_dump(mode="json")
    for part in key.split("."):
        value = value[part]
    return value


def short_keys(keys: Iterable[str]) -> dict[str, str]:
    """Each dotted key with its last part, or with itself if two keys end alike."""
    last = {key: key.rpartition(".")[2] for key in keys}
    times = Counter(last.values())
    return {key: leaf if times[leaf] == 1 else key for key, leaf in last.items()}


def arm_name(values: Mapping[str, Any], *, seed: int | None = None) -> str:
    """A file name: ``{"data.unique_tokens": 4096, "optimizer.lr": 0.001}``
    gives ``unique_tokens-4096.lr-0.001``.

    Args:
        values: The value of each axis by dotted key.
        seed: The run's seed, if the study has several.
    """
    short = short_keys(values)
    parts = [f"{short[key]}-{_slug(value)}" for key, value in values.items()]
    if seed is not None:
        parts.append(f"seed-{seed}")
    return ".".join(parts) or "base"


def _slug(value: Any) -> str:
    if isinstance(value, (dict, list)):
        return fingerprint(value)[:8]
    text = "null" if value is None else str(value)
    clean = re.sub(r"[^A-Za-z0-9.+-]", "_", text)
    # A changed value gets a hash, so that two values never share a name.
    return clean if clean == text else f"{clean}-{fingerprint(text)[:8]}"
