"""Costs against published runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from reptrain.analysis.cost import Load, cost
from reptrain.analysis.prices import find_device, read_devices
from reptrain.errors import AnalysisError

LLAMA_65B = 65_285_660_672


def test_cost_of_llama_65b_is_the_published_one() -> None:
    load = Load(6.0 * LLAMA_65B, 12.0 * 80 * 8192 * 2048)
    result = cost(
        tokens=1.4e12,
        num_gpus=2048,
        tokens_per_second_per_gpu=380,
        load=load,
        peak_flops=312e12,
        usd_per_gpu_hour=3.93,
        watts=400,
        pue=1.1,
    )
    assert result.days == pytest.approx(20.82, abs=0.005)
    assert result.gpu_hours == pytest.approx(1_023_392, abs=1)
    assert result.usd == pytest.approx(4.02e6, rel=1e-3)
    assert result.mfu_parameters == pytest.approx(0.477, abs=5e-4)
    assert result.mfu_attention == pytest.approx(0.497, abs=5e-4)
    assert result.megawatt_hours == pytest.approx(450.3, abs=0.1)


def test_mfu_of_palm_is_the_published_one() -> None:
    load = Load(6 * 540.35e9, 12.0 * 118 * 48 * 256 * 2048)
    result = cost(
        tokens=780e9, num_gpus=6144, tokens_per_second_per_gpu=238.3e3 / 6144, load=load, peak_flops=275e12
    )
    assert result.mfu_attention == pytest.approx(0.462, abs=5e-4)
    assert result.mfu_parameters == pytest.approx(0.457, abs=5e-4)


def test_cost_is_linear_in_epochs() -> None:
    once, often = (
        cost(
            tokens=epochs * 1e9,
            num_gpus=8,
            mfu=0.4,
            load=Load(6e9),
            peak_flops=312e12,
            unique_tokens=1e9,
            usd_per_gpu_hour=2.0,
        )
        for epochs in (1, 64)
    )
    assert often.usd == pytest.approx(64 * (once.usd or 0.0))
    assert often.usd_per_epoch == pytest.approx(once.usd)
    assert often.rate_source == "MFU" and often.mfu_parameters == pytest.approx(0.4)


def test_cost_refuses_to_guess_a_rate() -> None:
    with pytest.raises(AnalysisError, match="training rate: must be known"):
        cost(tokens=1e9, num_gpus=8, mfu=0.4, load=Load(6e9))


def test_devices_have_a_source_for_every_number() -> None:
    devices = read_devices()
    for row in devices:
        assert (row.usd_per_gpu_hour is None) == (not row.price_source)
        assert (row.watts is None) == (not row.watts_source)
    found = find_device(devices, "NVIDIA A100-SXM4-80GB")
    assert found is not None and found.usd_per_gpu_hour == 3.93
    assert find_device(devices, "TPU v4") is None


def test_read_devices_takes_a_table_of_the_user(tmp_path: Path) -> None:
    file = tmp_path / "mine.csv"
    header = "device,usd_per_gpu_hour,price_date,price_source,watts,watts_source\n"
    file.write_text(header + "B200,5.5,2026-11-01,our contract,1000,measured\n")
    assert read_devices(file)[0].usd_per_gpu_hour == 5.5
    file.write_text(header + "B200,cheap,,,,\n")
    with pytest.raises(
        AnalysisError, match=r"line 2, usd_per_gpu_hour: must be a number above zero.*'cheap'"
    ):
        read_devices(file)
    file.write_text("device,price\nB200,5\n")
    with pytest.raises(AnalysisError, match="no column usd_per_gpu_hour"):
        read_devices(file)


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), float("inf")])
def test_cost_refuses_quantities_that_are_not_positive(value: float) -> None:
    with pytest.raises(AnalysisError, match="mfu: must be finite and above zero"):
        cost(tokens=1e9, num_gpus=8, mfu=value, load=Load(6e9), peak_flops=312e12)
    with pytest.raises(AnalysisError, match="tokens: must be finite and above zero"):
        cost(tokens=value, num_gpus=8, tokens_per_second_per_gpu=1.0)
