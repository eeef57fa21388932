"""The runs below some folders, filtered and sorted."""

from __future__ import annotations

from collections.abc import Sequence

from reptrain.tables.find_runs import found_runs
from reptrain.tables.read_run import RunReading, identify, read_run
from reptrain.tables.select_rows import Condition, check_sort_key, sorted_readings


def list_runs(
    folders: Sequence[str], *, where: Sequence[str] = (), sort: str | None = None
) -> list[RunReading]:
    """Read every run at or below some paths or URLs.

    Args:
        folders: Paths or URLs.
        where: Conditions that must all hold, as in `Condition.parse`.
        sort: A column or a setting, with ``-`` before it for the largest first; None: by path.

    Raises:
        ConfigError: If a condition or the sort key is wrong.
        RunError: If a folder does not exist.
    """
    conditions = [Condition.parse(text) for text in where]
    if sort is not None:
        check_sort_key(sort)
    readings: dict[str, RunReading] = {}
    for folder in folders:
        with found_runs(folder) as places:
            for place in places:
                readings[place.shown] = identify(read_run(place.path), {"run": place.shown})
    kept = [reading for reading in readings.values() if all(c.holds(reading) for c in conditions)]
    return kept if sort is None else sorted_readings(kept, sort)
