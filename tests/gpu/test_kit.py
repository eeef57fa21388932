"""The GPU kit: its goldens are what the code computes today, and its parts run."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

KIT = Path(__file__).parents[2] / "gpu"
sys.path.insert(0, str(KIT))

import goldens  # noqa: E402
import repeats  # noqa: E402
import rows  # noqa: E402
import runs  # noqa: E402


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return goldens.build_store(tmp_path_factory.mktemp("kit"))


@pytest.fixture(scope="module")
def golden() -> dict[str, Any]:
    return json.loads(goldens.FILE.read_text())


def test_goldens_are_of_the_store_that_the_kit_builds(store: Path, golden: dict[str, Any]) -> None:
    from reptrain.store import open_store

    assert open_store(store).fingerprint == golden["store"], "rebuild them: make gpu-goldens"


def test_golden_masks_are_those_of_the_counter(golden: dict[str, Any]) -> None:
    assert goldens.masks("cpu") == golden["masks"]


def test_golden_digests_are_those_of_the_first_batches(store: Path, golden: dict[str, Any]) -> None:
    names = {run.name for run in runs.timed_runs()}
    assert golden["first_digests"].keys() == names
    run = next(run for run in runs.timed_runs() if run.name == "t5-base batch 16")
    config = runs.config_of(run.settings, store, run.batch_windows, run.steps)
    assert goldens.first_digest(config) == golden["first_digests"][run.name]


@pytest.mark.parametrize("name", runs.TINY)
def test_golden_steps_are_those_of_a_cpu(name: str, store: Path, golden: dict[str, Any]) -> None:
    expected = golden["tiny"][name]
    assert len(set(expected["digests"])) > 1
    found = goldens.tiny_run(name, store, "cpu")
    assert goldens.differences(found, expected) == []
    assert found["losses"] == pytest.approx(expected["losses"], abs=2e-3)


def test_differences_name_a_wrong_digest_and_a_wrong_loss(golden: dict[str, Any]) -> None:
    expected = golden["tiny"]["t5"]
    wrong = {"digests": ["1", *expected["digests"][1:]], "losses": [x + 0.03 for x in expected["losses"]]}
    found = goldens.differences(wrong, expected)
    assert len(found) == 2 and "differ by 0.03" in found[1]
    assert goldens.differences({**expected, "losses": [float("nan")] * 3}, expected)


def test_run_continues_after_a_part_that_fails(tmp_path: Path) -> None:
    """With a Python that refuses everything, each part fails alone, and the script still ends with 0."""
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\nexit 3\n")
    python.chmod(0o755)
    environment = os.environ | {
        "PYTHON": str(python),
        "OUT": str(tmp_path / "out"),
        "SITE": str(tmp_path / "site"),
    }
    done = subprocess.run([KIT / "run.sh"], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    summary = (tmp_path / "out" / "summary.txt").read_text().splitlines()
    failed = [line.split(":")[0] for line in summary if ": exit 3 " in line]
    parts = ["packages", "cache", "ceilings", "kernel checks", "goldens", "training steps"]
    assert failed == [*parts, "repeats", "tests", "bench", "peers", "choices", "tiles"]
    assert summary[-1].startswith("12 parts failed")
    rehearsal = subprocess.run(
        [KIT / "run.sh", "--rehearse"], env=environment, capture_output=True, timeout=120
    )
    assert rehearsal.returncode == 1


def test_rows_are_appended_and_known_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUT", str(tmp_path))
    rows.add("tiles", "a", both_us=1.0)
    rows.add("tiles begun", "b")
    rows.add("bench", "c")
    assert rows.done_before("tiles") == {"a", "b"}


class Late:
    """Arguments of a part whose time is up after some cases."""

    def __init__(self, cases: int) -> None:
        self.left = cases

    def is_late(self) -> bool:
        self.left -= 1
        return self.left < 0


def test_cases_fail_alone_and_are_not_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OUT", str(tmp_path))
    called = []

    def case(name: str, outcome: object) -> tuple[str, Any]:
        def measure() -> dict[str, Any]:
            called.append(name)
            if isinstance(outcome, Exception):
                raise outcome
            return {"ok": outcome}

        return name, measure

    cases = [case("a", True), case("b", ValueError("too large")), case("c", False)]
    fatal, last = case("d", RuntimeError("CUDA error: misaligned")), case("e", True)

    def run(*cases: tuple[str, Any], time: int = 9) -> int:
        return rows.run_cases("part", cases, Late(time), is_bad=lambda found: not found["ok"])

    assert run(cases[0]) == 0 and run(*cases, time=1) == 1
    assert called == ["a", "b"]
    # What the time did not suffice for is measured by the next process, and an error that ends CUDA restarts.
    assert run(*cases) == 1 and run(*cases, fatal, last) == rows.RESTART
    assert run(*cases, fatal, last) == 0 and called == ["a", "b", "c", "d", "e"]
    written = [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()]
    results = [(row["name"], row.get("ok"), row.get("said")) for row in written if row["part"] == "part"]
    assert results == [
        ("a", True, None),
        ("b", False, "ValueError: too large"),
        ("c", None, "not begun: out of time"),
        ("c", False, None),
        ("d", False, "RuntimeError: CUDA error: misaligned"),
        ("e", True, None),
    ]


def test_first_difference_names_step_and_figure() -> None:
    one = [{"loss": 1.0, "digest": 5}, {"loss": 2.0, "digest": 6}]
    assert repeats.first_difference(one, [dict(step) for step in one]) == ""
    assert repeats.first_difference(one, [one[0], {"loss": 2.5, "digest": 6}]) == "step 1: loss: 2.0 and 2.5"


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.skipif(not (rows.KIT / "wheels").exists(), reason="needs make gpu-kit")
def test_rehearsal_passes_in_every_part(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHON": sys.executable, "OUT": str(tmp_path / "out"), "JOBS": "2"}
    # The kit's wheels are for the Python of the other machine: this one has its own packages.
    environment["WHEELS"] = "none"
    done = subprocess.run([KIT / "run.sh", "--rehearse"], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, (tmp_path / "out" / "log.txt").read_text()[-5000:]
    assert len(list((tmp_path / "out").iterdir())) <= 8
