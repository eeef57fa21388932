"""No rank holds the whole model at ZeRO 3: peak memory of real ranks at two sizes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from rank_starts import start_ranks, write_config

from reptrain.config import RunConfig
from reptrain.sizes import count_parameters, state_bytes

pytestmark = pytest.mark.ranks

_MIB = 1 << 20


def _model(layers: int) -> list[str]:
    return ["model.d_model=512", f"model.num_layers={layers}", "model.d_ff=2048", "model.num_heads=8"]


def _measure(
    tiny: Callable[..., RunConfig], out: Path, *, ranks: int, layers: tuple[int, int], precision: str
) -> dict[str, tuple[int, list[dict[str, int]]]]:
    """Parameters and peak bytes of each rank by case."""
    write_config(out, tiny("train.zero_stage=3", f"train.precision={precision}"))
    cases: dict[str, dict[str, object]] = {}
    for number in layers:
        cases[f"saved-{number}"] = {"overrides": _model(number)}
    for number in layers:
        cases[f"loaded-{number}"] = {"overrides": _model(number), "load": f"saved-{number}"}
    start_ranks(ranks, out, cases, script="memory_ranks.py")
    found = {}
    for name in cases:
        config = tiny(*_model(int(name.rpartition("-")[2])))
        peaks = [json.loads((out / f"{name}-rank{rank}.json").read_text()) for rank in range(ranks)]
        found[name] = count_parameters(config.model, 512).total, peaks
    return found


@pytest.mark.parametrize(
    ("ranks", "layers", "precision"),
    [
        (2, (1, 5), "fp32"),
        pytest.param(4, (8, 40), "fp32", marks=pytest.mark.slow),
        pytest.param(4, (8, 40), "bf16", marks=pytest.mark.slow),
    ],
)
def test_memory_of_a_rank_at_zero3_grows_with_its_partition(
    ranks: int, layers: tuple[int, int], precision: str, tiny: Callable[..., RunConfig], tmp_path: Path
) -> None:
    found = _measure(tiny, tmp_path, ranks=ranks, layers=layers, precision=precision)
    for name, (parameters, peaks) in found.items():
        state = state_bytes(parameters, stage=3, world_size=ranks, precision=precision)
        assert state is not None
        for peak in peaks:
            whole = max(value for phase, value in peak.items() if phase != "process") + peak["process"]
            assert whole < state + 1024 * _MIB, (name, peak)
    small, large = (found[f"saved-{number}"] for number in layers)
    more = large[0] - small[0]
    for few, many in zip(small[1], large[1], strict=True):
        grown = many["partition"] - few["partition"]
        # A slice in fp32 in any precision: that much freed memory may stay. All weights would be 4 * more.
        assert grown < 4 * more / ranks + 16 * _MIB < 4 * more, (few, many)
