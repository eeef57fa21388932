"""Reading text and JSON. Every text file of a user is read by these functions.

Text is UTF-8, with or without a byte order mark. Only ``\\n`` and ``\\r\\n`` end a line, no other
Unicode separator. Invalid input raises `ReadError`, which names the cause; the caller adds file and line.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from typing import Any, NoReturn

_BOM = b"\xef\xbb\xbf"
_WIDE = {
    b"\xff\xfe\x00\x00": "UTF-32",
    b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
_COMPRESSED = {b"\x1f\x8b": "gzip", b"\x28\xb5\x2f\xfd": "Zstandard", b"PK\x03\x04": "zip", b"BZh": "bzip2"}
_CONTROL = {"\t": ("tab", "\\t"), "\r": ("carriage return", "\\r"), "\n": ("line end", "\\n")}


class ReadError(ValueError):
    """Bytes or text that cannot be parsed.

    Args:
        got: The invalid part and its position.
        rule: The rule that it breaks.
        remedy: How to fix it.
    """

    def __init__(self, *, got: str, rule: str, remedy: str) -> None:
        self.got, self.rule, self.remedy = got, rule, remedy
        super().__init__(f"{rule}, but got {got}. {remedy}")


class Number(str):
    """A number as written in a JSON text."""


def decode(data: bytes) -> str:
    """Decode UTF-8, without its byte order mark.

    Raises:
        ReadError: If it has another encoding, is compressed, or contains NUL.
    """
    try:
        text = data.removeprefix(_BOM).decode()
    except UnicodeDecodeError as error:
        raise _undecodable(data, error) from error
    if "\0" in text:
        raise ReadError(
            got=f"a NUL byte at offset {data.index(0)}",
            rule="must be text in UTF-8",
            remedy="The file is binary, in UTF-16, or was cut short; write it again as UTF-8.",
        )
    return text


def split_lines(text: str) -> list[str]:
    """The lines of a text without their ends.

    >>> split_lines("a\\r\\nb\\u2028c\\n")
    ['a', 'b\\u2028c', '']
    """
    return [line.removesuffix("\r") for line in text.split("\n")]


def is_unicode(text: str) -> bool:
    """Whether a text has no lone surrogate, such as JSON's ``\\ud800``."""
    if text.isascii():
        return True
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def escape_name(name: str) -> str:
    """A file name for messages and records, with control characters and invalid UTF-8 escaped as ``\\xff``.

    >>> escape_name("a\\udcff\\nb")
    'a\\\\xff\\\\x0ab'
    """
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return re.sub(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]", lambda sign: _escape(sign[0]), text)


def _escape(sign: str) -> str:
    return f"\\x{ord(sign):02x}" if ord(sign) < 256 else f"\\u{ord(sign):04x}"


def parse_json(text: str | bytes, *, numbers_as_text: bool = False) -> Any:
    """Parse a JSON text.

    Args:
        text: One value, as a string or as UTF-8 bytes.
        numbers_as_text: Return numbers as `Number`, and refuse NaN and infinity.

    Raises:
        ReadError: If it is not UTF-8 or not JSON, has a duplicate key or a number with too many digits, or is
            nested too deeply.
    """
    # Files that were joined by `cat` have a byte order mark at the begin of a line.
    text = text.removeprefix("\ufeff") if isinstance(text, str) else decode(text)
    decoder = _TEXT_NUMBERS if numbers_as_text else _NUMBERS
    try:
        return decoder.decode(text)
    except json.JSONDecodeError as error:
        raise _not_json(text, error) from error
    except RecursionError as error:
        raise ReadError(
            got=f"{_depth(text):,} levels of nesting",
            rule="must be JSON with fewer levels of nesting",
            remedy="Remove the nested value, or write it as a string.",
        ) from error
    except ReadError:
        raise
    except ValueError as error:
        raise _long_number(text, error) from error


def parse_object(text: str, *, numbers_as_text: bool = False) -> dict[str, Any]:
    """Parse a JSON object; see `parse_json`.

    Raises:
        ReadError: If it is not JSON, or not an object.
    """
    value = parse_json(text, numbers_as_text=numbers_as_text)
    if not isinstance(value, dict):
        raise ReadError(
            got=json_type(value), rule="must be a JSON object", remedy="Write one object per line."
        )
    return value


