"""Digests, splits, ledgers and fingerprints are those of golden.json, on any processor.

Where a change of them is meant, `make golden` renews the file.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from golden import record
from golden.runs import QUICK

CHANGED = "run `make golden` if this change is meant, and say so in the changelog"


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    return json.loads(record.GOLDEN.read_text())


def test_configs_have_the_fingerprints_on_record(golden: dict[str, Any]) -> None:
    assert record.fingerprints() == golden["configs"], CHANGED


@pytest.mark.usefixtures("one_thread")
def test_store_and_runs_are_those_on_record(golden: dict[str, Any], tmp_path: Path) -> None:
    assert record.make_store(tmp_path) == golden["store"], CHANGED
    for name in QUICK:
        record.train(name, tmp_path)
        fixed, _ = record.read_run(tmp_path / name)
        assert fixed == golden["runs"][name], f"{name}: {CHANGED}"


def test_record_covers_all_runs(golden: dict[str, Any]) -> None:
    assert golden["runs"].keys() == record.RUNS.keys(), CHANGED


def test_differences_are_named_and_floats_may_differ_by_the_tolerance() -> None:
    before = {"a": [1, (0.5).hex()], "b": "x"}
    after = {"a": [1, (0.5 + 1e-9).hex(), 3], "c": "x"}
    found = record.differences(before, after)
    assert [line.partition(":")[0] for line in found] == ["/a/1", "/a/2", "/b", "/c"]
    found = record.differences(before, after, tolerance=1e-6)
    assert [line.partition(":")[0] for line in found] == ["/a/2", "/b", "/c"]
    assert record.differences(before, before) == []
    assert record.differences({"a": (0.5).hex()}, {"a": (0.6).hex()}, tolerance=1e-6)
