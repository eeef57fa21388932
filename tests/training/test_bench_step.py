"""The benchmark of training steps compares loops that compute the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from reptrain.bench.measure import Missing
from reptrain.bench.peers.trainers import transformers_trainer
from reptrain.bench.step import Case, bare_steps, trainer_steps

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
    peer = transformers_trainer(config)
    if not isinstance(peer, Missing):
        assert next(peer) > 0
