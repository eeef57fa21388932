"""The table of faults, as the tests fill it and docs/reliability.md shows it."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Literal

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"
BEGIN, END = "<!-- faults: made by `make test-faults` -->", "<!-- end of faults -->"

Outcome = Literal["resumed exactly", "clear error, nothing lost; after repair resumed exactly"]
WENT_ON: Outcome = "resumed exactly"
STOPPED: Outcome = "clear error, nothing lost; after repair resumed exactly"


class FaultTable:
    """Counts the trials of each fault, their places and their outcomes. Only good outcomes are counted."""

    def __init__(self) -> None:
        self._rows: dict[str, tuple[Counter[str], Counter[Outcome]]] = {}

    def add(self, fault: str, where: str, outcome: Outcome) -> None:
        """Count one trial."""
        places, outcomes = self._rows.setdefault(fault, (Counter(), Counter()))
        places[where] += 1
        outcomes[outcome] += 1

    def __bool__(self) -> bool:
        return bool(self._rows)

    def text(self) -> str:
        """The table in Markdown."""
        lines = ["| fault | trials | where | outcome |", "|---|---|---|---|"]
        for fault, (places, outcomes) in self._rows.items():
            lines.append(f"| {fault} | {outcomes.total()} | {_told(places)} | {_told(outcomes)} |")
        return "\n".join(lines)


def _told(counts: Counter[str] | Counter[Outcome]) -> str:
    if len(counts) == 1:
        return next(iter(counts))
    return "; ".join(f"{text}: {count}" for text, count in counts.items())


def shown_table() -> str:
    """The table as docs/reliability.md shows it."""
    return PAGE.read_text().partition(BEGIN)[2].partition(END)[0].strip()


def show_table(table: str) -> None:
    """Put a table into docs/reliability.md."""
    before, _, rest = PAGE.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    PAGE.write_text(f"{before}{BEGIN}\n\n{table}\n\n{END}{after}")
