"""Every objective and optimizer of the configuration has a builder, and states its capabilities."""

from __future__ import annotations

from typing import Any, get_args

import pytest
from pydantic import TypeAdapter

from reptrain.batch.objectives.build import _BUILDERS as OBJECTIVE_BUILDERS
from reptrain.config.objectives import ObjectiveConfig
from reptrain.config.optimizers import OptimizerConfig
from reptrain.training.optimizers import _BUILDERS as OPTIMIZER_BUILDERS


def classes_of(union: Any) -> set[type]:
    return {get_args(choice)[0] for choice in get_args(get_args(union)[0])}


def objective(name: str, **settings: Any) -> Any:
    return TypeAdapter(ObjectiveConfig).validate_python({"name": name, **settings})


def test_every_config_class_has_a_builder() -> None:
    assert classes_of(ObjectiveConfig) == OBJECTIVE_BUILDERS.keys()
    assert classes_of(OptimizerConfig) == OPTIMIZER_BUILDERS.keys()


@pytest.mark.parametrize(
    ("name", "settings", "decoder", "t5"),
    [
        ("causal", {}, "causal", None),
        ("prefix_lm", {}, "prefix", "inputs"),
        ("prefix_lm", {"bidirectional": False}, "causal", "inputs"),
        ("span_corruption", {}, "inputs", "inputs"),
        ("denoising", {}, "inputs", "inputs"),
        ("ul2", {}, "inputs", "inputs"),
        ("masked_diffusion", {}, "unordered", None),
        ("fill_in_the_middle", {}, "causal", None),
    ],
)
def test_reading_follows_from_objective_and_family(
    name: str, settings: dict[str, Any], decoder: str, t5: str | None
) -> None:
    config = objective(name, **settings)
    assert config.reading("decoder") == decoder
    assert ("t5" in config.families) == (t5 is not None)
    if t5 is not None:
        assert config.reading("t5") == t5


@pytest.mark.parametrize("name", ["causal", "prefix_lm", "span_corruption", "denoising", "ul2"])
def test_fresh_noise_leaves_all_else(name: str) -> None:
    config = objective(name) if name == "causal" else objective(name, noise="frozen")
    assert config.is_noisy == config.has_frozen_noise == (name != "causal")
    fresh = config.with_fresh_noise()
    assert not fresh.has_frozen_noise
    assert fresh.model_dump(exclude={"noise"}) == config.model_dump(exclude={"noise"})


@pytest.mark.parametrize("name", ["span_corruption", "denoising", "ul2", "prefix_lm"])
def test_continuation_asks_for_the_last_tokens(name: str) -> None:
    config = objective(name).for_continuation(20, 12)
    if name == "prefix_lm":
        assert config.split(32) == 20
        return
    denoiser = config.denoisers[0] if name == "ul2" else config
    assert round(denoiser.noise_density * 32) == 12
    assert denoiser.mean_span_tokens == (None if name == "ul2" else 12.0)


def test_optimizers_declare_their_requirements() -> None:
    needs = {kind.__name__: kind.needs_whole_matrices for kind in classes_of(OptimizerConfig)}
    assert needs == {"AdamWConfig": False, "AdafactorConfig": True, "MuonConfig": True}
    assert {kind.__name__ for kind in classes_of(OptimizerConfig) if kind.supports_mup} == {"AdamWConfig"}
