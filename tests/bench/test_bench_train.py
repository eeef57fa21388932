"""`reptrain bench train`: the figures of a step, and their conventions."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from reptrain.bench import train
from reptrain.bench.goals import Goal, verdicts
from reptrain.bench.measure import GateError
from reptrain.bench.rows import OURS, Row
from reptrain.config.model import DecoderConfig
from reptrain.config.objectives import ExampleShape
from reptrain.errors import ConfigError
from reptrain.plan.mixture import plan_mixture
from reptrain.sizes import utilization_flops

CONFIG = """
data: {window_tokens: 16}
model: {family: decoder, d_model: 16, num_layers: 1, num_heads: 2, d_ff: 16, dropout: {mlp: 0.1}}
train: {batch_windows: 4, micro_batch_windows: 2}
optimizer: {lr: 1.0e-3}
"""


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("bench") / "small.yaml"
    file.write_text(CONFIG)
    return file


@pytest.fixture(scope="module")
def rows(config: Path) -> dict[str, Row]:
    found = train.run(config, steps=3, warm_up=1)
    return {row.metric: row for row in found}


def test_every_step_has_a_rate_and_the_time_of_its_parts(rows: dict[str, Row]) -> None:
    assert {row.case for row in rows.values()} == {"small, 4 windows, fp32, cpu"}
    assert {row.repetitions for row in rows.values()} == {"3"}
    parts = ["loader", "forward", "backward", "update", "the rest"]
    assert list(rows) == ["training", "step", *(f"time of {part}" for part in parts)]
    # 4 windows of 16 tokens; the row holds four digits.
    seconds = float(rows["step"].median) / 1e3
    assert float(rows["training"].median) == pytest.approx(4 * 16 / seconds, rel=2e-3)
    assert all(float(rows[f"time of {part}"].low) > 0 for part in ("forward", "backward", "update"))


def test_a_wrong_loss_leaves_no_result(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*args: object, **kwargs: object) -> torch.nn.Module:
        model = build(*args, **kwargs)
        with torch.no_grad():
            next(model.parameters()).mul_(-1)
        return model

    build = train.build_model
    monkeypatch.setattr(train, "build_model", wrong)
    with pytest.raises(GateError, match="must have the losses of the plain definitions"):
        train.run(config, steps=1, warm_up=1)


def test_settings_of_the_data_are_replaced_and_others_kept(config: Path, tmp_path: Path) -> None:
    overrides = ["data.store=/nowhere", "data.unique_tokens=5", "train.total_tokens=9epochs", "seed=3"]
    found = train.bench_config(config, overrides, 6, tmp_path)
    assert (found.data.store, found.data.unique_tokens) == (str(tmp_path), 6 * 4 * 16)
    assert (found.seed, str(found.train.total_tokens)) == (3, "1epochs")
    with pytest.raises(ConfigError, match="d_modell"):
        train.bench_config(config, ["model.d_modell=4"], 6, tmp_path)


@pytest.mark.parametrize("cut", ["fixed", "shifted", "repacked"])
def test_the_run_has_exactly_the_measured_steps(cut: str, config: Path, tmp_path: Path) -> None:
    found = train.bench_config(config, [f"data.cut={cut}"], 6, tmp_path)
    plan = plan_mixture(found, {"data": found.data.unique_tokens or 0})
    assert plan.total_windows == 6 * 4


@pytest.mark.parametrize("teacher", ["[]", "[/nowhere]"])
def test_a_distilled_run_is_measured_only_without_its_teacher(
    teacher: str, config: Path, tmp_path: Path
) -> None:
    overrides = ["schedule={name: cyclic, cycles: 2}", f"distill.teacher={teacher}"]
    with pytest.raises(ConfigError, match="distill=null"):
        train.bench_config(config, overrides, 6, tmp_path)
    assert train.bench_config(config, [*overrides, "distill=null"], 6, tmp_path).distill is None


def test_utilization_counts_what_each_convention_names() -> None:
    """A decoder of one layer: products 4 d^2 + 3 d f, head V d, 2 d pairs a position and product."""
    d, f, vocab, length, layers = 8, 12, 50, 6, 1
    model = DecoderConfig(
        family="decoder", d_model=d, num_layers=layers, num_heads=2, d_ff=f, tie_embeddings=True
    )
    found = utilization_flops(model, vocab, ExampleShape(0, length), recompute="none")
    weights = layers * (4 * d * d + 3 * d * f) + vocab * d
    attention, visible = 12 * layers * d * length**2, 12 * layers * d * length * (length + 1) // 2
    assert found["MFU, products"] == 6 * weights * length + attention
    assert found["MFU, products, visible pairs"] == 6 * weights * length + visible
    norms = 6 * length * (2 * layers + 1) * d
    assert found["MFU, PaLM"] == 6 * weights * length + attention + norms
    assert found["MFU, PaLM, visible pairs"] == 6 * weights * length + visible + norms
    assert found["HFU"] == found["MFU, PaLM"]
    again = utilization_flops(model, vocab, ExampleShape(0, length), recompute="full")
    assert again["HFU"] - found["HFU"] == 2 * (weights - vocab * d) * length + attention // 3


def test_a_goal_may_be_the_smallest_figure() -> None:
    row = Row("train", "case", OURS, "MFU", "%", "40", "39", "41", "3", *[""] * 9)
    low, high = (Goal("train", "case", "MFU", bound, at_least=True) for bound in (39.0, 41.0))
    assert [verdict.met for verdict in verdicts([row], [low, high])] == [True, False]
