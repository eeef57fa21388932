"""Parsing of counts and training budgets: ``2**20``, ``1e9``, ``100M``, ``64epochs``, ``2**30targets``."""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, GetCoreSchemaHandler, GetJsonSchemaHandler, Strict
from pydantic_core import core_schema

from reptrain.errors import ConfigError

_POWER = re.compile(r"(\d+)\s*(?:\*\*|\^)\s*(\d+)")
_EPOCHS = re.compile(r"([0-9./eE+-]+)\s*epochs?")
_TEXT = re.compile(r"(.+?)\s*(words|bytes)")
_PARTS = re.compile(r"(.+?)\s*(tokens|inputs|targets)")
_SUFFIXED = re.compile(r"(.*[0-9.])\s*([A-Za-z]+)")
# A comma has three digits after it: 1,5B is 1.5B in other countries, not 15B.
_GROUPED = re.compile(r"[-+]?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+(?:_[0-9]+)*)(?![0-9_,])[^_,]*")
_SUFFIXES = {"k": 10**3, "K": 10**3, "M": 10**6, "B": 10**9, "G": 10**9, "T": 10**12}
_LIMIT = 2**62
_MAX_CHARACTERS, _MAX_EXPONENT = 64, 30
_BUDGETS = "must be a number of tokens or of epochs, such as 2**20, 100M or 64epochs"
_EXAMPLES = "must be a whole number such as 1048576, 2**20, 1e9, 64k or 1.5B"


def parse_fraction(text: str) -> Fraction:
    """The exact value of a number such as ``2.5``, ``7/3`` or ``1e6``.

    Raises:
        ValueError: If the text is not a number, or has too many digits.
    """
    exponent = re.search("[eE][+-]?([0-9]*)", text)
    # A decimal number of 64 characters can be a ratio of longer numbers, as which a budget is saved.
    parts = text.split("/")
    most = _MAX_CHARACTERS if len(parts) == 1 else _MAX_CHARACTERS + _MAX_EXPONENT
    if max(map(len, parts)) > most or (exponent and int(exponent[1] or 0) > _MAX_EXPONENT):
        raise ValueError("must be a number of at most 30 digits")
    return Fraction(text)


def parse_count(value: Any) -> Any:
    """A whole number from ``1048576``, ``2**20``, ``2^20``, ``1e9``, ``1_000_000``, ``64k`` or ``1.5B``.

    Suffixes are decimal: k (or K) is 10**3, M 10**6, B (or G) 10**9, T 10**12.

    Returns:
        The integer; a value that is not a string is returned unchanged for pydantic to validate.

    Raises:
        ValueError: If the text is not a whole number below 2**62.
    """
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if not isinstance(value, str):
        return value
    text = value.strip()
    if len(text) > _MAX_CHARACTERS:
        raise ValueError("must be below 2**62")
    if ("_" in text or "," in text) and not _GROUPED.fullmatch(text):
        raise ValueError(f"{_EXAMPLES}; commas and underscores separate groups of digits, as in 1,048,576")
    text = text.replace("_", "").replace(",", "")
    if match := _POWER.fullmatch(text):
        base, exponent = int(match[1]), int(match[2])
        if base > 1 and exponent > 62:
            raise ValueError("must be below 2**62")
        number = Fraction(base**exponent)
    else:
        number = _decimal(text)
    if number.denominator != 1:
        raise ValueError(_EXAMPLES)
    if number >= _LIMIT:
        raise ValueError("must be below 2**62")
    return int(number)


def _decimal(text: str) -> Fraction:
    """The number in a text such as ``1e9``, ``-3`` or ``1.5B``."""
    factor = 1
    if match := _SUFFIXED.fullmatch(text):
        text, suffix = match[1], match[2]
        if suffix not in _SUFFIXES:
            raise ValueError(f"{_EXAMPLES}; suffixes are the decimal {', '.join(_SUFFIXES)}, not {suffix}")
        factor = _SUFFIXES[suffix]
    try:
        decimal = Decimal(text)
    except InvalidOperation:
        raise ValueError(_EXAMPLES) from None
    if not decimal.is_finite() or abs(decimal.adjusted()) > 30:
        raise ValueError("must be below 2**62")
    return Fraction(decimal) * factor


Count = Annotated[int, BeforeValidator(parse_count), Strict()]
"""An integer that may be written as ``2**20``, ``1e9`` or ``64k``."""


TextUnit = Literal["words", "bytes"]


