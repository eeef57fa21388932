"""Second looks: a claim that is undecided after its first seeds gets more seeds, only for its arms."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import fake_trainer
import pytest
from in_process import InProcess
from run_folders import LOSSES, FakeStore, write_run

from reptrain.cli.study_plan import bill_text
from reptrain.config import load_run_config
from reptrain.report.findings import find
from reptrain.study import StudyConfig, run_study, study_status
from reptrain.study.bill import Hardware, bill_of
from reptrain.study.build import build_graph
from reptrain.study.grid import arms
from reptrain.study.looks import load_looks, planned_looks
from reptrain.study.paths import questions_path, result_path
from reptrain.study.runner import StudyRun, run_studies
from reptrain.study.status import status_text

EFFECTS = {"big": 1.0, "small": 0.03, "none": 0.0}
"""The amount that each arm adds to the loss of its seed, before noise of 0.02."""


def claim_of(arm: str, **fields: Any) -> dict[str, Any]:
    contrast = {"treatment": {"entry": arm}, "control": {"entry": "none"}, "free": ["optimizer.lr"]}
    defaults = {"minimum_effect": 0.02, "seeds": 5, "max_seeds": 8, "statement": "It costs."}
    return {"name": arm, "contrast": contrast, **defaults, **fields}


def study_of(*claims: dict[str, Any], **fields: Any) -> StudyConfig:
    base = {
        "data": {"store": "s", "unique_tokens": 4096, "window_tokens": 64},
        "train": {"total_tokens": 8192},
        "model": {"vocab_size": 512},
    }
    arms = [{"name": name, "set": {"optimizer.lr": 1e-3 * place}} for place, name in enumerate(EFFECTS, 1)]
    return StudyConfig.model_validate(
        {"name": "s", "base": base, "arms": arms, "seeds": range(5), "claims": claims, **fields}
    )


@pytest.fixture(autouse=True)
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Training is a function of the arm and the seed; returns the names of all runs in their order."""
    names: list[str] = []

    def train(path: str, run: str) -> int:
        config = load_run_config(Path(path))
        name = str(config.name)
        names.append(name)
        noise = 0.02 * (zlib.crc32(name.encode()) / 2**31 - 1)
        loss = 5.0 + 0.3 * config.seed + EFFECTS[name.split(".")[0]] + noise
        write_run(config, Path(run), losses=LOSSES | {"report": [8.0, loss, loss]}, exact=True)
        return 0

    monkeypatch.setattr(fake_trainer, "train", train)
    monkeypatch.setattr("reptrain.study.preflight.open_store", lambda path, *, named_by: FakeStore())
    return names


def run(study: StudyConfig, out: Path) -> dict[str, str]:
    result = run_study(study, out, executor=InProcess())
    return {outcome.arm: outcome.state for outcome in result.outcomes}


def test_undecided_claim_gets_the_declared_seeds_for_its_arms_alone(
    tmp_path: Path, trained: list[str]
) -> None:
    study = study_of(claim_of("big"), claim_of("small"))
    states = run(study, tmp_path)
    added = [f"{arm}.seed-{seed}" for arm in ("small", "none") for seed in (5, 6, 7)]
    assert sorted(trained[15:]) == sorted(added) and len(states) == 21
    looks = load_looks(tmp_path)
    assert (looks["big"].look, looks["big"].verdict, looks["big"].arms) == (1, "supported", ())
    assert (looks["small"].look, looks["small"].seeds) == (2, (5, 6, 7))
    # The runs of the second look are used, and nothing is added twice.
    big, small = (result.judged for result in find(study, tmp_path).claims)
    assert (big.look, big.seeds_used, small.look, small.seeds_used) == (1, 5, 2, 8)
    assert set(run(study, tmp_path).values()) == {"skipped"} and len(trained) == 21


def test_rule_is_on_record_before_the_first_run_and_plan_and_status_show_it(tmp_path: Path) -> None:
    study = study_of(claim_of("big"), claim_of("small"))
    before = bill_of(study, build_graph(study, tmp_path), tmp_path, Hardware())
    assert before.most_looks == 9 and "at most 9 more runs, if claims are undecided" in bill_text(before)
    assert "claim small: first look (not judged yet)" in status_text(study_status(study, tmp_path), "windows")
    recorded: list[Any] = []

    def see(event: Any) -> None:
        if not recorded:
            recorded.append(json.loads(questions_path(tmp_path).read_text())["looks"])

    run_study(study, tmp_path, executor=InProcess(), on_event=see)
    assert recorded[0]["seeds"]["small"] == {"first": [0, 1, 2, 3, 4], "second": [5, 6, 7]}
    assert "undecided" in recorded[0]["rule"]
    text = status_text(study_status(study, tmp_path), "windows")
    assert "claim big: first look (supported at 5 seeds)" in text
    assert "claim small: second look (undecided at 5 seeds; 3 more seeds for small, none)" in text
    assert bill_of(study, build_graph(study, tmp_path), tmp_path, Hardware()).most_looks == 0


def test_second_look_resumes_after_a_failure_and_leaves_commands_alone(
    tmp_path: Path, trained: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    study = study_of(claim_of("small"), then=[{"name": "out", "do": "evaluate", "over": "seeds"}])
    train = fake_trainer.train
    monkeypatch.setattr(fake_trainer, "train", lambda p, r: 2 if r.endswith("seed-6") else train(p, r))
    failed = [name for name, state in run(study, tmp_path).items() if state == "failed"]
    assert failed == ["small.seed-6", "none.seed-6"]
    command = result_path(tmp_path, "out.small").read_bytes()
    monkeypatch.setattr(fake_trainer, "train", train)
    assert {name for name, state in run(study, tmp_path).items() if state == "done"} == {*failed}
    assert result_path(tmp_path, "out.small").read_bytes() == command
    assert find(study, tmp_path).claims[0].judged.seeds_used == 8


def test_added_seeds_are_no_seeds_of_tuning(tmp_path: Path) -> None:
    tune = {"axes": {"optimizer.weight_decay": [0.1, 0.2, 0.3]}, "seeds": [6], "extend": 0}
    claim = claim_of("small")
    claim["contrast"]["free"].append("optimizer.weight_decay")
    study = study_of(claim, tune=tune)
    graph = build_graph(study, tmp_path)
    assert bill_of(study, graph, tmp_path, Hardware()).most_looks == 6
    assert planned_looks(study, arms(study))["small"]["second"] == [5, 7, 8]


def test_families_are_corrected_over_all_studies_that_run_together(tmp_path: Path) -> None:
    """A claim that is decided in its own family needs a second look in a larger family."""
    first = study_of(claim_of("big", minimum_effect=0.97, max_seeds=6), name="first")
    alone = run_study(first, tmp_path / "alone", executor=InProcess())
    many = [claim_of("small", name=f"c{number}", minimum_effect=0.03, max_seeds=None) for number in range(20)]
    others = study_of(*many, name="others")
    together = run_studies(
        [
            StudyRun(first, tmp_path / "first", executor=InProcess()),
            StudyRun(others, tmp_path / "others", executor=InProcess()),
        ]
    )
    assert len(alone.outcomes) == 15 and load_looks(tmp_path / "alone")["big"].look == 1
    assert [len(result.outcomes) for result in together] == [15 + 2, 15]
    assert load_looks(tmp_path / "first")["big"].look == 2
