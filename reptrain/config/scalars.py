"""Plain YAML scalars by the core schema of YAML 1.2; values that YAML 1.1 reads differently are errors.

PyYAML implements YAML 1.1, where ``no`` is false, ``010`` is 8 and ``12:30`` is 750. Words and numbers that
the two versions read differently are refused; dates, times and ``=`` are strings.

Source: yaml.org/type (1.1); YAML 1.2.2, section 10.3, core schema.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, NoReturn

import yaml
from pydantic import BaseModel

from reptrain.config.limits import Loader

_WORDS = re.compile(r"(?:yes|Yes|YES|no|No|NO|on|On|ON|off|Off|OFF)")
_BOOLEAN = re.compile(r"(?:true|True|TRUE|false|False|FALSE)")
_INTEGER = re.compile(r"[-+]?(?:0|[1-9][0-9]*(?:_[0-9]+)*)|[-+]?0x[0-9a-fA-F]+")
_LEADING_ZERO = re.compile(r"[-+]?0o[0-7]+|[-+]?0_*[0-9][0-9_]*")
_FLOAT = re.compile(
    r"[-+]?(?:[0-9]+(?:_[0-9]+)*\.[0-9]*|\.[0-9]+)(?:[eE][-+][0-9]+)?"
    r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)
_TAG = "tag:yaml.org,2002:"
_AMBIGUOUS = "!ambiguous"


class AmbiguousError(yaml.constructor.ConstructorError):
    """A plain scalar that YAML 1.1 and YAML 1.2 read as different values."""


class PlainLoader(Loader):  # type: ignore[misc]
    """A safe loader with the core schema of YAML 1.2."""


PlainLoader.yaml_implicit_resolvers = {}


def _refuse(loader: PlainLoader, node: yaml.Node) -> NoReturn:
    text = node.value
    if _WORDS.fullmatch(text):
        is_true = text.lower() in ("yes", "on")
        advice = f'write {"true" if is_true else "false"}, or quote the text: "{text}"'
        got = f"{text}, which YAML 1.1 reads as {'true' if is_true else 'false'} and YAML 1.2 as text"
    else:
        digits = text.replace("_", "")
        number = int(digits, 8) if "o" in digits else digits.lstrip("+-0") or "0"
        sign = "-" if digits.startswith("-") and "o" not in digits else ""
        advice = f'write {sign}{number}, or quote the text: "{text}"'
        got = f"{text}, which YAML parsers read as different numbers"
    raise AmbiguousError(None, None, f"{got}; {advice}", node.start_mark)


def _refuse_tag(loader: PlainLoader, node: yaml.Node) -> NoReturn:
    raise yaml.constructor.ConstructorError(
        None,
        None,
        f"the tag {node.tag} is not supported; write a string, a number or a list",
        node.start_mark,
    )


def _boolean(loader: PlainLoader, node: yaml.ScalarNode) -> bool:
    if not _BOOLEAN.fullmatch(node.value):
        _wrong(node, "true or false")
    return bool(node.value.lower() == "true")


def _integer(loader: PlainLoader, node: yaml.ScalarNode) -> int:
    if not _INTEGER.fullmatch(node.value):
        _wrong(node, "a whole number")
    try:
        return int(node.value.replace("_", ""), 16 if "x" in node.value else 10)
    except ValueError:
        _wrong(node, "a whole number with fewer digits")


def _number(loader: PlainLoader, node: yaml.ScalarNode) -> float:
    text = node.value.replace("_", "").lower()
    if text.lstrip("+-") in (".inf", ".nan"):
        return math.nan if text.endswith("nan") else math.copysign(math.inf, -1 if text[0] == "-" else 1)
    try:
        return float(text)
    except ValueError:
        _wrong(node, "a number")


def _wrong(node: yaml.ScalarNode, expected: str) -> NoReturn:
    shown = node.value if len(node.value) <= 40 else f"{node.value[:37]}..."
    raise yaml.constructor.ConstructorError(None, None, f"{shown!r} is not {expected}", node.start_mark)


for _name, _pattern, _first in (
    ("bool", _BOOLEAN, "tTfF"),
    ("int", _INTEGER, "-+0123456789"),
    ("float", _FLOAT, "-+0123456789."),
    ("null", re.compile(r"~|null|Null|NULL|"), ["~", "n", "N", ""]),
    ("merge", re.compile(r"<<"), "<"),
):
    PlainLoader.add_implicit_resolver(f"{_TAG}{_name}", re.compile(rf"(?:{_pattern.pattern})\Z"), _first)
for _pattern, _first in ((_WORDS, "yYnNoO"), (_LEADING_ZERO, "-+0")):
    PlainLoader.add_implicit_resolver(_AMBIGUOUS, re.compile(rf"(?:{_pattern.pattern})\Z"), _first)
PlainLoader.add_constructor(_AMBIGUOUS, _refuse)
PlainLoader.add_constructor(f"{_TAG}bool", _boolean)
PlainLoader.add_constructor(f"{_TAG}int", _integer)
PlainLoader.add_constructor(f"{_TAG}float", _number)
for _name in ("timestamp", "binary", "omap", "pairs", "set"):
    PlainLoader.add_constructor(f"{_TAG}{_name}", _refuse_tag)


class PlainDumper(yaml.SafeDumper):
    """Quotes every string that a parser of YAML 1.1 or 1.2 might not read as a string."""


# Every text that begins like a number: YAML versions and parsers differ in what they read as a number.
_LIKE_A_NUMBER = re.compile(r"[-+]?\.?[0-9][0-9a-fA-FxXo_.:+-]*")
_ONE_LETTER = re.compile(r"[yYnN]")
for _pattern, _first in ((_WORDS, "yYnNoO"), (_ONE_LETTER, "yYnN"), (_LIKE_A_NUMBER, "-+.0123456789")):
    PlainDumper.add_implicit_resolver(_AMBIGUOUS, re.compile(rf"(?:{_pattern.pattern})\Z"), _first)


def find_bool_as_number(given: Any, validated: Any, path: tuple[str, ...] = ()) -> tuple[str, ...] | None:
    """Find a true or false that pydantic accepted as the number 1 or 0.

    Args:
        given: The setting in the file.
        validated: The setting after validation.
        path: Path of the setting.

    Returns:
        Path of the first such value; None if there is none.
    """
    if isinstance(given, bool):
        return path if type(validated) in (int, float) else None
    pairs: list[tuple[object, Any, Any]] = []
    if isinstance(given, Mapping):
        fields = dict(validated) if isinstance(validated, BaseModel | Mapping) else {}
        pairs = [(key, value, fields.get(key)) for key, value in given.items()]
    elif isinstance(given, list | tuple) and isinstance(validated, list | tuple):
        pairs = [(index, *pair) for index, pair in enumerate(zip(given, validated, strict=False))]
    paths = (find_bool_as_number(value, other, (*path, str(key))) for key, value, other in pairs)
    return next((found for found in paths if found is not None), None)
