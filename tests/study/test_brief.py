"""Arms whose axes have mappings as values: short labels, and the settings behind hashes in names."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

import pytest
from run_folders import write_run

from reptrain.cli.study_plan import bill_text
from reptrain.errors import StudyError
from reptrain.report.page import render
from reptrain.study import StudyConfig, arms, collect, study_status, verdict
from reptrain.study.bill import Hardware, bill_of
from reptrain.study.brief import brief_values
from reptrain.study.build import build_graph
from reptrain.study.grid import hashed_settings
from reptrain.study.paths import run_path
from reptrain.study.schema import save_study
from reptrain.study.status import status_text
from reptrain.study.tuning import tuned_by
from reptrain.study.words import readable_keys, settings_text

BASE = {"data": {"store": "s", "unique_tokens": 4096, "window_tokens": 64}, "train": {"total_tokens": 8192}}
SMALL = {"d_model": 64, "num_heads": 1, "num_layers": 2, "vocab_size": 256}
LARGE = {"num_layers": 2, "d_model": 128, "num_heads": 2, "vocab_size": 256}
TUNE = {"axes": {"optimizer.lr": [1e-3, 2e-3, 4e-3]}, "seeds": [90], "extend": 2, "per": ["model"]}


def study_of(**fields: Any) -> StudyConfig:
    return StudyConfig.model_validate(
        {"name": "s", "base": BASE, "axes": {"model": [SMALL, LARGE]}, "seeds": [0, 1], **fields}
    )


STUDY = study_of(arms=[{"name": "short"}, {"name": "long", "set": {"train.total_tokens": 16384}}])


@pytest.mark.parametrize(
    ("shown", "written", "brief"),
    [
        (
            [{"model": {"d": 1, "ff": None, "bias": False}}, {"model": {"d": 2, "ff": None, "bias": False}}],
            [{"model": {"d": 1, "bias": False}}, {"model": {"d": 2, "bias": False}}],
            [{"model.d": 1}, {"model.d": 2}],
        ),
        # The only mapping: what the study file has.
        (
            [{"moe": None}, {"moe": {"experts": 8, "top": 2}}],
            [{"moe": None}, {"moe": {"experts": 8}}],
            [{"moe": None}, {"moe.experts": 8}],
        ),
        # Settings below a setting.
        (
            [{"m": {"moe": None, "d": 1}}, {"m": {"moe": {"experts": 8, "top": 2}, "d": 1}}],
            [{"m": {"d": 1}}, {"m": {"d": 1, "moe": {"experts": 8}}}],
            [{}, {"m.moe.experts": 8}],
        ),
        # Equal in what is written: a constraint has changed another setting.
        (
            [{"m": {"d": 1, "ff": 4}}, {"m": {"d": 1, "ff": 6}}],
            [{"m": {"d": 1}}, {"m": {"d": 1}}],
            [{"m.ff": 4}, {"m.ff": 6}],
        ),
        # True and 1 are different values.
        (
            [{"m": {"x": 1}}, {"m": {"x": True}}],
            [{"m": {"x": 1}}, {"m": {"x": True}}],
            [{"m.x": 1}, {"m.x": True}],
        ),
    ],
)  # fmt: skip
def test_brief_values_of_a_mapping_are_the_settings_that_differ(
    shown: list[dict[str, Any]], written: list[dict[str, Any]], brief: list[dict[str, Any]]
) -> None:
    assert brief_values(shown, written) == brief


def test_names_of_arms_keep_their_hash_and_the_study_shows_what_it_stands_for() -> None:
    found = arms(STUDY)
    first = found[0]
    assert re.fullmatch(r"short\.model-[0-9a-f]{8}\.seed-0", first.name)
    assert first.brief == {"arm": "short", "model.d_model": 64, "model.num_heads": 1}
    # The table of runs has the whole section.
    assert first.values["model"]["num_layers"] == 2
    hashed = hashed_settings(found)
    assert [*hashed.values()] == ["d_model 64, num_heads 1", "d_model 128, num_heads 2"]
    assert next(iter(hashed)) == first.name.split(".")[1]


def test_error_about_an_arm_shows_its_mapping_as_in_the_study_file() -> None:
    wrong = study_of(axes={"model": [SMALL, {"d_model": 65, "num_heads": 2}]})
    with pytest.raises(StudyError, match=r"arm model=\{d_model: 65, num_heads: 2\}"):
        arms(wrong)


def test_plan_and_status_print_the_settings_behind_each_hash(tmp_path: Path) -> None:
    bill = bill_of(STUDY, build_graph(STUDY, tmp_path), tmp_path, Hardware())
    status = status_text(study_status(STUDY, tmp_path), "windows", hashed_settings(arms(STUDY)))
    (name, _) = hashed_settings(arms(STUDY))
    for text in (bill_text(bill), status):
        assert f"\n{name}: d_model 64, num_heads 1\n" in text


def test_plan_has_one_row_for_each_tuned_group_and_counts_extensions_of_all(tmp_path: Path) -> None:
    study = study_of(arms=[{"name": "short"}], tune=TUNE)
    bill = bill_of(study, build_graph(study, tmp_path), tmp_path, Hardware())
    rows = [line.split()[:2] for line in bill_text(bill).splitlines() if line.startswith("tune.")]
    assert [number for _, number in rows] == ["3", "3"] and len({name for name, _ in rows}) == 2
    # Two groups, each extended twice with one seed.
    assert bill.most_extensions == 4


def test_tuned_groups_are_labelled_by_what_distinguishes_them() -> None:
    def labels(**tune: Any) -> list[str]:
        entries = [{"name": "short"}, {"name": "long", "set": {"train.total_tokens": 16384}}]
        study = study_of(arms=entries, tune=TUNE | tune)
        return [group.label for group in tuned_by(study, lambda config, name: None)[1]]

    models = ["d_model 64, num_heads 1", "d_model 128, num_heads 2"]
    assert labels() == models
    assert labels(per=["arm"]) == ["short", "long"]
    assert labels(per=["arm", "model"]) == [
        f"{name}, {model}" for name in ("short", "long") for model in models
    ]
    assert labels(per=["seed"]) == ["all arms"]
    assert labels(per=["seed"], at={"epochs": [2]}) == ["all arms, at 2 epochs"]
    assert labels(at={"data.unique_tokens": [4096]})[0] == f"{models[0]}, at unique_tokens 4,096"


def test_verdict_and_page_name_arms_by_the_settings_that_differ(tmp_path: Path) -> None:
    study = STUDY.model_copy(update={"seeds": [0, 1, 2]})
    save_study(study, tmp_path)
    for node in build_graph(study, tmp_path).trainings:
        model = node.run.model
        loss = 5.0 + node.run.seed / 10 - math.log(model.d_model) / 10
        losses = {"probe": [6.0, loss - 1], "select": [6.0, loss], "report": [6.0, loss]}
        write_run(node.run, run_path(tmp_path, node.name), losses=losses, exact=True)
    rows = collect(study, tmp_path)
    assert "d_model 128, num_heads 2 reached" in verdict(rows) and "num_layers" not in verdict(rows)
    results, _, reproduce = render(study, rows, tmp_path).partition('id="again"')
    assert "short, d_model 64, num_heads 1" in results
    # A column of the table has the whole section as JSON; it names curves in figures.
    assert "&quot;num_layers" not in results and "model {" not in results
    (name, _) = hashed_settings(arms(study))
    assert f"<dt>{name}</dt><dd>d_model 64, num_heads 1</dd>" in reproduce


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"model.d_model": 1024, "objective.name": "causal"}, "d_model 1,024, objective causal"),
        ({"model.dropout.residual": 0.1}, "dropout.residual 0.1"),
        ({"init_from": None}, "init_from null"),
        ({"model.norm": "rmsnorm", "optimizer.norm": 2}, "model.norm rmsnorm, optimizer.norm 2"),
    ],
)
def test_settings_text_leaves_out_the_section_unless_two_settings_have_one_name(
    values: dict[str, Any], words: str
) -> None:
    assert settings_text(values) == words
    assert len({*readable_keys(values).values()}) == len(values)
