"""Runs of compiled models: the losses of plain ones, and nothing compiled again as regularizers change."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters

from reptrain.config import RunConfig
from reptrain.runs import RunFolder
from reptrain.training.loop import train

Make = Callable[..., RunConfig]

CHANGING = "={value: 0.3, before: 0.05, over: 100%}"
SETTINGS = [
    f"{name}{CHANGING}" for name in ("model.dropout.residual", "model.dropout.attention", "regularize.z_loss")
]


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    """What other tests compiled counts against dynamo's limit too."""
    torch.compiler.reset()
    counters.clear()
    yield
    torch.compiler.reset()


def losses(out: Path, config: RunConfig) -> list[float]:
    train(config, out)
    return [record.loss_nats for record in RunFolder.open(out).metrics.records("train")]


@pytest.mark.slow
@pytest.mark.parametrize("what", ["block", "model"])
def test_compiled_runs_have_the_losses_of_plain_ones_and_are_compiled_once(
    what: str, tiny: Make, tmp_path: Path
) -> None:
    expected = losses(tmp_path / "plain", tiny("train.total_tokens=0.5epochs", *SETTINGS))
    assert counters["stats"]["unique_graphs"] == 0
    more = tiny("train.total_tokens=0.5epochs", *SETTINGS, f"train.compile={what}")
    found = losses(tmp_path / "compiled", more)
    assert len(found) == 7
    assert found == pytest.approx(expected, rel=1e-5)
    # One in training, and one in evaluation, whose batches may be of two sizes.
    assert 1 < counters["stats"]["unique_graphs"] <= 3
