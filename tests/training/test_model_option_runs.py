"""Runs of models with the options that other families of models have: trained, stopped, resumed, sampled."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from interrupts import crash, interrupt_at

from reptrain.config import RunConfig
from reptrain.generation import generate
from reptrain.runs import RunFolder
from reptrain.training.loop import train

Make = Callable[..., RunConfig]

T5 = (
    "model={family: t5, d_model: 32, num_encoder_layers: 2, num_decoder_layers: 2, num_heads: 2,"
    " head_dim: 16, d_ff: 64, mlp: swiglu, relative_bias_per_layer: true}"
)
OPTIONS = {
    "decoder": (
        "model.head_dim=24", "model.attention_bias=qkv", "model.mlp_bias=true", "model.sliding_window=9",
        "model.rope_scaling={name: llama3, factor: 8, original_max_positions: 16}",
        "data.document_mask=true", "model.dropout.attention=0.1",
    ),
    "relative positions": (
        "model.positions=relative", "model.mlp=gelu", "model.num_kv_heads=1", "model.dropout.attention=0.1",
        "objective.name=prefix_lm", "train.activation_checkpointing=true", "model.parallel_block=true",
    ),
    "t5": ("objective.name=span_corruption", T5, "train.activation_checkpointing=true"),
}  # fmt: skip


def losses(folder: RunFolder) -> list[float]:
    return [record.loss_nats for record in folder.metrics.records("train")]


@pytest.mark.parametrize("family", OPTIONS)
def test_runs_resume_at_another_stage_with_the_same_losses(
    family: str, tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = (*OPTIONS[family], "train.total_tokens=1epochs")
    train(tiny(*options), tmp_path / "whole")
    expected = losses(RunFolder.open(tmp_path / "whole"))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_at(patch, 5, crash)
        train(tiny(*options), tmp_path / "run")
    more = ("train.zero_stage=3", "train.micro_batch_windows=6")
    assert train(tiny(*options, *more), tmp_path / "run").state == "done"
    folder = RunFolder.open(tmp_path / "run")
    assert losses(folder) == pytest.approx(expected, rel=1e-5)
    environment = folder.environment
    assert environment["attention_kernels"] == environment["kernels"]
    (text,) = generate(folder.path, ["The list"], max_new_tokens=12, device="cpu")
    assert text.tokens
