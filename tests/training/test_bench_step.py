"""The benchmark of training steps compares loops that compute the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from reptrain.bench.measure import Missing
from reptrain.bench.peers.plain_gpt import plain_gpt_loop
from reptrain.bench.peers.trainers import transformers_loop, transformers_trainer
from reptrain.bench.step import Case, bare_steps, trainer_steps
from reptrain.bench.two_runs import two_runs

SIZES = {"d_model": 16, "num_heads": 2, "d_ff": 16}
DROPOUT = {"dropout": {"attention": 0.1, "residual": 0.1}}
MODELS = {
    "decoder": {"family": "decoder", "num_layers": 1, **SIZES, **DROPOUT},
    "t5": {
        "family": "t5",
        "num_encoder_layers": 1,
        "num_decoder_layers": 1,
        "head_dim": 8,
        **SIZES,
        **DROPOUT,
    },
}


@pytest.mark.parametrize("family", MODELS)
def test_the_bare_loop_and_the_trainer_have_the_same_first_loss(
    store_path: Path, one_thread: None, family: str
) -> None:
    config = Case(family, MODELS[family], {"precision": "fp32", "zero_stage": 0}, 2).config(store_path, 2)
    ours, bare = next(trainer_steps(config)), next(bare_steps(config))
    assert ours == pytest.approx(bare, rel=1e-5)
    for peer in (transformers_loop(config), plain_gpt_loop(config)):
        if not isinstance(peer, Missing):
            assert next(peer) > 0
    trainer = transformers_trainer(config, steps=2, compiled=False)
    if not isinstance(trainer, Missing):
        assert list(trainer) == [1.0, 2.0]


@pytest.mark.slow
def test_two_runs_train_at_the_same_time(store_path: Path) -> None:
    config = Case("decoder", MODELS["decoder"], {"precision": "fp32", "zero_stage": 0}, 2).config(
        store_path, 10, epochs=10_000
    )
    with two_runs(config, step_tokens=512) as ways:
        assert all(not isinstance(way, Missing) and way() > 0 for way in ways.values())
