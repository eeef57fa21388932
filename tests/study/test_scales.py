"""Scales that multiply numbers, extend files and leave out the tuning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from run_folders import FakeStore

from reptrain.errors import ConfigError, StudyError
from reptrain.study import StudyConfig, arms, load_study

BASE: dict[str, Any] = {
    "data": {"store": "s", "unique_tokens": "2**12", "window_tokens": 64},
    "model": {"vocab_size": 512, "d_model": 64, "num_heads": 2},
    "train": {"total_tokens": "2epochs"},
}
CLAIM: dict[str, Any] = {
    "name": "c",
    "statement": "Fewer unique tokens cost 0.1 nats.",
    "contrast": {
        "treatment": {"data.unique_tokens": "2**11", "entry": "tuned"},
        "control": {"data.unique_tokens": 4096, "entry": "tuned"},
        "free": ["optimizer.lr", "model.dropout.residual"],
    },
    "minimum_effect": 0.1,
    "seeds": 5,
    "max_seeds": 6,
}
STUDY: dict[str, Any] = {
    "base": BASE,
    "set": {"evaluate": {"max_windows": 8}},
    "arms": [
        {"name": "plain", "set": {"model": {"d_model": 128}}},
        {"name": "tuned", "tune": {"model.dropout.residual": [0.1, 0.2, 0.3]}},
    ],
    "axes": {"data.unique_tokens": ["2**11", 4096]},
    "seeds": [0, 1, 2, 3, 4],
    "tune": {"optimizer.lr": [1e-3, 2e-3, "4e-3"]},
    "claims": [CLAIM],
    "scales": {
        "large": {"extends": "scales/large.yaml", "set": {"train.batch_windows": 8}},
        "plain": {"without_tuning": True, "claims": {"seeds": 2, "max_seeds": None, "family": "exploratory"}},
    },
}
LARGE: dict[str, Any] = {
    "multiply": {"data.unique_tokens": 4, "model.d_model": 2, "optimizer.lr": 0.5, "train.total_tokens": 3},
    "set": {"train.batch_windows": 4},
}


@pytest.fixture(autouse=True)
def no_stores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reptrain.study.preflight.open_store", lambda path, *, named_by: FakeStore())


def load(folder: Path, scale: str | None, large: dict[str, Any] = LARGE) -> StudyConfig:
    (folder / "scales").mkdir(exist_ok=True)
    (folder / "scales" / "large.yaml").write_text(yaml.safe_dump(large))
    (folder / "s.yaml").write_text(yaml.safe_dump(STUDY))
    return load_study(folder / "s.yaml", scale=scale)


def test_a_scale_multiplies_a_key_wherever_the_study_has_it(tmp_path: Path) -> None:
    study = load(tmp_path, "large")
    configs = [arm.config for arm in arms(study)]
    assert {(config.data.unique_tokens, config.model.d_model) for config in configs} == {
        (2**13, 256), (2**14, 256), (2**13, 128), (2**14, 128),
    }  # fmt: skip
    # Numbers of epochs stay, and what the study says of its scale replaces what the file says.
    assert {(str(config.train.total_tokens), config.train.batch_windows) for config in configs} == {
        ("2epochs", 8)
    }
    assert study.tune is not None and study.tune.axes == {"optimizer.lr": [5e-4, 1e-3, 2e-3]}
    contrast = study.claims[0].contrast
    assert contrast.treatment == {"data.unique_tokens": 2**13, "entry": "tuned"}
    assert contrast.control == {"data.unique_tokens": 2**14, "entry": "tuned"}
    assert study.base["data"]["unique_tokens"] == 2**14 and study.set == {
        "evaluate.max_windows": 8,
        "train.batch_windows": 8,
    }


def test_a_scale_may_leave_out_the_tuning(tmp_path: Path) -> None:
    study = load(tmp_path, "plain")
    assert study.tune is None and not any(entry.tune for entry in study.arms)
    claim = study.claims[0]
    assert (claim.seeds, claim.max_seeds, claim.family) == (2, None, "exploratory")
    # Neither key varies without the tuning.
    assert claim.contrast.free == []
    assert load(tmp_path, None).claims[0].contrast.free == ["optimizer.lr", "model.dropout.residual"]


def test_a_key_that_an_arm_sets_stays_free_without_tuning(tmp_path: Path) -> None:
    large = {"without_tuning": True, "arms": {"tuned": {"model.dropout.residual": 0.1}}}
    study = load(tmp_path, "large", large)
    assert study.claims[0].contrast.free == ["model.dropout.residual"]


@pytest.mark.parametrize(
    ("multiply", "message"),
    [
        ({"model.d_modle": 2}, "must name keys that the study or its base sets, but got model.d_modle"),
        ({"data.store": 2}, "must be a number to be multiplied, but got 's'"),
        ({"data.unique_tokens": 0}, "multiply"),
        ({"data.unique_tokens": float("inf")}, "multiply"),
        ({"data.unique_tokens": "twice"}, "multiply"),
        ({"model.d_model": 0.51}, "d_model"),
    ],
)
def test_factors_that_cannot_apply_are_refused(
    tmp_path: Path, multiply: dict[str, Any], message: str
) -> None:
    with pytest.raises((ConfigError, StudyError), match=message):
        arms(load(tmp_path, "large", {"multiply": multiply}))


def test_a_scale_extends_files_that_exist(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"none\.yaml.*must be a readable file"):
        load(tmp_path, "large", {"extends": "none.yaml"})
    with pytest.raises(ConfigError, match="must not be circular"):
        load(tmp_path, "large", {"extends": "large.yaml"})
