"""Sequence parallelism gives the losses, records, masks and checkpoints of runs without it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ledgers import data_of
from rank_starts import LIMIT_S, start_ranks, write_config
from time_limits import takes_up_to

from reptrain.auditing.audit import audit
from reptrain.checkpoint import CheckpointManifest
from reptrain.config import RunConfig, config_fingerprint
from reptrain.errors import ConfigError
from reptrain.runs import RunFolder
from reptrain.training.loop import train

MakeConfig = Callable[..., RunConfig]
Cases = dict[str, dict[str, Any]]

DROPOUT = [
    *(f"model.dropout.{site}=0.2" for site in ("embedding", "attention", "residual", "mlp", "mlp_output")),
    "model.dropout.path=0.1",
]
# One key-value head for two ranks, and a number of positions that two does not divide.
DECODER = [
    "model.num_kv_heads=1",
    "data.window_tokens=31",
    "data.document_mask=true",
    "regularize={label_smoothing: 0.1, z_loss: 1e-3, input_noise: 0.2, input_noise_by: random,"
    " masked_inputs: 0.4}",
    "train.activation_checkpointing=true",
    *DROPOUT,
]
T5 = [
    "model={family: t5, d_model: 32, num_encoder_layers: 1, num_decoder_layers: 2, num_heads: 4, head_dim: 8,"
    " d_ff: 48}",
    "objective.name=span_corruption",
    "data.document_mask=true",
    *DROPOUT,
]
# Learned positions, a bidirectional prefix, and distillation from the first cycle.
GPT = [
    "model.positions=learned",
    "model.max_positions=64",
    "objective={name: prefix_lm}",
    "schedule={name: cyclic, cycles: 2}",
    "distill.weight=0.5",
    *DROPOUT,
]
DIFFUSION = ["objective={name: masked_diffusion, masking: independent}", "evaluate.noise_samples=2", *DROPOUT]
UMT5 = [*T5, "model.relative_bias_per_layer=true", "objective.name=ul2", "data.document_mask=false"]
SLIDING = ["model.sliding_window=7", "model.num_heads=4", "model.num_kv_heads=2", *DROPOUT]
RELATIVE = ["model.positions=relative", "data.window_tokens=31", "data.document_mask=true", *DROPOUT]
FAMILIES = {
    "decoder": DECODER, "t5": T5, "gpt": GPT, "diffusion": DIFFUSION, "umt5": UMT5, "sliding": SLIDING,
    "relative": RELATIVE,
}  # fmt: skip


def place(family: str, size: int, stage: int, micro: int = 4, **more: Any) -> dict[str, Any]:
    """A case: a family's settings, ranks for each window, the ZeRO stage and the micro-batch."""
    given = {"sequence_parallel_size": size, "zero_stage": stage, "micro_batch_windows": micro}
    settings = [f"train.{key}={value}" for key, value in given.items()]
    return {"overrides": [*FAMILIES[family], *settings, *more.pop("settings", [])], **more}


ON_TWO: Cases = {
    "decoder-zero2": place("decoder", 2, 2),
    "t5-zero1": place("t5", 2, 1, 3),
    "moved": place("t5", 2, 1, stop_after=2),
}
LATER_ON_TWO: Cases = {
    "decoder-zero0": place("decoder", 2, 0, 10),
    "t5-zero3": place("t5", 2, 3),
    "gpt-zero2": place("gpt", 2, 2),
    "diffusion-zero0": place("diffusion", 2, 0),
    "umt5-zero1": place("umt5", 2, 1),
    "relative-zero2": place("relative", 2, 2),
    "sliding-zero3": place("sliding", 2, 3, settings=["train.activation_checkpointing=true"]),
    "decoder-bf16": place("decoder", 2, 1, settings=["train.precision=bf16"]),
}
ON_FOUR: Cases = {
    "decoder-2of4-zero2": place("decoder", 2, 2),
    "t5-4of4-zero1": place("t5", 4, 1),
    "t5-2of4-zero0": place("t5", 2, 0, 2),
    "sliding-4of4-zero2": place("sliding", 4, 2),
    "grown": place("t5", 2, 1, stop_after=2),
}


def begin(out: Path, tiny: MakeConfig) -> None:
    # 24 windows of an epoch of 16 in batches of 10; the last one is short.
    data = ("train.total_tokens=1.5epochs", "data.unique_tokens=500", "train.batch_windows=10")
    rarely = ("evaluate.every_fraction=1", "checkpoint.every_fraction=1")
    write_config(out, tiny(*data, *rarely))


