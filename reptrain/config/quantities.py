"""Numbers as people write them: ``2**20``, ``1e9``, ``64epochs``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import Annotated, Any

from pydantic import BeforeValidator, GetCoreSchemaHandler, GetJsonSchemaHandler, Strict
from pydantic_core import core_schema

_POWER = re.compile(r"(\d+)\s*(?:\*\*|\^)\s*(\d+)")
_EPOCHS = re.compile(r"([0-9./eE+-]+)\s*epochs?")
_LARGEST = 2**62


def parse_count(value: Any) -> Any:
    """A whole number from ``1048576``, ``2**20``, ``2^20``, ``1e9`` or ``1_000_000``.

    Returns:
        The integer, or the value itself where it is no text, so that pydantic judges it.

    Raises:
        ValueError: If the text is not a whole number below 2**62.
    """
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if not isinstance(value, str):
        return value
    text = value.strip().replace("_", "").replace(",", "")
    if match := _POWER.fullmatch(text):
        base, exponent = int(match[1]), int(match[2])
        if base > 1 and exponent > 62:
            raise ValueError("must be below 2**62")
        number = Fraction(base**exponent)
    else:
        try:
            decimal = Decimal(text)
        except InvalidOperation:
            raise ValueError("must be a whole number such as 1048576, 2**20 or 1e9") from None
        if not decimal.is_finite() or abs(decimal.adjusted()) > 30:
            raise ValueError("must be below 2**62")
        number = Fraction(decimal)
    if number.denominator != 1:
        raise ValueError("must be a whole number such as 1048576, 2**20 or 1e9")
    if number >= _LARGEST:
        raise ValueError("must be below 2**62")
    return int(number)


Count = Annotated[int, BeforeValidator(parse_count), Strict()]
"""An integer that may be written as ``2**20`` or ``1e9``."""


@dataclass(frozen=True)
class Budget:
    """How long to train: a number of tokens, or of epochs over the subset.

    Exactly one of the two is set. Written ``2**20`` (tokens) or ``64epochs``, ``2.5epochs``, ``7/3epochs``.
    """

    tokens: int | None = None
    epochs: Fraction | None = None

    def __post_init__(self) -> None:
        assert (self.tokens is None) != (self.epochs is None)

    def __str__(self) -> str:
        if self.tokens is not None:
            return str(self.tokens)
        assert self.epochs is not None
        number = self.epochs
        as_float = float(number)
        text = f"{as_float:g}" if Fraction(f"{as_float:g}") == number else str(number)
        return f"{text}epochs"

    def epochs_over(self, unique_tokens: int) -> Fraction:
        """The number of passes over a subset of ``unique_tokens`` tokens."""
        return self.epochs if self.epochs is not None else Fraction(self.tokens or 0, unique_tokens)

    @classmethod
    def parse(cls, value: Any) -> Budget:
        """Read a budget from an integer or its text.

        Raises:
            ValueError: If it is neither a positive count of tokens nor a positive number of epochs.
        """
        if isinstance(value, Budget):
            return value
        if isinstance(value, bool):
            raise ValueError("must be a number of tokens or of epochs, such as 2**20 or 64epochs")
        if isinstance(value, str) and (match := _EPOCHS.fullmatch(value.strip())):
            try:
                epochs = Fraction(match[1])
            except (ValueError, ZeroDivisionError):
                raise ValueError("must name a number of epochs, such as 64epochs or 2.5epochs") from None
            if epochs <= 0:
                raise ValueError("must be more than 0 epochs")
            return cls(epochs=epochs)
        try:
            tokens = parse_count(value)
        except ValueError:
            tokens = None
        if not isinstance(tokens, int):
            raise ValueError("must be a number of tokens or of epochs, such as 2**20 or 64epochs")
        if tokens <= 0:
            raise ValueError("must be more than 0 tokens")
        return cls(tokens=tokens)

    @classmethod
    def __get_pydantic_core_schema__(
        cls, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(
            cls.parse,
            serialization=core_schema.plain_serializer_function_ser_schema(
                lambda budget: budget.tokens if budget.tokens is not None else str(budget)
            ),
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {
            "anyOf": [{"type": "integer", "exclusiveMinimum": 0}, {"type": "string"}],
            "description": "Tokens (2**20, 1e9) or epochs (64epochs, 2.5epochs).",
        }
