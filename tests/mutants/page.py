"""The tables in docs/reliability.md."""

from __future__ import annotations

from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "reliability.md"


def replace_part(begin: str, end: str, text: str) -> None:
    """Replace the text between two marks of the page."""
    before, _, rest = PAGE.read_text().partition(begin)
    _, _, after = rest.partition(end)
    PAGE.write_text(f"{before}{begin}\n\n{text}\n\n{end}{after}")
