"""Settings that change during a run, as pure functions of its progress."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, Any, Literal, NamedTuple, Self

from pydantic import (
    AfterValidator,
    GetCoreSchemaHandler,
    GetJsonSchemaHandler,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)
from pydantic_core import core_schema

from reptrain.config.base import Frozen
from reptrain.config.quantities import parse_count, parse_fraction

Unit = Literal["share", "epochs", "steps", "tokens"]

_WRITTEN = re.compile(r"(?P<number>[0-9./eE+*^_-]+?[kKMBGT]?)\s*(?P<unit>%|epochs?|steps?|tokens?)?")
_UNITS: dict[str, Unit] = {"%": "share", "epoch": "epochs", "step": "steps", "token": "tokens"}


class RunPosition(NamedTuple):
    """Progress of a run at the start of a step."""

    step: int
    """Completed steps."""
    tokens: int
    """Tokens consumed, repeats included."""
    total_tokens: int
    """Tokens of the whole run."""
    epochs: Fraction
    """Epochs consumed."""

    def position(self, unit: Unit) -> Fraction:
        """The progress in a unit."""
        if unit == "share":
            return Fraction(self.tokens, self.total_tokens)
        if unit == "epochs":
            return self.epochs
        return Fraction(self.step if unit == "steps" else self.tokens)


@dataclass(frozen=True)
class Moment:
    """A point in a run, or a duration: ``50%`` of its tokens, ``2epochs``, ``100steps`` or ``1e6`` tokens."""

    amount: Fraction
    unit: Unit

    def __str__(self) -> str:
        amount = 100 * self.amount if self.unit == "share" else self.amount
        number = str(int(amount)) if amount.denominator == 1 else f"{float(amount):.17g}"
        return f"{number}{'%' if self.unit == 'share' else self.unit}"

    @classmethod
    def parse(cls, value: Any) -> Moment:
        """Parse a moment; a plain number is in tokens.

        Raises:
            ValueError: If the text is no moment.
        """
        if isinstance(value, Moment):
            return value
        match = _WRITTEN.fullmatch(str(value).strip()) if isinstance(value, (str, int, float)) else None
        if match is None or isinstance(value, bool):
            raise ValueError("must be a point in the run, such as 50%, 2epochs, 100steps or 2**20tokens")
        unit = _UNITS[(match["unit"] or "token").rstrip("s")]
        if unit in ("steps", "tokens"):
            amount = Fraction(parse_count(match["number"]))
        else:
            try:
                amount = parse_fraction(match["number"]) / (100 if unit == "share" else 1)
            except (ValueError, ZeroDivisionError):
                raise ValueError("must begin with a number") from None
        if amount < 0 or (unit == "share" and amount > 1):
            raise ValueError("must be at least 0, and at most 100%")
        return cls(amount, unit)

    @classmethod
    def __get_pydantic_core_schema__(
        cls, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(
            cls.parse, serialization=core_schema.plain_serializer_function_ser_schema(str)
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"type": ["string", "integer"], "description": "50%, 2epochs, 100steps or 2**20tokens."}


_BEGINNING = Moment(Fraction(0), "share")


class Scheduled(Frozen):
    """A number, or a number that changes at a moment, at once or linearly.

    Late dropout is `{value: 0.1, start: 50%}`; a warm-up `{value: 0.1, over: 10%}`.
    """

    value: float
    """Value after the change."""
    before: float = 0.0
    """Value before the change."""
    start: Moment = _BEGINNING
    """Start of the change."""
    over: Moment | None = None
    """Duration of the change, in the unit of `start`; null: at once."""

    @model_validator(mode="before")
    @classmethod
    def _from_number(cls, value: Any) -> Any:
        return value if isinstance(value, (dict, Scheduled)) else {"value": value}

    @model_validator(mode="after")
    def _one_unit(self) -> Self:
        if self.over is not None and self.start.amount and self.over.unit != self.start.unit:
            raise ValueError(f"over must be in the unit of start {self.start}; {self.over} was given")
        if self.over is not None and not self.over.amount:
            raise ValueError("over must be more than 0; omit it to change at once")
        return self

    @model_serializer(mode="wrap")
    def _to_number(self, handler: SerializerFunctionWrapHandler) -> Any:
        return self.value if self.is_constant else handler(self)

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"anyOf": [{"type": "number"}, super().__get_pydantic_json_schema__(schema, handler)]}

    @property
    def is_constant(self) -> bool:
        """Whether it never changes."""
        return self.over is None and not self.start.amount

    @property
    def largest(self) -> float:
        """The largest value."""
        return self.value if self.is_constant else max(self.value, self.before)

    @property
    def first(self) -> float:
        """The value at the start of the run."""
        return self.value if self.is_constant else self.before

    def at(self, progress: RunPosition) -> float:
        """The value in the step that starts there."""
        unit = self.start.unit if self.over is None or self.start.amount else self.over.unit
        done = progress.position(unit) - self.start.amount
        if done < 0:
            return self.before
        if self.over is None or done >= self.over.amount:
            return self.value
        return self.before + (self.value - self.before) * float(done / self.over.amount)


def _within(low: float, below: float) -> Callable[[Scheduled], Scheduled]:
    def check(scheduled: Scheduled) -> Scheduled:
        for number in (scheduled.value, scheduled.before):
            if not low <= number < below:
                bound = "" if below == float("inf") else f" and less than {below:g}"
                raise ValueError(f"must be at least {low:g}{bound}")
        return scheduled

    return check


Rate = Annotated[Scheduled, AfterValidator(_within(0, 1))]
"""A probability below 1, which may be scheduled."""
Coefficient = Annotated[Scheduled, AfterValidator(_within(0, float("inf")))]
"""A weight of at least 0, which may be scheduled."""
NONE = Scheduled(value=0.0)
"""Constant 0."""
