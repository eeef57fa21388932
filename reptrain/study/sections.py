"""The sections of a study file beyond base, set and axes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from reptrain.analysis.questions import Selection
from reptrain.config.base import FileName, Frozen, Positive, Seed
from reptrain.config.quantities import Count
from reptrain.config.scheduled import Scheduled
from reptrain.sizes.match import Vary

_FEWEST_POINTS = 3


def flatten(value: Any) -> Any:
    """A nested mapping with dotted keys: ``{"train": {"seed": 1}}`` becomes ``{"train.seed": 1}``.

    An empty mapping and a schedule (``{value: 0.1, start: 50%}``) stay values. Other values are returned as
    they are, for pydantic to check.
    """
    if not isinstance(value, Mapping):
        return value
    flat: dict[str, Any] = {}
    for key, item in value.items():
        if isinstance(item, Mapping) and item and not _is_schedule(item):
            flat.update({f"{key}.{below}": leaf for below, leaf in flatten(item).items()})
        else:
            flat[str(key)] = item
    return flat


def _is_schedule(value: Mapping[Any, Any]) -> bool:
    return "value" in value and value.keys() <= Scheduled.model_fields.keys()


Axis = Annotated[list[Any], Field(min_length=1)]
Axes = Annotated[dict[str, Axis], BeforeValidator(flatten)]
Settings = Annotated[dict[str, Any], BeforeValidator(flatten)]
Key = Annotated[str, Field(min_length=1, max_length=200)]


class ArmEntry(Frozen):
    """A named arm, or several: its settings, with axes and seeds of its own."""

    name: FileName
    """Name of the arm; the names of its runs begin with it."""
    set: Settings = Field(default_factory=dict)
    """Values of dotted keys, which replace those of the study's `set`. `init_from` may name another arm, from
    whose weights this arm starts."""
    axes: Axes = Field(default_factory=dict)
    """Further axes of this arm, in addition to those of the study. An axis of the same key replaces it."""
    seeds: list[Seed] = Field(default_factory=list)
    """Seeds of this arm; empty: those of the study."""
    members: Annotated[int, Field(ge=1, le=100)] = 1
    """Runs for each seed, the members of an ensemble. Their order, noise, weights and dropout masks differ,
    their subset does not. The first member is the run of an arm without members."""
    tune: Axes = Field(default_factory=dict)
    """Keys to tune for this arm instead of those of the study; as many combinations of values."""


class SeedChanges(Frozen):
    """What a seed of the study changes. The held-out text never depends on it."""

    subset: bool = True
    """The documents in the subset (data.subset_seed)."""
    order: bool = True
    """The order of the windows, and shifted and repacked cuts."""
    noise: bool = True
    """The objective's noise. The order keys it too, so it can be switched off only together with `order`."""
    weights: bool = True
    """The initial weights."""
    dropout: bool = True
    """The dropout masks."""

    PARTS: ClassVar = ("order", "noise", "weights", "dropout")

    @model_validator(mode="after")
    def _noise_follows_order(self) -> SeedChanges:
        if self.order and not self.noise:
            raise ValueError("noise false needs order false: the order of the windows keys the noise")
        return self


class Bound(Frozen):
    """Limits of a number."""

    over: float | None = None
    """More than this."""
    under: float | None = None
    """Less than this."""

    def holds(self, value: Any) -> bool:
        """Whether a value is a number within the limits."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            return False
        return (self.over is None or value > self.over) and (self.under is None or value < self.under)


Condition = Annotated[dict[Key, Bound | Any], BeforeValidator(lambda value: _condition(value))]
"""Arms whose keys have these values. A value is one value, a list of values, or ``{over: X, under: Y}``.

