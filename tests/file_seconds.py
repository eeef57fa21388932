"""CPU seconds of each test file: the longest start first, so that processes that share tests end together.

`make test-seconds` renews the table after tests were added or moved; `test_file_seconds.py` limits its sum.

Work takes more CPU time on cores that other processes share: caches and execution units are shared too.
Therefore a fixed piece of work is timed throughout, and the seconds of a file are divided by the ratio of its
duration then to its shortest one.
"""

from __future__ import annotations

import json
import os
import statistics
import time
from collections import defaultdict
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


def reference_seconds() -> float:
    """CPU seconds of a fixed piece of work of about 10 ms: Python's objects, and memory beyond the caches."""
    before = time.process_time()
    values = {str(number): number for number in range(20_000)}
    bytearray(8 << 20).count(1)
    sorted(values, key=lambda key: -values[key])
    return time.process_time() - before


class Recorder:
    """Measures the CPU seconds of each file and writes the table; for a run in one process."""

    def __init__(self) -> None:
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.references: defaultdict[str, list[float]] = defaultdict(list)
        self._last = 0.0

    @pytest.hookimpl(wrapper=True, tryfirst=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Generator[None, object, object]:
        file = file_of(item)
        # At the begin of each file, and then once a second.
        if file not in self.references or time.monotonic() > self._last + 1:
            self.references[file].append(reference_seconds())
            self._last = time.monotonic()
        before = cpu_seconds()
        try:
            return (yield)
        finally:
            self.seconds[file] += cpu_seconds() - before

    def pytest_sessionfinish(self) -> None:
        if not self.seconds:
            return
        fastest = min(min(values) for values in self.references.values())
        slower = {name: statistics.median(self.references[name]) / fastest for name in self.seconds}
        known = json.loads(TABLE.read_text()) | {
            name: round(value / slower[name], 1) for name, value in self.seconds.items()
        }
        kept = {name: known[name] for name in sorted(known) if (TABLE.parent / name).exists()}
        TABLE.write_text(json.dumps(kept, indent=1) + "\n")
