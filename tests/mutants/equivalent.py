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
        r".*",
        r".*random\.uniform\(.*\) < ",
        r".*random\.uniform\(.*\) <= ",
        "they differ where 53 random bits equal the bound",
    ),
    Equivalent(
        r"reptrain/batch/objectives/prefix_lm.py",
        r"fixed_N = np.array\(\[-1 if",
        r"fixed_N = np.array\(\[- 2 if",
        "any number below 0 marks a drawn split",
    ),
    Equivalent(
        r"reptrain/batch/objectives/fill_in_the_middle.py",
        r".*self\._order\(places\) > 0\)",
        r".*self\._order\(places\) != 0\)",
        "an order is at least 0",
    ),
    Equivalent(
        r"reptrain/batch/loader.py",
        r"step_tokens = micro_steps",
        r"step_tokens = micro_steps .*self\.micro_batch_windows",
        "the size of a block; only the time differs",
    ),
    Equivalent(
        r"reptrain/batch/loader.py",
        r"begin, windows = self\._kept\.get",
        r"begin, windows = self\._kept\.get\(\"windows\", \( ?-? ?\d+, None\)\)",
        "without windows, their first index is not used",
    ),
    Equivalent(
        r"reptrain/batch/loader.py",
        r"begin, stop = first, min\(max\(end, first \+ _LOCATED_WINDOWS\)",
        r"begin, stop = first, min\(max\(end, first .* _LOCATED_WINDOWS\), self\.plan\.total_windows\)",
        "the number of windows located ahead; only the time differs",
    ),
    Equivalent(
        r"reptrain/auditing/recount.py",
        r"for jump, stop in zip\(jumps, .*strict=True\)",
        r"for jump, stop in zip\(jumps, .*strict=False\)",
        "both have the length of jumps",
    ),
    Equivalent(
        r"reptrain/auditing/ledger_columns.py",
        r"waiting, held = \[\], 0",
        r"waiting, held = \[\], ",
        "the size of a chunk; the results are the same",
    ),
    Equivalent(
        r"reptrain/training/setup.py",
        r"_KEPT_BELOW_BYTES = ",
        r"_KEPT_BELOW_BYTES = ",
        "how much freed memory the process keeps; only memory and time differ",
    ),
    Equivalent(
        r"reptrain/plan/digest.py",
        r".*np\.asarray\(length_B\) > 0",
        r".*np\.asarray\(length_B\) != 0",
        "a length is at least 0",
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
