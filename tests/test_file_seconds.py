"""`make test` takes at most 6 minutes on two idle cores: the CPU seconds of its files are limited."""

from __future__ import annotations

import json

import pytest
from file_seconds import TABLE, UNKNOWN_S, file_of

LIMIT_S = 2 * 360 - 40
"""Two cores for 6 minutes, less the collection of the tests."""
LONGEST_S = 90
"""One process runs a file from begin to end."""


def test_the_tests_take_six_minutes_on_two_cores(request: pytest.FixtureRequest) -> None:
    """With few files selected this is true; `make test` selects all."""
    quick = {file_of(item) for item in request.session.items if item.get_closest_marker("slow") is None}
    known = json.loads(TABLE.read_text())
    seconds = {file: known.get(file, UNKNOWN_S) for file in quick}
    assert sum(seconds.values()) <= LIMIT_S, "shorten tests, or mark some `slow`; see docs/decisions/tests.md"
    assert max(seconds.values()) <= LONGEST_S, max(seconds, key=lambda file: seconds[file])
