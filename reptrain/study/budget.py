"""Limits of the cost of studies, such as ``24h`` or ``2B tokens``."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from reptrain.config.quantities import parse_count
from reptrain.errors import StudyError
from reptrain.study.bill import Bill

_BUDGET = re.compile(r"(?P<number>.+?)\s*(?P<unit>usd|h|flops|tokens)")


def over_budget(bills: Sequence[Bill], budget: str) -> str | None:
    """How what is left exceeds a budget, in words; None if it does not.

    Args:
        bills: The bills of one or several studies.
        budget: ``24h`` (device-hours), ``100usd``, ``1e18flops`` or ``2B tokens``.

    Raises:
        StudyError: If the budget cannot be read, or the bill has no such figure.
    """
    match = _BUDGET.fullmatch(budget.strip())
    limit = None if match is None else _number(match["number"], match["unit"])
    if match is None or limit is None:
        raise StudyError(
            "--budget",
            got=repr(budget),
            rule="must be a number with a unit, such as 24h, 100usd, 1e18flops or 2B tokens",
            remedy="h stands for device-hours.",
        )
    unit = match["unit"]
    left = [row for bill in bills for row in bill.left]
    needed = {
        "h": _sum(bill.device_hours for bill in bills),
        "usd": _sum(bill.usd for bill in bills),
        "flops": sum(row.flops for row in left),
        "tokens": sum(row.tokens for row in left),
    }[unit]
    if needed is None:
        has_hours = all(bill.device_hours is not None for bill in bills)
        missing = "--usd-per-hour" if unit == "usd" and has_hours else "--hardware"
        raise StudyError(
            "--budget",
            got=repr(budget),
            rule="must be a quantity that the plan contains",
            remedy=f"Add {missing}.",
        )
    return f"{needed:,.6g} {unit} are needed, {limit:,.6g} {unit} is the budget" if needed > limit else None


def _sum(figures: Iterable[float | None]) -> float | None:
    """The sum; None if a figure is missing."""
    known = [*figures]
    return None if None in known else sum(figure for figure in known if figure is not None)


def _number(text: str, unit: str) -> float | None:
    try:
        number = float(parse_count(text) if unit == "tokens" else text)
    except (TypeError, ValueError):
        return None
    return number if number >= 0 else None
