"""The questions of a study as typed records: claims to judge and laws to fit.

They stand in the study file under ``claims:`` and ``fits:`` and are fixed before the first run starts.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from reptrain.config.base import Frozen
from reptrain.config.quantities import parse_count

FEWEST_SEEDS = 5
"""A verdict needs at least this many independent seeds."""
EXPLORATORY = "exploratory"
"""The family of claims that get an interval and no verdict."""
_FEWEST_EXPLORATORY = 2

Scalar = bool | int | float | str | None
Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_.-]{0,63}$")]
Column = Annotated[str, Field(min_length=1, max_length=200)]
Key = Annotated[str, Field(min_length=1, max_length=200)]
Share = Annotated[float, Field(gt=0.0, lt=1.0)]
Seeds = Annotated[int, Field(ge=_FEWEST_EXPLORATORY, le=10_000)]


_POWER = re.compile(r"\d+\s*(\*\*|\^)\s*\d+")


def _selection(value: Any) -> Any:
    """A bare arm name, or a list of them, as ``{"arm": ...}``; the text ``2**18`` as a number."""
    if isinstance(value, (str, list)):
        return {"arm": value}
    return {key: _number(item) for key, item in value.items()} if isinstance(value, dict) else value


def _number(value: Any) -> Any:
    if isinstance(value, list):
        return [_number(item) for item in value]
    return parse_count(value) if isinstance(value, str) and _POWER.fullmatch(value) else value


Selection = Annotated[dict[Key, Scalar | list[Scalar]], BeforeValidator(_selection)]
"""The runs whose keys have these values; a list is a choice of values.

A key is a dotted key that the study varies (``data.unique_tokens``), or a column of the table (``repeats``,
``arm``). A text, or a list of texts, selects arms by name.
"""


class Tuning(Frozen):
    """Keys whose value is chosen for each side of a contrast, by the mean of a metric over the seeds."""

    over: list[Key] = Field(min_length=1)
    """Keys to choose: the rate, the decay."""
    by: Column = "loss_select_best_nats"
    """Column to minimize. It must not be a column of the report split."""

    @model_validator(mode="after")
    def _selection_split_only(self) -> Tuning:
        if "report" in self.by:
            raise ValueError(f"by is {self.by}; choices must use the selection split, not the report split")
        return self


class _Contrast(Frozen):
    free: list[Key] = Field(default_factory=list)
    """Varied keys in which treatment and control may differ, because they are tied to the contrast.

    All other varied keys must agree within a pair.
    """
    tuned: Tuning | None = None
    """Keys that are tuned separately for treatment and control."""


class Difference(_Contrast):
    """Treatment minus control, paired by seed."""

    kind: Literal["difference"] = "difference"
    treatment: Selection
    control: Selection


class Value(_Contrast):
    """The metric itself, without a control: for columns that are differences, such as `average_gain_nats`."""

    kind: Literal["value"]
    treatment: Selection
    control: None = None


class Interaction(_Contrast):
    """A difference of differences: (treatment - control) at ``high`` minus the same at ``low``."""

    kind: Literal["interaction"]
    treatment: Selection
    control: Selection
    high: Selection
    low: Selection


class Slope(_Contrast):
    """Change of (treatment - control) each time that a quantity grows by a factor.

    Without a control it is the change of the metric itself. The slope of each seed is a least-squares line
    over the logarithm of the quantity.
    """

    kind: Literal["slope"]
    treatment: Selection
    control: Selection | None = None
    per: Column
    """The quantity: a varied key or a column, such as ``parameters_nonembedding``."""
    factor: float = Field(default=2.0, gt=1.0)
    """The slope is the change for each growth by this factor."""


class Optimum(_Contrast):
    """The best value of a key in the treatment minus the best value in the control, paired by seed.

    The best value of a seed is the vertex of the parabola through the lowest point and its neighbors.
    """

    kind: Literal["optimum"]
    treatment: Selection
    control: Selection
    over: Key
    """The key whose best value is compared."""
    scale: Literal["linear", "log2"] = "linear"
    """With ``log2`` the effect is in doublings."""


class Regret(Frozen):
    """What it costs to pick a target's setting on a proxy.

    It is the target's metric at the proxy's pick minus its metric at its own pick, by seed. Both picks
    minimize the mean of a selection metric over the seeds.
    """

    kind: Literal["regret"]
    proxy: Selection
    target: Selection
    tuned: Tuning


def _kind(value: Any) -> Any:
    return value.get("kind", "difference") if isinstance(value, dict) else getattr(value, "kind", None)


Contrast = Annotated[
    Annotated[Difference, Tag("difference")]
    | Annotated[Value, Tag("value")]
    | Annotated[Interaction, Tag("interaction")]
    | Annotated[Slope, Tag("slope")]
    | Annotated[Optimum, Tag("optimum")]
    | Annotated[Regret, Tag("regret")],
    Discriminator(_kind),
]


class Void(Frozen):
    """A condition under which a run is left out of a claim, by name."""

    column: Column
    above: float | None = None
    below: float | None = None
    reason: str = ""
    """Shown with the names of the runs that are left out."""

    @model_validator(mode="after")
    def _one_limit(self) -> Void:
        if (self.above is None) == (self.below is None):
            raise ValueError("exactly one of above and below must be set")
        return self


class Claim(Frozen):
    """A statement about a study that its runs can support or contradict."""

    name: Name
    """Name of the claim, unique in the study."""
    statement: str = Field(min_length=1, max_length=500)
    """The claim in one sentence, as the report shows it."""
    metric: Column = "loss_report_final_nats"
    """Column of the runs' table. With `final` or `best` in its name the other one is judged as well."""
    contrast: Contrast
    """What is compared."""
    where: Selection = Field(default_factory=dict)
    """The claim is about these runs only."""
    direction: Literal["greater", "less", "equal"] = "greater"
    """`greater`: the effect exceeds the minimum effect. `less`: it is below its negative. `equal`: it is
    smaller than the minimum effect in size."""
    minimum_effect: float = Field(default=0.0, ge=0.0)
    """The smallest effect that counts, in the metric's unit. With `equal` it is the margin of equivalence."""
    negligible_below: float | None = Field(default=None, gt=0.0)
    """An effect whose interval lies within plus and minus this value is negligible. Default: the minimum
    effect."""
    seeds: Seeds = FEWEST_SEEDS
    """Seeds at the first look, which is the only one if `max_seeds` is not set. Fewer than 5 need the family
    `exploratory`."""
    max_seeds: Seeds | None = None
    """Seeds at the second look, which is used if the first leaves the claim undecided."""
    first_look_share: Share = 0.5
    """Share of alpha that the first of two looks uses; the second uses the rest."""
    family: Name = "primary"
    """Holm's correction covers all claims of a family. Claims of the family `exploratory` get an interval
    without correction, and no verdict."""
    void: list[Void] = Field(default_factory=list)
    """Runs that this claim leaves out."""

    @model_validator(mode="after")
    def _consistent(self) -> Claim:
        if self.max_seeds is not None and self.max_seeds <= self.seeds:
            raise ValueError(f"max_seeds must exceed seeds, which is {self.seeds}; {self.max_seeds} does not")
        if self.direction == "equal" and not self.minimum_effect:
            raise ValueError("minimum_effect must be positive with direction equal; it is the margin")
        if self.seeds < FEWEST_SEEDS and self.family != EXPLORATORY:
            raise ValueError(
                f"seeds must be {FEWEST_SEEDS} or more; {self.seeds} is not, and a claim with fewer needs"
                f" family: {EXPLORATORY}, which gives an interval and no verdict"
            )
        if self.max_seeds is not None and self.family == EXPLORATORY:
            raise ValueError(
                f"max_seeds must not be set in the family {EXPLORATORY}, which has no second look"
            )
        return self

    @property
    def margin(self) -> float:
        """An effect of a smaller size is negligible."""
        return self.minimum_effect if self.negligible_below is None else self.negligible_below

    @property
    def most_seeds(self) -> int:
        """Seeds at the last look."""
        return self.seeds if self.max_seeds is None else self.max_seeds

    def columns(self) -> list[str]:
        """Keys and columns that the claim reads, in the order in which they are named."""
        contrast = self.contrast
        names = [self.metric, *self.where, *(rule.column for rule in self.void)]
        for field in ("treatment", "control", "high", "low", "proxy", "target"):
            names += getattr(contrast, field, None) or []
        names += [getattr(contrast, field) for field in ("per", "over") if hasattr(contrast, field)]
        names += getattr(contrast, "free", [])
        if contrast.tuned is not None:
            names += [*contrast.tuned.over, contrast.tuned.by]
        return list(dict.fromkeys(names))