@dataclass(frozen=True)
class TextAmount:
    """An amount of text, repeats included: ``10Mwords`` or ``50Mbytes``."""

    count: int
    unit: TextUnit

    def __str__(self) -> str:
        return f"{self.count}{self.unit}"

    @property
    def short(self) -> str:
        """The amount as in BabyLM's names of checkpoints: ``1M`` words, ``1000M`` words, ``50MB``."""
        suffix = "B" if self.unit == "bytes" else ""
        for factor, letter in ((10**6, "M"), (10**3, "k")):
            if self.count % factor == 0:
                return f"{self.count // factor}{letter}{suffix}"
        return f"{self.count}{suffix}"

    @classmethod
    def parse(cls, value: Any) -> TextAmount:
        """Parse an amount of words or bytes.

        Raises:
            ValueError: If it is no such amount.
        """
        if isinstance(value, TextAmount):
            return value
        match = _TEXT.fullmatch(value.strip()) if isinstance(value, str) else None
        try:
            count = parse_count(match[1]) if match is not None else None
        except ValueError:
            count = None
        if match is None or not isinstance(count, int) or count <= 0:
            raise ValueError("must be a number of words or bytes, such as 10Mwords or 5e7bytes")
        return cls(count, "words" if match[2] == "words" else "bytes")

    @classmethod
    def __get_pydantic_core_schema__(
        cls, source: Any, handler: GetCoreSchemaHandler
    ) -> core_schema.CoreSchema:
        return core_schema.no_info_plain_validator_function(
            cls.parse, serialization=core_schema.plain_serializer_function_ser_schema(str)
        )

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: Any, handler: GetJsonSchemaHandler) -> dict[str, Any]:
        return {"type": "string", "description": "10Mwords, 5e7bytes."}


def named_amounts(value: Any) -> Any:
    """The amounts of ``babylm``, or a list of one amount; pydantic validates the amounts."""
    if value != "babylm":
        return [value] if isinstance(value, str) else value
    millions = [*range(1, 10), *range(10, 100, 10), *range(100, 1001, 100)]
    return [f"{number}Mwords" for number in millions]


@dataclass(frozen=True)
class Budget:
    """Length of the training, in one of these units: raw tokens, epochs over the subset, input tokens, target
    tokens, words, or bytes.

    Exactly one is set. Written ``2**20`` or ``100M`` (raw tokens), ``64epochs``, ``2.5epochs``,
    ``7/3epochs``, ``2**20inputs``, ``2**20targets``, ``100Mwords`` or ``5e8bytes``.
    """

    tokens: int | None = None
    epochs: Fraction | None = None
    inputs: int | None = None
    targets: int | None = None
    text: TextAmount | None = None

    def __post_init__(self) -> None:
        parts = (self.tokens, self.epochs, self.inputs, self.targets, self.text)
        assert sum(part is not None for part in parts) == 1

    def __str__(self) -> str:
        if self.tokens is not None or self.text is not None:
            return str(self.text or self.tokens)
        if self.epochs is None:
            return f"{self.inputs}inputs" if self.targets is None else f"{self.targets}targets"
        number = self.epochs
        as_float = float(number)
        text = f"{as_float:g}" if Fraction(f"{as_float:g}") == number else str(number)
        return f"{text}epochs"

    def epochs_over(self, unique_tokens: int) -> Fraction:
        """The number of epochs over ``unique_tokens`` tokens, of a budget in raw tokens or epochs.

        Raises:
            ConfigError: If the budget is in words or bytes.
        """
        if self.text is not None:
            raise ConfigError(
                "total_tokens",
                got=f"a budget of {self.text}",
                rule="must be in tokens or epochs here: only `reptrain train` converts words and bytes",
                remedy="`reptrain store show` prints the words, bytes and tokens of the store.",
            )
        assert self.inputs is None and self.targets is None
        return self.epochs if self.epochs is not None else Fraction(self.tokens or 0, unique_tokens)

    def in_raw_terms(self, *, inputs: Fraction, targets: Fraction) -> Budget:
        """Convert the budget to raw tokens or epochs.

        Args:
            inputs: Mean number of input tokens that the objective makes of a raw token.
            targets: Mean number of target tokens that the objective makes of a raw token.

        Raises:
            ValueError: If the budget is in inputs and the objective has none.
        """
        count, rate = (self.targets, targets) if self.inputs is None else (self.inputs, inputs)
        if count is None:
            return self
        if rate == 0:
            raise ValueError("a budget in inputs needs an objective with input tokens that are not targets")
        return Budget(tokens=max(1, round(count / rate)))

    @classmethod
    def parse(cls, value: Any) -> Budget:
        """Parse a budget from an integer or a string.

        Raises:
            ValueError: If it is neither a positive count of tokens nor a positive number of epochs.
        """
        if isinstance(value, Budget):
            return value
        if isinstance(value, bool):
            raise ValueError(_BUDGETS)
        if isinstance(value, str) and (match := _EPOCHS.fullmatch(value.strip())):
            try:
                epochs = parse_fraction(match[1])
            except (ValueError, ZeroDivisionError):
                raise ValueError("must name a number of epochs, such as 64epochs or 2.5epochs") from None
            if not 0 < epochs < _LIMIT:
                raise ValueError("must be more than 0 epochs, and fewer than 2**62")
            return cls(epochs=epochs)
        if isinstance(value, str) and _TEXT.fullmatch(value.strip()):
            return cls(text=TextAmount.parse(value))
        unit = "tokens"
        if isinstance(value, str) and (match := _PARTS.fullmatch(value.strip())):
            value, unit = match[1], match[2]
        try:
            count = parse_count(value)
        except ValueError:
            count = None
        if not isinstance(count, int):
            raise ValueError(_BUDGETS)
        if count <= 0:
            raise ValueError(f"must be more than 0 {unit}")
        if unit == "tokens":
            return cls(tokens=count)
        return cls(inputs=count) if unit == "inputs" else cls(targets=count)

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
            "description": "Tokens (2**20, 1e9, 100M), epochs (2.5epochs), 2**20inputs, 2**20targets,"
            " 100Mwords, 5e8bytes.",
        }
