"""Mutations of the source without an observable effect, which are not counted."""

from __future__ import annotations

import re
from typing import NamedTuple


class Equivalent(NamedTuple):
    """Mutations that are equivalent to the source, with the reason.

    Attributes:
        file: Regular expression of the file.
        old: Regular expression of the line in the source.
        new: Regular expression of the changed line.
        why: The reason.
    """

    file: str
    old: str
    new: str
    why: str


EQUIVALENT = [
    Equivalent(
        r".*", r"@dataclass\(.*\b(frozen|eq|kw_only|slots)=", r"@dataclass\(", "nothing relies on the guard"
    ),
    Equivalent(
        r"reptrain/plan/epochs.py",
        r"if high - low >= epoch.size // 2:",
        r"if high - low .*:",
        "both ways compute the same; only the time differs",
    ),
]


def why_equivalent(file: str, old: str, new: str) -> str | None:
    """Why a mutation is equivalent; None if it is not known to be."""
    for entry in EQUIVALENT:
        if re.fullmatch(entry.file, file) and re.match(entry.old, old) and re.match(entry.new, new):
            return entry.why
    return None
