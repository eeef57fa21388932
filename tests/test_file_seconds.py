"""The CPU seconds of `make test` are limited, so that it takes at most 6 minutes on two idle cores."""

from __future__ import annotations

import json

import pytest
from file_seconds import TABLE, UNKNOWN_S, file_of

LIMIT_S = 680
"""Two cores for 6 minutes, less the collection of the tests."""
LONGEST_S = 90
"""One process runs a file from begin to end."""
_OTHER_TARGETS = ("slow", "cluster", "slurm")


def test_the_seconds_of_all_files_are_limited(request: pytest.FixtureRequest) -> None:
    """With few files selected this is true; `make test` selects all."""
    items = [item for item in request.session.items if not any(map(item.get_closest_marker, _OTHER_TARGETS))]
    known = json.loads(TABLE.read_text())
    seconds = {file: known.get(file, UNKNOWN_S) for file in map(file_of, items)}
    assert sum(seconds.values()) <= LIMIT_S, "shorten tests, or mark some `slow`; see docs/decisions/tests.md"
    assert max(seconds.values()) <= LONGEST_S, max(seconds, key=lambda file: seconds[file])