class Holdout(Frozen):
    """The runs that a fit does not see: the largest ones, or those with a true value in a column."""

    largest: int | None = Field(default=None, ge=1)
    """This many runs with the most training FLOPs, or the largest product of the law's columns; and all other
    seeds of their arms."""
    column: Column | None = None
    """A column; rows with a true (or nonzero) value are held out."""

    @model_validator(mode="after")
    def _one_rule(self) -> Holdout:
        if (self.largest is None) == (self.column is None):
            raise ValueError("exactly one of largest and column must be set")
        return self


class FitQuestion(Frozen):
    """A law to fit to the runs of a study."""

    name: Name
    """Name of the fit, unique in the study."""
    law: Name
    """Name of a law; `reptrain fit --laws` lists them."""
    metric: Column = "loss_report_final_nats"
    """The loss to fit, a column of the runs' table."""
    where: Selection = Field(default_factory=dict)
    """The fit uses these runs only."""
    columns: dict[Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$")], Column] = Field(
        default_factory=dict
    )
    """Column of each variable of the law: ``{N: parameters_nonembedding, D: consumed_tokens}``."""
    holdout: Holdout | None = None
    """Runs that the fit does not see, on which it is scored once."""


def questions_hash(claims: Sequence[Claim], fits: Sequence[FitQuestion] = ()) -> str:
    """SHA-256 of all questions, with defaults filled in. It does not depend on the layout of the file.

    Returns:
        64 hexadecimal digits.
    """
    record = {
        "claims": [claim.model_dump(mode="json") for claim in claims],
        "fits": [fit.model_dump(mode="json") for fit in fits],
    }
    text = json.dumps(record, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def sibling_metric(metric: str) -> str | None:
    """The same quantity at the other checkpoint, or None if the name has neither `final` nor `best`.

    >>> sibling_metric("loss_report_final_nats")
    'loss_report_best_nats'
    """
    other = {"final": "best", "best": "final"}
    match = re.search(r"(?<![a-z])(final|best)(?![a-z])", metric)
    return metric[: match.start()] + other[match[1]] + metric[match.end() :] if match else None