A key is a dotted key, ``arm`` (a name of the section arms), ``member``, ``epochs`` or ``steps_per_epoch``.
"""


def _condition(value: Any) -> Any:
    if not isinstance(value, Mapping):
        return value
    return {
        key: Bound.model_validate(item)
        if isinstance(item, Mapping) and item.keys() <= {"over", "under"}
        else item
        for key, item in value.items()
    }


class Equal(Frozen):
    """Arms that are changed to be as large, or to train as long, as a reference."""

    equal: Literal["flops", "total-params", "active-params", "tokens"]
    """The quantity, as in `reptrain match --by`; tokens: train.total_tokens, in raw tokens."""
    to: Selection
    """The reference: an arm's name, or values of varied keys. Its other varied keys are those of the arm that
    is changed."""
    vary: Vary = "width"
    """What is changed, as in `reptrain match --vary`."""
    tolerance: Annotated[float, Field(ge=0, lt=1)] = 0.01
    """Largest relative difference that may remain."""
    where: Condition = Field(default_factory=dict)
    """The arms that are changed; empty: all but the reference."""


class Drop(Frozen):
    """Arms that are left out."""

    drop: Condition
    """Arms for which all of this holds."""


Constraint = Annotated[
    Annotated[Equal, Tag("equal")] | Annotated[Drop, Tag("drop")],
    Discriminator(
        lambda value: (
            "drop" if isinstance(value, Drop) or (isinstance(value, dict) and "drop" in value) else "equal"
        )
    ),
]


class Tune(Frozen):
    """Settings that are chosen for each group of arms, by runs with seeds of their own.

    Every group gets the same number of runs. They are judged by the lowest loss on the selection split.
    """

    axes: Axes
    """Dotted keys with at least two values each, in at least three combinations."""
    seeds: Annotated[list[Seed], Field(min_length=1)] = Field(default_factory=lambda: [1000])
    """Seeds of the tuning runs; no seed of an arm may be among them."""
    per: list[Key] = Field(
        default_factory=lambda: ["arm", "init_from", "model", "objective", "regularize", "optimizer"]
    )
    """Keys, or beginnings of keys. Arms that agree on them form a group."""
    at: Axes = Field(default_factory=dict)
    """Values of further keys at which to tune. Arms with other values take the nearest, in proportion.
    `epochs` sets data.unique_tokens to train.total_tokens divided by its value."""
    set: Settings = Field(default_factory=dict)
    """Settings of the tuning runs, such as a smaller budget."""
    extend: Annotated[Count, Field(ge=0, le=20)] = 3
    """Most values to add beyond an edge, if the best value is there."""

    @model_validator(mode="before")
    @classmethod
    def _from_axes(cls, value: Any) -> Any:
        """``{optimizer.lr: [...]}`` alone is the axes."""
        if isinstance(value, Mapping) and not value.keys() & cls.model_fields.keys():
            return {"axes": value}
        return value

    @model_validator(mode="after")
    def _enough_points(self) -> Tune:
        check_points(self.axes)
        for value in self.at.get("epochs", []):
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
                raise ValueError(f"at.epochs must be positive numbers of epochs; {value!r} is not")
        return self


def check_points(axes: Mapping[str, list[Any]]) -> int:
    """The number of combinations of values to tune over.

    Raises:
        ValueError: If there are too few.
    """
    different = {key: len({str(value) for value in values}) for key, values in axes.items()}
    points = math.prod(different.values())
    if points < _FEWEST_POINTS or any(number < 2 for number in different.values()):
        counts = ", ".join(f"{key} has {number}" for key, number in different.items())
        raise ValueError(
            f"tuning needs at least 2 different values of each key and {_FEWEST_POINTS} combinations;"
            f" {counts}"
        )
    return points


ThenKind = Literal[
    "finetune", "evaluate", "memorization", "score-task", "lm-eval", "ensemble", "export", "routers"
]
Option = bool | int | float | str | list[int | float | str]


class Then(Frozen):
    """A `reptrain` command on trained runs."""

    name: FileName
    """Name of the entry; the names of its nodes begin with it."""
    do: ThenKind
    """The command. ensemble: `evaluate --ensemble`."""
    of: str | None = None
    """Another entry whose models the command takes (of a finetune); null: the arms' runs."""
    where: Condition = Field(default_factory=dict)
    """The arms to take; empty: all."""
    over: Literal["run", "seeds", "members"] | None = None
    """One command per run, one over all seeds of an arm, or one over all members with a seed. Null: seeds for
    an ensemble, else run."""
    task: str | None = None
    """Task of finetune and score-task, a path relative to the study file."""
    options: dict[Key, Option] = Field(default_factory=dict)
    """Options of the command without the dashes: ``{max-windows: 512, set: [report]}``."""
    overrides: Settings = Field(default_factory=dict)
    """Dotted settings of finetune and score-task."""
    runs: Positive = 1
    """Seeds of a fine-tuning (`--seeds`)."""

    @model_validator(mode="after")
    def _task_where_needed(self) -> Then:
        needs = self.do in ("finetune", "score-task")
        if needs != (self.task is not None):
            raise ValueError(f"task must {'be set' if needs else 'not be set'} with do {self.do}")
        return self

    @property
    def unit(self) -> Literal["run", "seeds", "members"]:
        """`over`, with its default."""
        return self.over or ("seeds" if self.do == "ensemble" else "run")
