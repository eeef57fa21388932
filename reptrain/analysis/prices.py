"""Prices and power of devices, from an editable table with dates and sources."""

from __future__ import annotations

import csv
from importlib import resources
from pathlib import Path

from reptrain.config.base import Frozen
from reptrain.errors import AnalysisError

TABLE = "devices.csv"
_COLUMNS = ("device", "usd_per_gpu_hour", "price_date", "price_source", "watts", "watts_source")


class Device(Frozen):
    """A row of the table."""

    device: str
    """Part of the device's name."""
    usd_per_gpu_hour: float | None
    price_date: str
    price_source: str
    watts: float | None
    """Power of one device under load."""
    watts_source: str


def read_devices(path: Path | None = None) -> list[Device]:
    """The table of devices.

    Args:
        path: A CSV file with the same columns. Default: the table of this package.

    Raises:
        AnalysisError: If a column is missing or a number is not one.
    """
    name = str(path or TABLE)
    if path is None:
        text = (resources.files("reptrain.analysis") / TABLE).read_text(encoding="utf-8")
    else:
        text = path.read_text(encoding="utf-8")
    rows = csv.DictReader(text.splitlines())
    missing = [column for column in _COLUMNS if column not in (rows.fieldnames or ())]
    if missing:
        raise AnalysisError(
            name,
            got=f"no column {', '.join(missing)}",
            rule=f"must be CSV with the columns {', '.join(_COLUMNS)}",
            remedy="Add the missing columns.",
        )
    return [_device(name, number, row) for number, row in enumerate(rows, start=2)]


def _device(name: str, line: int, row: dict[str, str]) -> Device:
    values = {column: (row[column] or "").strip() for column in _COLUMNS}
    numbers: dict[str, float | None] = {}
    for column in ("usd_per_gpu_hour", "watts"):
        try:
            numbers[column] = float(values[column]) if values[column] else None
        except ValueError:
            numbers[column] = -1.0
        if numbers[column] is not None and not 0.0 < (numbers[column] or 0.0) < 1e9:
            raise AnalysisError(
                f"{name}, line {line}, {column}",
                got=repr(values[column]),
                rule="must be a number above zero, or empty",
                remedy="Fix the table.",
            )
    return Device(
        device=values["device"],
        price_date=values["price_date"],
        price_source=values["price_source"],
        watts_source=values["watts_source"],
        **numbers,
    )


def find_device(devices: list[Device], name: str) -> Device | None:
    """The first row whose device is part of the name, or None."""
    return next((row for row in devices if row.device and row.device in name), None)
