"""CPU seconds of each test file: the longest start first, so that processes that share tests end together.

`make test-seconds` renews the table after tests were added or moved.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Generator
from contextlib import suppress
from pathlib import Path

import pytest

TABLE = Path(__file__).with_name("file_seconds.json")
UNKNOWN_S = 5.0
"""Assumed of a file that the table lacks."""


def file_of(item: pytest.Item) -> str:
    """Path of a test's file below the tests' folder."""
    return item.path.relative_to(TABLE.parent).as_posix()


def longest_first(items: list[pytest.Item], seconds: dict[str, float]) -> None:
    """Sort tests by the seconds of their files; the order within a file stays.

    Args:
        items: The tests, sorted in place.
        seconds: By file.
    """
    items.sort(key=lambda item: (-seconds.get(file_of(item), UNKNOWN_S), file_of(item)))


def cpu_seconds() -> float:
    """CPU time of this process, of its children, and of those that its children waited for."""
    # Tests of kernels run without it.
    import psutil

    spent = os.times()
    total = spent.user + spent.system + spent.children_user + spent.children_system
    for child in psutil.Process().children():
        # Servers of forks, which live until the end.
        with suppress(psutil.Error):
            total += sum(child.cpu_times()[:4])
    return total


class Recorder:
    """Measures the CPU seconds of each file and writes the table; for a run in one process."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        before = cpu_seconds()
        try:
            return (yield)
        finally:
            self.seconds[file_of(item)] += cpu_seconds() - before

    def pytest_sessionfinish(self) -> None:
        known = json.loads(TABLE.read_text()) | {
            name: round(value, 1) for name, value in self.seconds.items()
        }
        kept = {name: known[name] for name in sorted(known) if (TABLE.parent / name).exists()}
        TABLE.write_text(json.dumps(kept, indent=1) + "\n")
