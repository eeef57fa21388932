"""Study files: reading, overrides, and the grid of arms."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from reptrain.config import RunConfig, load_run_config
from reptrain.config.load import read_yaml
from reptrain.errors import ConfigError, StudyError
from reptrain.study import arms, demo_study, load_study, open_study
from reptrain.study.grid import arm_name
from reptrain.study.schema import StudyConfig, flatten, save_study
from reptrain.training.setup import resolve_budgets

REPOSITORY = Path(__file__).parents[2]
BASE: dict[str, Any] = {"data": {"store": "s", "unique_tokens": 4096, "window_tokens": 64}}


def study_of(**fields: Any) -> StudyConfig:
    return StudyConfig(**{"name": "s", "base": BASE, **fields})


def write_study(folder: Path, **fields: Any) -> Path:
    path = folder / "grid.yaml"
    path.write_text(yaml.safe_dump({"base": BASE, **fields}))
    return path


def test_demo_study_is_the_one_under_configs() -> None:
    assert arms(demo_study()) == arms(load_study(REPOSITORY / "configs/studies/demo.yaml"))


def test_demo_study_repeats_one_budget_4_16_and_64_times() -> None:
    found = arms(demo_study())
    assert [arm.values["data.unique_tokens"] for arm in found] == [2**18, 2**16, 2**14]
    assert {arm.config.train.total_tokens.tokens for arm in found} == {2**20}


@pytest.mark.parametrize("path", sorted(REPOSITORY.glob("configs/studies/*.yaml")), ids=lambda p: p.name)
def test_load_study_reads_every_study_of_the_repository(path: Path) -> None:
    assert arms(load_study(path))


def test_tiny_decoder_config_is_valid() -> None:
    assert load_run_config(REPOSITORY / "configs/tiny/decoder.yaml").model.d_model == 128


def test_load_study_reads_its_base_beside_the_file_and_takes_its_name_from_it(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(BASE))
    study = load_study(write_study(tmp_path, base="base.yaml"))
    assert (study.name, study.base) == ("grid", BASE)


def test_budgets_of_text_become_the_tokens_that_a_run_of_its_own_has(
    store_path: Path, tiny: Callable[..., RunConfig]
) -> None:
    base = {"data": {"store": str(store_path), "window_tokens": 64}}
    study = study_of(base=base, axes={"train.total_tokens": ["900words", "5000bytes"]})
    alone = [resolve_budgets(tiny(f"train.total_tokens={text}")) for text in ("900words", "5000bytes")]
    assert [arm.config.train.total_tokens for arm in arms(study)] == [
        config.train.total_tokens for config in alone
    ]
    (tokens,) = {arm.config.train.total_tokens.tokens for arm in arms(study)[:1]}
    assert tokens is not None and 900 < tokens < 5000
    missing = study_of(set={"train.total_tokens": "900words"})
    with pytest.raises(StudyError, match=r"study s: .*data\.store"):
        arms(missing)


def test_load_study_overrides_run_keys_and_study_keys(tmp_path: Path) -> None:
    path = write_study(tmp_path, axes={"data.unique_tokens": [1024]}, set={"train": {"batch_windows": 2}})
    study = load_study(
        path,
        ["train.total_tokens=3epochs", "axes.data.unique_tokens=[2**9, 2**8]", "seeds=[1, 2]", "name=other"],
    )
    assert study.name == "other"
    assert study.set == {"train.batch_windows": 2, "train.total_tokens": "3epochs"}
    assert [(a.config.data.unique_tokens, a.config.seed) for a in arms(study)] == [
        (512, 1), (512, 2), (256, 1), (256, 2),
    ]  # fmt: skip


def test_load_study_leaves_other_settings_of_a_section_alone(tmp_path: Path) -> None:
    study = load_study(write_study(tmp_path), ["data.order=same"])
    assert arms(study)[0].config.data.window_tokens == 64


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"axis": {}}, "axis: must be a known key.*Did you mean axes"),
        ({"base": "missing.yaml"}, "missing.yaml.*No such file"),
        ({"axes": {"data.order": []}}, "axes.data.order"),
        ({"axes": {"seed": [1, 2]}}, "list the values in seeds"),
        ({"set": {"data.order": "same"}, "axes": {"data.order": ["mixed"]}}, "data.order varies"),
        ({"set": {"model.d_ff": 8}, "axes": {"model": [{"d_ff": 4}]}}, "model varies"),
    ],
)
def test_load_study_refuses_what_cannot_be_a_study(
    tmp_path: Path, fields: dict[str, Any], error: str
) -> None:
    with pytest.raises(ConfigError, match=error):
        load_study(write_study(tmp_path, **fields))


def test_load_study_refuses_an_override_without_a_value(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="must be written key=value"):
        load_study(write_study(tmp_path), ["data.order"])


def test_open_study_reads_back_what_was_saved(tmp_path: Path) -> None:
    study = study_of(
        axes={"optimizer.lr": [1e-3, "2e-3"]}, set={"train.total_tokens": "2.5epochs"}, seeds=[3]
    )
    save_study(study, tmp_path / "out")
    again = open_study(tmp_path / "out")
    kept = again.model_copy(update={"base": study.base})
    assert kept == study
    (before,), (after,) = ([arm.config for arm in arms(one)][:1] for one in (study, again))
    # From another working directory the study still names the same store.
    assert after == before.with_absolute_stores()


def test_save_study_keeps_what_is_no_store_and_makes_stores_absolute(tmp_path: Path) -> None:
    base = {"data": {"sources": {"a": {"store": "x/a"}, "b": {"store": "/b"}}}, "init_from": "runs/first"}
    study = StudyConfig(name="s", base=base, set={"data.sources.a.store": "y"}, axes={"seed_": [1]})
    save_study(study, tmp_path)
    written = read_yaml(tmp_path / "study.yaml")
    here = Path.cwd()
    sources = written["base"]["data"]["sources"]
    assert sources == {"a": {"store": str(here / "x/a")}, "b": {"store": "/b"}}
    assert written["set"] == {"data.sources.a.store": str(here / "y")}
    assert written["base"]["init_from"] == "runs/first" and written["axes"] == {"seed_": [1]}


def test_open_study_refuses_another_folder(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match="must hold a readable study"):
        open_study(tmp_path)


def test_arms_keep_the_seed_of_the_base_where_none_is_listed() -> None:
    assert arms(study_of(base={**BASE, "seed": 7}))[0].config.seed == 7


def test_arms_name_the_arm_that_is_wrong() -> None:
    study = study_of(axes={"model.num_heads": [4, 3]})
    with pytest.raises(StudyError, match=r"arm model.num_heads=3: model: d_model must be num_heads times"):
        arms(study)


def test_arms_refuse_two_that_are_the_same() -> None:
    with pytest.raises(StudyError, match="must contain each arm once"):
        arms(study_of(axes={"data.unique_tokens": [1024, "2**10"]}))


def test_arms_leave_the_study_as_it_was() -> None:
    study = study_of(axes={"data.unique_tokens": [1024, 2048]})
    before = study.model_copy(deep=True)
    arms(study)
    assert study == before


@given(
    st.lists(st.integers(64, 2**30), min_size=1, max_size=4, unique=True),
    st.lists(st.sampled_from(["reshuffle", "same", "mixed"]), min_size=1, max_size=3, unique=True),
    st.lists(st.integers(0, 2**40), max_size=3, unique=True),
)
def test_arms_are_the_product_each_once_under_its_own_name(
    sizes: list[int], orders: list[str], seeds: list[int]
) -> None:
    found = arms(study_of(axes={"data.unique_tokens": sizes, "data.order": orders}, seeds=seeds))
    points = {(arm.config.data.unique_tokens, arm.config.data.order, arm.config.seed) for arm in found}
    assert points == {(size, order, seed) for size in sizes for order in orders for seed in seeds or [0]}
    assert len({arm.name for arm in found}) == len(found) == len(points)
    assert all(arm.config == RunConfig.model_validate(arm.config.model_dump()) for arm in found)


@given(
    st.dictionaries(st.sampled_from(["a.x", "b.x", "c.y"]), st.text() | st.integers() | st.none(), min_size=1)
)
def test_arm_name_is_a_file_name_that_tells_values_apart(values: dict[str, Any]) -> None:
    name = arm_name(values)
    assert name
    assert "/" not in name
    assert name.isascii()
    key = next(iter(values))
    assert arm_name({**values, key: f"{values[key]}!"}) != name


def test_arm_name_keeps_whole_keys_where_their_ends_are_alike() -> None:
    assert arm_name({"a.rate": 1, "b.rate": 0.5}, seed=2) == "a.rate-1.b.rate-0.5.seed-2"


def test_flatten_joins_keys_and_keeps_empty_sections() -> None:
    assert flatten({"a": {"b": 1, "c": {"d": [2]}}, "e": {}}) == {"a.b": 1, "a.c.d": [2], "e": {}}
