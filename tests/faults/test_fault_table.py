"""The table of docs/reliability.md is what `make test-faults` wrote."""

from __future__ import annotations

import re
from pathlib import Path

import fault_table
import pytest
from fault_table import BEGIN, END, STOPPED, WENT_ON, FaultTable, show_table, shown_table


def test_text_counts_tries_places_and_outcomes() -> None:
    table = FaultTable()
    assert not table
    table.add("kill", "in a save", WENT_ON)
    table.add("kill", "in a step", STOPPED)
    table.add("damage", "one bit", WENT_ON)
    assert table.text().splitlines()[2:] == [
        f"| kill | 2 | in a save: 1; in a step: 1 | {WENT_ON}: 1; {STOPPED}: 1 |",
        f"| damage | 1 | one bit | {WENT_ON} |",
    ]


def test_show_table_replaces_what_stands_between_the_marks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    monkeypatch.setattr(fault_table, "PAGE", page)
    for table in ("| first |", "| new |"):
        show_table(table)
        assert shown_table() == table
    assert page.read_text() == f"before\n{BEGIN}\n\n| new |\n\n{END}\nafter\n"


def test_page_shows_only_what_ended_well() -> None:
    rows = shown_table().splitlines()[2:]
    assert len(rows) > 20
    for row in rows:
        *_, tried, _, ended = (cell.strip() for cell in row.strip("|").split("|"))
        assert int(tried) > 0
        assert {re.sub(r": \d+$", "", part) for part in ended.split("; ")} <= {WENT_ON, *STOPPED.split("; ")}
