"""What is sized: files of models and of runs, with a store or without."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from reptrain.config.load import dump_yaml
from reptrain.errors import ConfigError
from reptrain.sizes import describe_sizes, load_subject, sizes_text
from reptrain.sizes.subject import subject_of

MODELS = Path(__file__).parents[2] / "configs" / "models"
RUN = {"data": {"store": "runs/nowhere", "window_tokens": 100}, "model": {"num_layers": 1}}


def test_vocabulary_is_that_of_the_store_or_the_model_or_the_option(store_path: Path) -> None:
    known = RUN | {"data": {"store": str(store_path)}}
    of_store = subject_of(known, None).vocab_size
    assert of_store > 100
    assert subject_of(known, 77).vocab_size == of_store
    assert subject_of(RUN, 77).vocab_size == 77
    assert subject_of(RUN | {"model": {"vocab_size": 300}}, None).vocab_size == 300
    with pytest.raises(ConfigError, match=r"no store at runs/nowhere.*or pass --vocab-size"):
        subject_of(RUN, None)
    with pytest.raises(ConfigError, match=f"must hold the tokenizer's {of_store} ids"):
        subject_of(known | {"model": {"vocab_size": of_store - 1}}, None)


def test_model_alone_is_read_as_its_family_is_trained() -> None:
    t5 = load_subject(MODELS / "t5-1.1-base.yaml")
    assert (t5.window_tokens, *t5.shape) == (568, 512, 114)
    llama = load_subject(MODELS / "llama-7b.yaml", ["data.window_tokens=512"])
    assert (llama.window_tokens, *llama.shape) == (512, 0, 512)
    assert subject_of({"model": {"family": "t5", "vocab_size": 9}}, None).shape == (512, 114)


def test_vision_transformer_takes_no_settings_of_a_run() -> None:
    assert load_subject(MODELS / "vit-h-14.yaml").shape == (0, 257)
    with pytest.raises(ConfigError, match="train: must be a known key"):
        load_subject(MODELS / "vit-h-14.yaml", ["train.batch_windows=3"])
    with pytest.raises(ConfigError, match=r"model\.vocab_size: must be a known key"):
        load_subject(MODELS / "vit-h-14.yaml", ["model.vocab_size=3"])
    with pytest.raises(ConfigError, match="patch_pixels must divide image_pixels 224"):
        load_subject(MODELS / "vit-h-14.yaml", ["model.image.patch_pixels=15"])


def test_describe_sizes_shares_the_state_and_the_batch_among_gpus() -> None:
    subject = load_subject(MODELS / "t5-1.1-small.yaml", ["train.batch_windows=64"])
    alone, shared = (describe_sizes(subject, world_size=n, precision="bf16")["memory"] for n in (1, 8))
    assert (alone["micro_batch_windows"], shared["micro_batch_windows"]) == (64, 8)
    of_alone, of_shared = (memory["activation_bytes"]["none"] for memory in (alone, shared))
    assert of_alone["plain"] == 8 * of_shared["plain"]
    # The gradient of the head is as large for one window.
    head = 2 * 512 * 32_128
    assert of_alone["fused"] - head == 8 * (of_shared["fused"] - head)
    assert alone["state_bytes"]["stage_3"] == 8 * shared["state_bytes"]["stage_3"]


def test_describe_sizes_shares_the_experts_among_their_ranks() -> None:
    settings = ["train.zero_stage=2", "train.precision=bf16", "train.batch_windows=8"]

    def state(ranks: int) -> dict[str, int]:
        given = [*settings, f"train.expert_parallel_size={ranks}"]
        subject = load_subject(MODELS / "moe-base.yaml", given)
        return describe_sizes(subject, world_size=8, precision=None)["memory"]["state_bytes"]

    alone, shared = state(1), state(4)
    experts = 6 * 16 * 3 * 768 * 2048
    # Weights and gradients of three quarters of the experts go; a copy and moments are divided either way.
    assert alone["stage_1"] - shared["stage_1"] == 6 * experts * 3 // 4
    assert alone["stage_2"] - shared["stage_2"] == 2 * experts * 3 // 4
    with pytest.raises(
        ConfigError, match=r"--world-size: must be a multiple of train\.expert_parallel_size 4"
    ):
        describe_sizes(
            load_subject(MODELS / "moe-base.yaml", [*settings, "train.expert_parallel_size=4"]),
            world_size=6,
            precision=None,
        )


def test_describe_sizes_shares_a_window_among_its_ranks() -> None:
    settings = ["train.zero_stage=1", "train.precision=bf16", "train.micro_batch_windows=1"]

    def memory(ranks: int) -> dict[str, Any]:
        given = [*settings, f"train.sequence_parallel_size={ranks}"]
        subject = load_subject(MODELS / "t5-1.1-base.yaml", given)
        return describe_sizes(subject, world_size=8, precision=None)["memory"]

    alone, shared = memory(1), memory(4)
    assert alone["state_bytes"] == shared["state_bytes"]
    for recompute, size in shared["activation_bytes"].items():
        # The gradient of the head's weights is whole.
        head = 2 * 768 * 32_128
        before = alone["activation_bytes"][recompute]["fused"] - head
        assert 1 / 4 < (size["fused"] - head) / before < 0.3, recompute
    with pytest.raises(
        ConfigError, match=r"--world-size: must be a multiple of train\.sequence_parallel_size 4"
    ):
        subject = load_subject(MODELS / "t5-1.1-base.yaml", [*settings, "train.sequence_parallel_size=4"])
        describe_sizes(subject, world_size=6, precision=None)


def test_sizes_text_shows_how_often_shared_layers_run() -> None:
    shared = {"model": {"num_layers": 8, "num_stored_layers": 2, "vocab_size": 100}}
    subject = subject_of(shared, None)
    count, whole = (
        subject.parameters,
        subject_of({"model": shared["model"] | {"num_stored_layers": None}}, None),
    )
    assert count.run == whole.parameters.total > count.total == count.active
    assert subject.forward == whole.forward
    assert f"{count.run:,}" in sizes_text(describe_sizes(subject, world_size=1, precision=None))


def test_run_extends_a_published_shape(tmp_path: Path) -> None:
    run = tmp_path / "run.yaml"
    run.write_text(dump_yaml({"extends": str(MODELS / "gpt3-125m.yaml"), "model": {"num_layers": 2}}))
    subject = load_subject(run)
    assert subject.run is not None and subject.run.model.num_layers == 2  # type: ignore[union-attr]
    assert subject.window_tokens == 2048
