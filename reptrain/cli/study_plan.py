"""The bill of a study on the console."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from reptrain.study.bill import Bill, BillRow, Hardware, bill_of, rows_by_arm
from reptrain.study.build import build_graph
from reptrain.study.done_table import read_done
from reptrain.study.looks import Place

_AUDITS = {
    "windows": "; `audit: inputs` also compares everything that enters the model",
    "inputs": ", everything that enters the model; its time grows with the tokens of the runs",
    "none": "; the runs get no verdict",
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
    """The bill as a table with a row for each arm, and its totals.

    Args:
        bill: The bill.
    """
    table = Table(box=None, pad_edge=False)
    for name in ("arm", "runs", "done", "tokens", "shared", "FLOPs", "hours"):
        table.add_column(name, justify="left" if name == "arm" else "right")
    for arm, rows in rows_by_arm(bill.rows).items():
        table.add_row(arm, *_cells(rows))
    table.add_section()
    table.add_row("total", *_cells(bill.rows))
    table.add_row("to run", *_cells(bill.left))
    text = io.StringIO()
    Console(file=text, width=200).print(table)
    lines = [line.rstrip() for line in text.getvalue().splitlines()]
    return "\n".join([*lines, "", *_totals(bill)])


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
    lines.append(f"speed: {bill.speed}; training steps only")
    if bill.hours is not None:
        lines.append(
            f"left: {bill.device_hours:.3g} device-hours, {bill.hours:.3g} hours with"
            f" {hardware.runs_at_once} at once, {hardware.devices_per_run} per run"
        )
    price = "unknown (--usd-per-hour)" if bill.usd is None else f"{bill.usd:,.2f} USD"
    lines.append(f"price: {price}")
    if shared:
        lines.append(
            f"shared prefixes: {shared:,} tokens are trained once, {shared / (shared + own):.0%} saved"
        )
    if bill.most_extensions:
        lines.append(f"tuning: at most {bill.most_extensions} more runs, if best values lie at an edge")
    if bill.most_looks:
        lines.append(f"claims: at most {bill.most_looks} more runs, if first looks leave them undecided")
    if bill.unknown_teachers:
        lines.append(
            f"runs with a teacher that is no run folder: {bill.unknown_teachers}; its forward passes are not"
            " in the figures above"
        )
    if bill.num_commands:
        lines.append(f"commands on runs: {bill.num_commands}, not in the figures above")
    lines.append(f"checkpoints: {_bytes(bill.disk_bytes)} at the end (keep_checkpoints: {bill.retention})")
    lines.append(f"audit: {bill.audit}{_AUDITS[bill.audit]}")
    if not left:
        lines.append("all runs are done")
    return lines


def _elsewhere(bill: Bill) -> str:
    text = f"done elsewhere: {bill.taken} runs of this study, among {bill.offered} finished and exact ones"
    rule = "a run counts if its settings, store and numerics version are equal"
    return text if bill.taken else f"{text}; {rule}"


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
