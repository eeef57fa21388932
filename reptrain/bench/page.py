"""The tables of docs/performance.md, built from benchmarks/*.csv by `reptrain bench page`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from reptrain.bench.goals import GOALS, Goal, Verdict, verdicts
from reptrain.bench.rows import FOLDER, ROOT, Row, latest, read, table

PAGE = ROOT / "docs" / "performance.md"
BENCHES = ("data", "start", "tokenize", "step", "train", "proof")


def write(page: Path = PAGE, folder: Path = FOLDER) -> Path:
    """Rebuild the tables of the page from the current rows, and return the path of the page."""
    page.write_text(rebuilt(page.read_text(), folder))
    return page


def rebuilt(page: str, folder: Path = FOLDER) -> str:
    """A page with its tables rebuilt.

    Args:
        page: Text with a pair of comments for each table: `<!-- bench NAME -->` and `<!-- end NAME -->`.
        folder: Folder of the CSV files.
    """
    for bench in BENCHES:
        rows = latest(read(table(bench, folder)))
        body = f"{markdown(rows)}\n" if rows else "Not measured.\n"
        page = _replace(page, f"bench {bench}", f"end {bench}", body)
    everything = [row for bench in BENCHES for row in latest(read(table(bench, folder)))]
    return _replace(page, "goals", "end goals", f"{goal_table(verdicts(everything, GOALS))}\n")


def _replace(page: str, first: str, last: str, body: str) -> str:
    begin, end = f"<!-- {first} -->\n", f"<!-- {last} -->"
    return re.sub(
        f"{re.escape(begin)}.*?{re.escape(end)}", lambda _: f"{begin}\n{body}\n{end}", page, flags=re.DOTALL
    )


def markdown(rows: Sequence[Row]) -> str:
    """One Markdown table for each case and metric, with the conditions below it."""
    parts = []
    for (case, metric), members in _tables(rows).items():
        lines = [
            (row.what, _figure(row, row.median, row.low, row.high), _ratio(row), row.note) for row in members
        ]
        head = ("", f"{metric} ({members[0].unit})", "ratio", "")
        parts.append(f"**{case}**\n\n{_markdown_table(head, lines)}\n\n{_conditions(members)}")
    return "\n\n".join(parts)


def _tables(rows: Iterable[Row]) -> dict[tuple[str, str], list[Row]]:
    """The rows of each case and metric, in the order of the first row of each."""
    tables: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        tables.setdefault((row.case, row.metric), []).append(row)
    return tables


def _conditions(rows: Sequence[Row]) -> str:
    row = next((row for row in rows if row.median), rows[0])
    versions = sorted({part for row in rows for part in row.versions.split(", ") if part})
    threads = "thread" if row.threads == "1" else "threads"
    return (
        f"{row.repetitions} repetitions, {row.threads} {threads}, {row.device}, commit {row.commit},"
        f" {row.date}; {', '.join(versions)}."
    )


def goal_table(found: Iterable[Verdict]) -> str:
    """The goals as a Markdown table."""
    lines = [
        (
            f"{verdict.goal.case}: {verdict.goal.metric}",
            _bound(verdict.goal),
            f"{verdict.measured:.3g}{f' ({verdict.what})' if verdict.goal.against else ''}",
            "met" if verdict.met else f"missed: {verdict.goal.cause or 'cause unknown'}",
        )
        for verdict in found
    ]
    return _markdown_table(("quantity", "goal", "measured", "result"), lines)


def _bound(goal: Goal) -> str:
    if goal.against:
        return f">= {goal.bound:g}x {goal.against}"
    return f"{'>=' if goal.at_least else '<='} {goal.bound:g}"


def text(rows: Sequence[Row]) -> str:
    """The rows in the format of the console."""
    lines = []
    for (case, metric), members in _tables(rows).items():
        lines.append(f"{case}: {metric} ({members[0].unit})")
        for row in members:
            figure = _figure(row, row.median, row.low, row.high)
            lines.append(f"  {row.what:28} {figure:>30} {_ratio(row):>22}  {row.note}".rstrip())
    return "\n".join(lines)


def _figure(row: Row, middle: str, low: str, high: str) -> str:
    if not middle:
        return ""
    return f"{_short(middle)} ({_short(low)} to {_short(high)})"


def _ratio(row: Row) -> str:
    return _figure(row, row.ratio, row.ratio_low, row.ratio_high)


def _short(number: str) -> str:
    """Three digits, with a comma per thousand: 28456789 becomes 28,500,000."""
    value = float(number)
    return f"{float(f'{value:.3g}'):,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def _markdown_table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)
