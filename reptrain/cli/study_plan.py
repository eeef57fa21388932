"""The bill of a study on the console."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from reptrain.study.bill import Bill, BillRow, Hardware, bill_of
from reptrain.study.build import build_graph
from reptrain.study.done_table import read_done
from reptrain.study.looks import Place
from reptrain.study.words import hash_lines

_AUDITS = {
    "windows": " (`audit: inputs` also compares the inputs of the model)",
    "inputs": ", the inputs of the model too; its time grows with the tokens of the runs",
    "none": "; the runs are not audited",
}
_UNITS = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def bills_of(
    places: Sequence[Place], hardware: Hardware, *, done: str | Path | None = None
) -> dict[str, Bill]:
    """The cost of studies, by their names. ``done``: see `StudyRun`."""
    elsewhere = read_done(done).rows if done is not None else None
    return {
        study.name: bill_of(study, build_graph(study, out), out, hardware, elsewhere) for study, out in places
    }


def bill_text(bill: Bill) -> str:
    """The bill as a table with a row for each arm and for each group that is tuned, and its totals.

    Args:
        bill: The bill.
    """
    table = Table(box=None, pad_edge=False)
    for name in ("arm", "runs", "done", "tokens", "shared", "FLOPs", "hours"):
        table.add_column(name, justify="left" if name == "arm" else "right")
    by_arm: dict[str, list[BillRow]] = {}
    for row in bill.rows:
        by_arm.setdefault(row.arm, []).append(row)
    for arm, rows in by_arm.items():
        table.add_row(arm, *_cells(rows))
    table.add_section()
    table.add_row("total", *_cells(bill.rows))
    table.add_row("to run", *_cells(bill.left))
    text = io.StringIO()
    Console(file=text, width=200).print(table)
    lines = [line.rstrip() for line in text.getvalue().splitlines()]
    return "\n".join([*lines, "", *hash_lines(bill.hashed), *_totals(bill)])


def _cells(rows: list[BillRow] | tuple[BillRow, ...]) -> list[str]:
    hours = None if any(row.seconds is None for row in rows) else sum(row.seconds or 0 for row in rows) / 3600
    return [
        f"{len(rows)}",
        f"{sum(row.is_done for row in rows)}",
        f"{sum(row.tokens for row in rows):,}",
        f"{sum(row.shared_tokens for row in rows):,}",
        f"{sum(row.flops for row in rows):.3g}",
        "?" if hours is None else f"{hours:.3g}",
    ]


def _totals(bill: Bill) -> list[str]:
    left, hardware = bill.left, bill.hardware
    shared, own = sum(row.shared_tokens for row in bill.rows), sum(row.tokens for row in bill.rows)
    lines = [_elsewhere(bill)] if bill.offered else []
    lines.append(f"speed: {bill.speed}")
    if bill.hours is not None:
        lines.append(
            f"to run: {bill.device_hours:.3g} device-hours of training steps, {bill.hours:.3g} hours with"
            f" {_plural(hardware.runs_at_once, 'run')} at a time,"
            f" {_plural(hardware.devices_per_run, 'device')} per run"
        )
    price = "unknown (set --usd-per-hour)" if bill.usd is None else f"{bill.usd:,.2f} USD"
    lines.append(f"price: {price}")
    if shared:
        lines.append(
            f"shared prefixes: {shared:,} tokens are trained once, {shared / (shared + own):.0%} saved"
        )
    if bill.most_extensions:
        lines.append(
            f"tuning: at most {bill.most_extensions} more runs, if best values are at an edge of their range"
        )
    if bill.most_looks:
        lines.append(
            f"claims: at most {bill.most_looks} more runs, if claims are undecided at their first look"
        )
    if bill.unknown_teachers:
        lines.append(
            f"runs with a teacher that is no run folder: {bill.unknown_teachers}; its forward passes are not"
            " counted"
        )
    if bill.num_commands:
        lines.append(f"commands on runs: {bill.num_commands}, whose cost is not estimated")
    lines.append(f"checkpoints: {_bytes(bill.disk_bytes)} at the end (keep_checkpoints: {bill.retention})")
    lines.append(f"audit: {bill.audit}{_AUDITS[bill.audit]}")
    if not left:
        lines.append("all runs are done")
    return lines


def _elsewhere(bill: Bill) -> str:
    offered = _plural(bill.offered, "finished and exact run")
    text = f"done elsewhere: {_plural(bill.taken, 'run')} of this study, among {offered} of other studies"
    rule = "a run counts if its settings, store and numerics version are equal"
    return text if bill.taken else f"{text}; {rule}"


def _plural(number: int, noun: str) -> str:
    return f"{number} {noun}{'s' * (number != 1)}"


def _bytes(number: float) -> str:
    return next((f"{number / size:.1f} {unit}" for size, unit in _UNITS if number >= size), f"{number:.0f} B")


def bill_data(bill: Bill) -> dict[str, Any]:
    """The bill for ``--json``."""
    return {
        "runs": [
            {
                "run": row.node.name,
                "arm": row.node.arm,
                "role": row.node.role,
                "done": row.is_done,
                "tokens": row.tokens,
                "shared_tokens": row.shared_tokens,
                "branch_of": row.node.branch.parent if row.node.branch else None,
                "flops": row.flops,
                "seconds": row.seconds,
                "checkpoint_bytes": row.checkpoint_bytes,
            }
            for row in bill.rows
        ],
        "commands_left": bill.num_commands,
        "speed": bill.speed,
        "device_hours_left": bill.device_hours,
        "hours_left": bill.hours,
        "usd_left": bill.usd,
        "most_tuning_extensions": bill.most_extensions,
        "most_runs_of_second_looks": bill.most_looks,
        "runs_with_unknown_teachers": bill.unknown_teachers,
        "finished_runs_of_other_studies": bill.offered,
        "of_them_in_this_study": bill.taken,
        "disk_bytes": bill.disk_bytes,
        "keep_checkpoints": bill.retention,
        "audit": bill.audit,
    }
