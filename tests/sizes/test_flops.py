"""FLOPs: the utilization that the published figures give."""

from __future__ import annotations

import subprocess
import sys

import pytest

from reptrain.config.schema import DecoderConfig
from reptrain.sizes import peak_flops, train_flops_per_token


def test_train_flops_per_token_gives_the_utilization_of_llama_65b() -> None:
    config = DecoderConfig(num_layers=80, d_model=8192, num_heads=64, d_ff=22016)
    peak = peak_flops("NVIDIA A100-SXM4-80GB", "bf16")
    assert peak is not None
    # Touvron et al. 2023, section 2.4: 380 tokens/s on each A100, windows of 2,048.
    utilization = 380 * train_flops_per_token(config, 32_000, 2048) / peak
    assert utilization == pytest.approx(0.497, abs=5e-4)


def test_train_flops_per_token_is_six_per_parameter_and_the_square_of_the_window() -> None:
    config = DecoderConfig(d_model=64, num_layers=3, num_heads=4, num_kv_heads=2, d_ff=100)
    short, long = (train_flops_per_token(config, 500, window) for window in (100, 300))
    assert long - short == 12 * 3 * 4 * 16 * 200
    assert short - 12 * 3 * 4 * 16 * 100 == 6 * (2 * 500 * 64 + 3 * (3 * 64 * 64 + 3 * 64 * 100 + 128) + 64)


@pytest.mark.parametrize(
    ("device", "precision", "tflops"),
    [
        ("NVIDIA A100-PCIE-40GB", "bf16", 312.0),
        ("NVIDIA A100-SXM4-80GB", "fp32", 19.5),
        ("NVIDIA H100 80GB HBM3", "bf16", 989.4),
        ("NVIDIA H100 PCIe", "bf16", 756.0),
        ("NVIDIA H100 NVL", "tf32", 417.5),
        ("NVIDIA H200", "fp16", 989.4),
        ("Tesla V100-SXM2-16GB", "fp16", 125.0),
    ],
)
def test_peak_flops_knows_the_data_sheets(device: str, precision: str, tflops: float) -> None:
    assert peak_flops(device, precision) == tflops * 1e12  # type: ignore[arg-type]


def test_peak_flops_claims_nothing_it_does_not_know() -> None:
    assert peak_flops("cpu", "fp32") is None
    assert peak_flops("Tesla V100-SXM2-16GB", "bf16") is None


def test_sizes_import_no_torch() -> None:
    code = "import sys, reptrain.sizes; assert 'torch' not in sys.modules and 'triton' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
