"""The settings of an arm before its seed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from reptrain.config import RunConfig
from reptrain.config.json_digest import fingerprint
from reptrain.config.load import set_dotted, validate
from reptrain.errors import ConfigError, ReptrainError, StudyError
from reptrain.plan.text_amounts import has_budget_of_text, with_token_budgets
from reptrain.store import open_store
from reptrain.study.sections import ArmEntry, Bound, Condition, SeedChanges

MEMBER = "member"
"""The axis of an arm with several members. It is not a setting, but changes the seeds of a run's parts."""


@dataclass(frozen=True)
class Point:
    """One entry at one value of every axis.

    Attributes:
        study: Name of the study.
        entry: The entry; without a name if the study has only axes.
        axes: The value of each axis as it is written, and the member if the entry has several.
        data: The run's settings, which `set` and constraints change.
        where: The point in words, for messages.
    """

    study: str
    entry: ArmEntry
    axes: Mapping[str, Any]
    data: dict[str, Any]
    where: str

    def set(self, key: str, value: Any) -> None:
        """Set a dotted key.

        Raises:
            StudyError: If the key leads through a value.
        """
        try:
            set_dotted(self.data, key, value)
        except ConfigError as error:
            raise self.error(error) from error

    @property
    def member(self) -> int:
        """Number of the member, from 1."""
        return int(self.axes.get(MEMBER, 1))

    def error(self, error: ReptrainError) -> StudyError:
        """An error of the configuration as one of the study, which names the arm."""
        arm = f", arm {self.where}" if self.where else ""
        what = f"study {self.study}{arm}: {error.what}"
        return StudyError(what, got=error.got, rule=error.rule, remedy=error.remedy)

    @property
    def config(self) -> RunConfig:
        """The configuration with the base's seed.

        Raises:
            StudyError: If it is wrong.
        """
        return self.validated(self.data)

    def validated(self, data: Mapping[str, Any]) -> RunConfig:
        """The configuration of some settings of this point, with budgets of text in tokens.

        Args:
            data: The settings.

        Raises:
            StudyError: If they are wrong, or a store cannot convert words or bytes to tokens.
        """
        try:
            config = validate(RunConfig, data)
            if not has_budget_of_text(config):
                return config
            stores = {
                name: open_store(source.store, named_by=f"{config.store_setting(name)}=FOLDER")
                for name, source in config.sources.items()
            }
            return with_token_budgets(config, stores)
        except ReptrainError as error:
            raise self.error(error) from error

    def satisfies(self, condition: Condition) -> bool:
        """Whether all of a condition holds for the point.

        Raises:
            StudyError: If a key does not exist.
        """
        return all(_holds(self._value(key), wanted) for key, wanted in condition.items())

    def _value(self, key: str) -> Any:
        if key in ("arm", "entry"):
            return self.entry.name
        if key == MEMBER:
            return self.member
        config = self.config
        if key in ("epochs", "steps_per_epoch"):
            return _derived(config, key)
        if not has_setting(config, key):
            raise StudyError(
                f"study {self.study}, condition",
                got=repr(key),
                rule="must name a setting of the runs, arm, member, epochs or steps_per_epoch",
                remedy="`reptrain config schema` lists the settings.",
            )
        return setting(config, key)


def _holds(value: Any, wanted: Any) -> bool:
    if isinstance(wanted, Bound):
        return wanted.holds(value)
    choices = wanted if isinstance(wanted, list) else [wanted]
    return any(_same(value, choice) for choice in choices)


def _same(value: Any, wanted: Any) -> bool:
    """Whether a value is the one that is written: ``2**18`` is 262144."""
    if value == wanted and isinstance(value, bool) == isinstance(wanted, bool):
        return True
    if not isinstance(wanted, str) or not isinstance(value, int | float):
        return False
    from reptrain.config.quantities import parse_count

    try:
        return bool(parse_count(wanted) == value)
    except ValueError:
        return False


def _derived(config: RunConfig, key: str) -> float | None:
    """Epochs over all sources, or steps of an epoch; None if U is taken from the store."""
    unique, total = 0, 0.0
    for source in config.sources.values():
        if source.unique_tokens is None:
            return None
        unique += source.unique_tokens
        total += float(source.total_tokens.epochs_over(source.unique_tokens)) * source.unique_tokens
    if key == "epochs":
        return total / unique
    return unique / (config.window_tokens * config.train.batch_windows)


EPOCHS = "epochs"
"""Epochs over the subset. Not a setting of a run, but a way to choose `data.unique_tokens`."""


def epochs(config: RunConfig) -> float | None:
    """Epochs over all sources; None if U is taken from the store."""
    return _derived(config, EPOCHS)


def set_epochs(point: Point, value: float) -> None:
    """Set U so that the budget is a number of epochs.

    Args:
        point: A point with one store and a budget in tokens.
        value: Number of epochs.

    Raises:
        StudyError: If the budget is not in tokens, or the data are a mixture.
    """
    config = point.config
    budget = config.train.total_tokens
    if budget is None or budget.tokens is None or config.data.store is None:
        raise StudyError(
            f"study {point.study}, tune.at.epochs",
            got=f"a budget of {budget or 'one epoch'}" if config.data.store else "a mixture",
            rule="needs one store and train.total_tokens in tokens, from which it sets data.unique_tokens",
            remedy="Set train.total_tokens in tune.set, or name data.unique_tokens in tune.at.",
        )
    point.set("data.unique_tokens", round(budget.tokens / value))


def config_of(point: Point, seed: int | None, changes: SeedChanges) -> RunConfig:
    """The configuration of a point with a seed.

    Args:
        point: The point.
        seed: Seed of the run; None: the base's.
        changes: What the seed changes. A seed that the file sets itself stays.

    Raises:
        StudyError: If it is wrong.
    """
    before = point.data.get("seed", 0)
    data = dict(point.data)
    own: dict[str, Any] = {}
    if seed is not None:
        data["seed"] = seed
        section = dict(data.get("data") or {})
        if changes.subset:
            section.setdefault("subset_seed", seed)
        data["data"] = section
        own = {part: before for part in changes.PARTS if not getattr(changes, part)}
    if point.member > 1:
        drawn = _member_seed(data.get("seed", 0), point.member)
        own |= {part: drawn for part in changes.PARTS if getattr(changes, part)}
    if own:
        data["seeds"] = own | dict(data.get("seeds") or {})
    return point.validated(data)


def _member_seed(seed: Any, member: int) -> int:
    """The seed of a member after the first: another one for each seed of the study."""
    return int(fingerprint({"seed": seed, MEMBER: member})[:8], 16)


def has_setting(config: RunConfig, key: str) -> bool:
    """Whether a configuration has a dotted key."""
    value: Any = config.model_dump(mode="json")
    for part in key.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return False
        value = value[part]
    return True


def setting(config: RunConfig, key: str) -> Any:
    """The value at a dotted key as JSON has it: defaults filled in, ``2**18`` read as a number.

    None if the configuration has no such key, as a model of another family.
    """
    value: Any = config.model_dump(mode="json")
    for part in key.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value
