"""Conditions and an order for a list of runs: ``status=done``, ``epochs>=4``, ``optimizer.lr!=0.001``."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from reptrain.errors import ConfigError
from reptrain.tables.columns import RUN_COLUMNS, SETTING_PREFIX
from reptrain.tables.read_run import RunReading

_OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    "=": operator.eq, "!=": operator.ne,
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip
_CONDITION = re.compile(r"\s*([A-Za-z_][\w.-]*?)\s*(!=|<=|>=|=|<|>)\s*(.*?)\s*")
_NAMES = {column.name for column in RUN_COLUMNS}


@dataclass(frozen=True)
class Condition:
    """A comparison of a column, or of a setting by its dotted key, with a value."""

    name: str
    sign: str
    value: str

    @classmethod
    def parse(cls, text: str) -> Condition:
        """Read ``NAME=VALUE``, or with ``!=``, ``<``, ``<=``, ``>``, ``>=``.

        Raises:
            ConfigError: If it is none of these, or the name is neither a column nor a dotted key.
        """
        match = _CONDITION.fullmatch(text)
        if match is None:
            raise ConfigError(
                "--where",
                got=repr(text),
                rule="must be NAME=VALUE, or with !=, <, <=, > or >=",
                remedy="For example --where status=done --where 'epochs>=4'.",
            )
        return cls(_checked("--where", match[1]), match[2], match[3])

    def holds(self, reading: RunReading) -> bool:
        """Whether a run satisfies it. A value that is not known satisfies ``!=`` only, and ``=null``."""
        got = value_of(reading, self.name)
        if self.value == "null" and self.sign in ("=", "!="):
            return (got is None) == (self.sign == "=")
        if got is None:
            return self.sign == "!="
        if isinstance(got, bool) or not isinstance(got, int | float):
            text = str(got).lower() if isinstance(got, bool) else str(got)
            return _OPERATORS[self.sign](text, self.value)
        return _OPERATORS[self.sign](got, self._number())

    def _number(self) -> float:
        from reptrain.config.quantities import parse_count

        try:
            return float(self.value)
        except ValueError:
            pass
        try:
            return float(parse_count(self.value))
        except ValueError as error:
            raise ConfigError(
                f"--where {self.name}",
                got=repr(self.value),
                rule="must be a number",
                remedy=f"{self.name} holds numbers: compare it with one, such as 0.5 or 2**20.",
            ) from error


def check_sort_key(key: str) -> str:
    """The name in a sort key.

    Raises:
        ConfigError: If it is neither a column nor a dotted key.
    """
    return _checked("--sort", key.removeprefix("-"))


def sorted_readings(readings: Sequence[RunReading], key: str) -> list[RunReading]:
    """The runs in the order of a column or setting, unknown values last.

    Args:
        readings: The runs.
        key: Its name; with ``-`` before it, the largest first.
    """
    descending, name = key.startswith("-"), check_sort_key(key)
    known = [reading for reading in readings if value_of(reading, name) is not None]
    unknown = [reading for reading in readings if value_of(reading, name) is None]
    return [*sorted(known, key=lambda r: _order(value_of(r, name)), reverse=descending), *unknown]


def value_of(reading: RunReading, name: str) -> Any:
    """The value of a column, or of a setting by its dotted key, with or without ``set.``."""
    if name in _NAMES:
        return reading.row.get(name)
    key = name.removeprefix(SETTING_PREFIX)
    return reading.row.get(f"{SETTING_PREFIX}{key}", reading.settings.get(key))


def _order(value: Any) -> tuple[bool, Any]:
    """Numbers before texts; NaN after every number."""
    if isinstance(value, int | float):
        return False, (value != value, value)
    return True, str(value)


def _checked(option: str, name: str) -> str:
    if name not in _NAMES and "." not in name and name != "seed":
        raise ConfigError(
            option,
            got=name,
            rule=f"must name a column ({', '.join(sorted(_NAMES))}) or a setting by its dotted key",
            remedy="For example loss_report_best_nats, or optimizer.lr.",
        )
    return name
