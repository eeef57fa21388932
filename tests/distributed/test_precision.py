"""Precision of a run on its device, and the network interface of ranks on one machine."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from reptrain.config import RunConfig, config_fingerprint, differing_keys
from reptrain.distributed.deepspeed_config import deepspeed_config
from reptrain.distributed.precision import allow_tf32, precision_text, product_precision
from reptrain.distributed.world import _use_loopback

MakeConfig = Callable[..., RunConfig]
CPU, GPU = torch.device("cpu"), torch.device("cuda", 0)


def test_on_device_chooses_bf16_and_zero_1_on_a_gpu(tiny: MakeConfig) -> None:
    config = tiny().on_device("cuda")
    assert (config.train.precision, config.train.zero_stage) == ("bf16", 1)
    assert "bf16" in deepspeed_config(
        config, world_size=1, micro_batch_windows=4, micro_steps=3, bucket_elements=9, on_gpu=True
    )
    assert tiny("train.zero_stage=3").on_device("cuda").train.zero_stage == 3


def test_on_device_chooses_fp32_on_a_cpu_and_for_optimizers_of_whole_matrices(tiny: MakeConfig) -> None:
    for config in (tiny().on_device("cpu"), tiny("optimizer={name: muon}").on_device("cuda")):
        assert (config.train.precision, config.train.zero_stage) == ("fp32", 0)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_on_device_keeps_an_explicit_precision(tiny: MakeConfig, device: str) -> None:
    config = tiny("train={precision: fp32, zero_stage: 2}")
    assert config.on_device(device) == config


def test_fingerprint_counts_auto_as_fp32_and_not_as_bf16(tiny: MakeConfig) -> None:
    auto, full, half = tiny(), tiny("train.precision=fp32"), tiny().on_device("cuda")
    assert config_fingerprint(auto) == config_fingerprint(full) != config_fingerprint(half)
    assert differing_keys(auto, full) == []
    assert differing_keys(full, half) == [("train.precision", "fp32", "bf16")]


@pytest.mark.parametrize(
    ("settings", "device", "text", "products"),
    [
        ([], GPU, "bf16, fp32 matrix products in TF32", "bf16"),
        (["train.tf32=false"], GPU, "bf16, fp32 matrix products in full fp32", "bf16"),
        (["train.precision=fp32"], GPU, "fp32, fp32 matrix products in TF32", "tf32"),
        (
            ["train.precision=fp32", "train.tf32=false"],
            GPU,
            "fp32, fp32 matrix products in full fp32",
            "fp32",
        ),
        ([], CPU, "fp32", "fp32"),
    ],
)
def test_precision_text_shows_precision_and_tf32(
    tiny: MakeConfig, settings: list[str], device: torch.device, text: str, products: str
) -> None:
    train = tiny(*settings).on_device(device.type).train
    assert precision_text(train, device) == text
    assert product_precision(train, device) == products


@pytest.mark.parametrize(("tf32", "expected"), [("true", "high"), ("false", "highest")])
def test_allow_tf32_changes_gpu_products_only(tiny: MakeConfig, tf32: str, expected: str) -> None:
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        allow_tf32(tiny(f"train.tf32={tf32}").train, CPU)
        assert torch.get_float32_matmul_precision() == "medium"
        allow_tf32(tiny(f"train.tf32={tf32}").train, GPU)
        assert torch.get_float32_matmul_precision() == expected
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.skipif(not Path("/sys/class/net/lo").exists(), reason="needs Linux")
@pytest.mark.parametrize(("host", "expected"), [("127.0.0.1", "lo"), ("localhost", "lo"), ("10.0.0.7", None)])
def test_ranks_of_one_machine_use_the_loopback_interface(
    host: str, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "environ", {})
    _use_loopback(host)
    assert os.environ.get("NCCL_SOCKET_IFNAME") == os.environ.get("GLOO_SOCKET_IFNAME") == expected


def test_user_defined_interface_is_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", {"NCCL_SOCKET_IFNAME": "eth1"})
    _use_loopback("127.0.0.1")
    assert os.environ["NCCL_SOCKET_IFNAME"] == "eth1"