def assert_is_the_run(found: RunFolder, plain: RunFolder) -> None:
    """Losses, gradient norms, the data and the audit; all records but those of speed."""
    for kind, near in (("train", 1e-5), ("valid", 1e-5)):
        both = [list(folder.metrics.records(kind)) for folder in (found, plain)]
        assert len(both[0]) == len(both[1]) > 0
        for record, expected in zip(*both, strict=True):
            if kind == "train":
                assert record.loss_nats == pytest.approx(expected.loss_nats, rel=0, abs=near)
                assert record.grad_norm == pytest.approx(expected.grad_norm, rel=1e-4)
                assert (record.tokens, record.target_tokens) == (expected.tokens, expected.target_tokens)
            else:
                assert record.set == expected.set
                assert record.scores == pytest.approx(expected.scores, rel=1e-4, abs=near)
    assert data_of(found.ledger) == data_of(plain.ledger)
    assert audit(found.path).exact


@pytest.fixture(scope="module")
@takes_up_to(LIMIT_S + 600)
def runs(tmp_path_factory: pytest.TempPathFactory, tiny: MakeConfig) -> Path:
    """Folder of runs on one rank and on two."""
    out = tmp_path_factory.mktemp("sequences")
    begin(out, tiny)
    start_ranks(2, out, ON_TWO)
    start_ranks(
        1, out, {family: place(family, 1, 0) for family in ("decoder", "t5")} | {"moved": place("t5", 1, 0)}
    )
    return out


@pytest.mark.ranks
@pytest.mark.parametrize("name", ON_TWO)
def test_run_equals_that_of_one_rank(runs: Path, name: str) -> None:
    family = "t5" if name == "moved" else name.split("-")[0]
    assert_is_the_run(*(RunFolder.open(runs / one) for one in (name, family)))


@pytest.mark.ranks
def test_run_resumes_without_sequence_parallelism(runs: Path) -> None:
    resumed = [event for event in RunFolder.open(runs / "moved").events.records() if event.event == "resumed"]
    assert [event.detail for event in resumed] == ["by 1 rank at ZeRO 0, written by 2 ranks at ZeRO 1"]
    assert CheckpointManifest.read(runs / "moved/checkpoints/step-3").optimizer_steps == 3


@pytest.mark.slow
@pytest.mark.ranks
@pytest.mark.timeout(3 * LIMIT_S)
def test_runs_of_all_families_on_two_ranks_and_four_equal_those_of_one(
    tmp_path: Path, tiny: MakeConfig
) -> None:
    begin(tmp_path, tiny)
    start_ranks(2, tmp_path, LATER_ON_TWO)
    start_ranks(4, tmp_path, ON_FOUR)
    start_ranks(2, tmp_path, {"grown": place("t5", 2, 2)})
    plain = {family: place(family, 1, 0) for family in FAMILIES}
    plain["bf16"] = place("decoder", 1, 1, settings=["train.precision=bf16"])
    start_ranks(1, tmp_path, plain)
    for name in (*LATER_ON_TWO, *ON_FOUR):
        family = {"grown": "t5"}.get(name, name.split("-")[0])
        if name.endswith("bf16"):
            found, expected = (RunFolder.open(tmp_path / one) for one in (name, "bf16"))
            assert data_of(found.ledger) == data_of(expected.ledger)
            losses = [[r.loss_nats for r in run.metrics.records("train")] for run in (found, expected)]
            assert losses[0] == pytest.approx(losses[1], abs=2e-3)
        else:
            assert_is_the_run(*(RunFolder.open(tmp_path / one) for one in (name, family)))


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["train.sequence_parallel_size=3"], "must divide model.num_heads 2; 3 does not"),
        (
            ["train.sequence_parallel_size=2", "model.moe={num_experts: 4}"],
            "needs a dense model, .* set train.sequence_parallel_size=1",
        ),
        (
            ["train.sequence_parallel_size=4", "model={d_model: 96, num_heads: 12, num_kv_heads: 3}"],
            "a divisor or a multiple of model.num_kv_heads 3; 4 is neither",
        ),
    ],
)
def test_refuses_sequences_that_cannot_be_split(tiny: MakeConfig, overrides: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        tiny(*overrides)


def test_refuses_a_number_of_ranks_that_the_group_does_not_divide(tiny: MakeConfig, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"sequence_parallel_size: must divide the number of ranks, 1, but"):
        train(tiny("train.sequence_parallel_size=2"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_sequence_parallel_size_is_not_in_the_fingerprint(tiny: MakeConfig) -> None:
    assert config_fingerprint(tiny("train.sequence_parallel_size=2")) == config_fingerprint(tiny())