def json_type(value: object) -> str:
    """The JSON name of a value's type."""
    names: list[tuple[Any, str]] = [
        (type(None), "null"),
        (bool, "true or false"),
        ((int, float, Number), "a number"),
        (str, "a text"),
        (list, "a list"),
        (dict, "an object"),
    ]
    return next((name for kind, name in names if isinstance(value, kind)), type(value).__name__)


def _undecodable(data: bytes, error: UnicodeDecodeError) -> ReadError:
    for mark, encoding in _WIDE.items():
        if data.startswith(mark):
            return ReadError(
                got=f"{encoding}, by its byte order mark",
                rule="must be UTF-8",
                remedy=f"Convert it: iconv -f {encoding} -t UTF-8.",
            )
    for magic, kind in _COMPRESSED.items():
        if data.startswith(magic):
            return ReadError(
                got=f"{kind} data",
                rule="must be text in UTF-8",
                remedy="Decompress it, or give the file the right suffix.",
            )
    return ReadError(
        got=f"byte 0x{error.object[error.start]:02x} at offset {error.start}",
        rule="must be UTF-8",
        remedy="Convert it, for example with iconv -t UTF-8.",
    )


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) != len(pairs):
        seen: set[str] = set()
        key = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ReadError(
            got=f"the key {_shorten(key)} twice in one object",
            rule="must be JSON with each key once",
            remedy="Rename or remove one of them.",
        )
    return values


def _refuse_constant(name: str) -> NoReturn:
    raise ReadError(
        got=name, rule="must be JSON, which has finite numbers only", remedy="Write a number or a string."
    )


def _decoder(number: Callable[[str], Any] | None, constant: Callable[[str], Any] | None) -> json.JSONDecoder:
    return json.JSONDecoder(
        object_pairs_hook=_unique, parse_int=number, parse_float=number, parse_constant=constant
    )


_NUMBERS = _decoder(None, None)
_TEXT_NUMBERS = _decoder(Number, _refuse_constant)


def _not_json(text: str, error: json.JSONDecodeError) -> ReadError:
    rule, remedy = "must be JSON", "Fix the text there."
    at = f"column {error.colno}" if "\n" not in text.strip() else f"line {error.lineno}, column {error.colno}"
    sign = text[error.pos : error.pos + 1]
    if error.msg.startswith("Invalid control character"):
        name, escaped = _CONTROL.get(sign, (f"U+{ord(sign):04X}", f"\\u{ord(sign):04x}"))
        got, remedy = f"a raw {name} in a string at {at}", f"Write it as {escaped}."
    elif not text.lstrip().startswith(("{", "[")):
        got, rule, remedy = _shorten(text), "must be a JSON object", "Write one object a line."
    elif error.msg.startswith("Extra data"):
        got, remedy = f"more text after the first value, at {at}", "Write one object a line."
    elif error.pos >= len(text.rstrip()) or error.msg.startswith("Unterminated string"):
        got = f"an end inside a value that begins before {at}"
        if error.msg.startswith("Unterminated string"):
            got = f"no closing quote for the string at {at}"
        remedy = "Write the whole object on one line; a line end in a text is \\n."
    else:
        got = f"{error.msg[:1].lower()}{error.msg[1:]} at {at}"
    return ReadError(got=got, rule=rule, remedy=remedy)


def _long_number(text: str, error: ValueError) -> ReadError:
    most = sys.get_int_max_str_digits()
    number = re.search(rf"\d{{{most + 1},}}", text) if most else None
    if number is None:
        return ReadError(got=str(error), rule="must be JSON", remedy="Fix the text there.")
    return ReadError(
        got=f"a number of {len(number[0]):,} digits at column {number.start() + 1}",
        rule=f"must be JSON with numbers of at most {most:,} digits",
        remedy="Write the number as a string.",
    )


def _depth(text: str) -> int:
    """The largest nesting depth of a JSON text."""
    depth = deepest = 0
    for sign in re.findall(r'"(?:[^"\\]|\\.)*"|[][{}]', text):
        depth += (sign in "[{") - (sign in "]}")
        deepest = max(deepest, depth)
    return deepest


def _shorten(text: str) -> str:
    text = text.strip()
    return repr(text if len(text) <= 60 else f"{text[:57]}...")
