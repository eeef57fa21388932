"""Matching: what is written has the size that was asked for, and other models' refusals are clear."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

import pytest

from reptrain.config.load import dump_yaml
from reptrain.errors import ConfigError
from reptrain.sizes import Subject, load_subject, match, write_match
from reptrain.sizes.match import By, Match, Vary, quantity
from reptrain.sizes.subject import subject_of

MODELS = Path(__file__).parents[2] / "configs" / "models"
DECODER: dict[str, Any] = {
    "model": {
        "d_model": 128,
        "num_layers": 6,
        "num_heads": 4,
        "num_kv_heads": 2,
        "d_ff": 320,
        "vocab_size": 2048,
    }
}
MOE = {"num_experts": 4, "top_k": 2, "every": 2}


def decoder(**changes: Any) -> Subject:
    return subject_of({"model": DECODER["model"] | changes}, None)


def published(name: str) -> Subject:
    return load_subject(MODELS / f"{name}.yaml")


def solved(subject: Subject, other: Subject, by: By, vary: Vary, tolerance: float = 0.01) -> Match:
    found = match(subject, other, by=by, vary=vary, tolerance=tolerance)
    assert quantity(found.subject, by) == found.got
    assert abs(found.got / quantity(other, by) - 1) <= tolerance
    return found


@pytest.mark.parametrize("words", [{"by": "params"}, {"by": "total_params"}, {"vary": "heads"}])
def test_match_refuses_unknown_choices(words: dict[str, Any]) -> None:
    given = {"by": "flops", "vary": "experts"} | words
    with pytest.raises(
        ConfigError, match=r"match (by|vary): must be one of (total-params|width), .* but got"
    ):
        match(decoder(moe=MOE), decoder(), tolerance=0.01, **given)


@pytest.mark.parametrize("by", get_args(By))
@pytest.mark.parametrize("vary", ["width", "depth", "d_ff"])
def test_match_comes_near_whatever_the_quantity(by: By, vary: Vary) -> None:
    other = decoder(d_model=192, num_heads=6, num_kv_heads=2, d_ff=500, num_layers=7)
    found = solved(decoder(moe=MOE), other, by, vary)
    assert {key.removeprefix("model.") for key in found.changes} <= {
        "width": {"d_model", "num_heads", "num_kv_heads", "d_ff"},
        "depth": {"num_layers", "d_ff"},
        "d_ff": {"d_ff"},
    }[vary]


def test_match_recovers_a_known_size() -> None:
    wide = decoder(d_model=256, num_heads=8, num_kv_heads=4, d_ff=640)
    found = solved(decoder(), wide, "total-params", "width", tolerance=0)
    assert found.changes == {
        "model.d_model": (128, 256),
        "model.num_heads": (4, 8),
        "model.num_kv_heads": (2, 4),
        "model.d_ff": (320, 640),
    }
    assert solved(decoder(), decoder(num_layers=11), "flops", "depth", 0).changes == {
        "model.num_layers": (6, 11)
    }
    assert solved(decoder(), decoder(d_ff=1000), "flops", "d_ff", 0).changes == {"model.d_ff": (320, 1000)}
    many = decoder(moe=MOE | {"num_experts": 37})
    changes = solved(decoder(moe=MOE), many, "total-params", "experts", 0).changes
    assert changes == {"model.moe.num_experts": (4, 37)}
    shared = decoder(num_stored_layers=2)
    changes = solved(decoder(), shared, "total-params", "groups", 0).changes
    assert changes == {"model.num_stored_layers": (None, 2)}


def test_match_of_a_shared_model_keeps_whole_cycles() -> None:
    shared = decoder(num_stored_layers=3, moe=MOE | {"every": 3})
    found = solved(shared, decoder(num_layers=11), "flops", "depth")
    assert found.subject.run is not None
    model = found.subject.run.model
    assert model.family == "decoder" and model.num_layers % 3 == 0 and model.num_stored_layers == 3


def test_match_of_one_head_of_keys_and_values_keeps_it_one() -> None:
    found = solved(decoder(num_kv_heads=1), decoder(num_layers=9), "active-params", "width")
    assert found.subject.run is not None and found.subject.run.model.kv_heads == 1  # type: ignore[union-attr]


@pytest.mark.parametrize("vary", ["width", "depth", "d_ff"])
def test_match_brings_moe_base_to_the_flops_of_t5_large(vary: Vary) -> None:
    found = solved(published("moe-base"), published("t5-1.1-large"), "flops", vary, tolerance=1e-3)
    assert found.subject.run is not None
    model = found.subject.run.model
    assert model.moe is not None and model.moe.shared_d_ff == model.d_ff


def test_match_scales_heads_that_do_not_fill_the_width() -> None:
    found = solved(published("t5-1.0-3b"), published("t5-1.1-xxl"), "total-params", "width")
    before, after = found.changes["model.num_heads"]
    width_before, width_after = found.changes["model.d_model"]
    assert after / before == pytest.approx(width_after / width_before, rel=0.02)


def test_match_to_a_vision_transformer_is_possible_and_of_one_is_refused() -> None:
    solved(published("gpt3-350m"), published("vit-h-14"), "total-params", "d_ff")
    with pytest.raises(ConfigError, match="must be decoder or t5, but got vit"):
        match(published("vit-b-16"), decoder(), by="flops", vary="width", tolerance=0.01)


def test_match_refuses_sizes_out_of_reach() -> None:
    words = r"match by flops with experts: must come within 1\.00% of .* off\. Vary something else"
    with pytest.raises(ConfigError, match=words):
        match(decoder(moe=MOE), published("llama-7b"), by="flops", vary="experts", tolerance=0.01)
    with pytest.raises(ConfigError, match="needs sparse layers, but got a model without"):
        match(decoder(), decoder(), by="flops", vary="experts", tolerance=0.01)


def test_write_match_writes_a_file_that_loads_with_overrides_and_what_it_extends(tmp_path: Path) -> None:
    (tmp_path / "below.yaml").write_text(dump_yaml(DECODER))
    given = tmp_path / "given.yaml"
    given.write_text("extends: below.yaml\ndata:\n  window_tokens: 64\n")
    other = decoder(num_layers=12)
    found = solved(load_subject(given, ["seed=5"]), other, "total-params", "width")
    write_match(found, tmp_path / "out.yaml", config=given, to=Path("other.yaml"), by="total-params")
    again = load_subject(tmp_path / "out.yaml")
    assert again.parameters == found.subject.parameters
    assert again.run is not None and again.run.seed == 5 and again.window_tokens == 64
    assert "store" not in (tmp_path / "out.yaml").read_text()


def test_match_steps_the_hidden_units_that_there_are() -> None:
    sparse = decoder(moe=MOE | {"every": 1, "d_ff": 160, "shared_d_ff": 80})
    found = solved(sparse, decoder(d_ff=640), "flops", "d_ff")
    assert found.changes.keys() == {"model.moe.d_ff", "model.moe.shared_d_ff"}
    # Experts without a number of their own have the dense MLP's.
    assert solved(decoder(moe=MOE | {"every": 1}), decoder(d_ff=500), "flops", "d_ff").changes.keys() == {
        "model.d_ff"
    }
