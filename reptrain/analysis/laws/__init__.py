"""The registry of laws: each is one small file with formula, parameters, bounds, starts and source."""

from __future__ import annotations

from reptrain.analysis.laws import (
    bounded,
    chinchilla,
    data_constrained,
    excess,
    power,
    skaling,
    unique_term,
)
from reptrain.analysis.laws.base import Law, Parameter
from reptrain.errors import check_choice

__all__ = ["LAWS", "Law", "Parameter", "find_law"]

LAWS: dict[str, Law] = {
    law.name: law
    for law in (
        chinchilla.LAW,
        data_constrained.LAW,
        excess.ONE,
        excess.TWO,
        excess.FOUR,
        excess.SATURATING,
        skaling.LAW,
        bounded.LAW,
        unique_term.LAW,
        power.PURE,
        power.WITH_CONSTANT,
    )
}
"""Every law, by name."""


def find_law(name: str) -> Law:
    """A law by its name.

    Raises:
        ConfigError: If there is none of this name.
    """
    check_choice("law", name, LAWS)
    return LAWS[name]
