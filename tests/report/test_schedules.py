"""The picture of what a run changes in its course."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from reptrain.config import RunConfig
from reptrain.errors import ConfigError
from reptrain.plan import StepPlan, plan_mixture
from reptrain.report.schedules import _curves, draw_schedules, schedules

Make = Callable[..., RunConfig]
LATE = "model.dropout.residual={value: 0.2, start: 50%}"


def test_schedules_are_those_that_are_on(tiny: Make) -> None:
    assert schedules(tiny("optimizer.weight_decay=0")) == {}
    found = schedules(tiny(LATE, "regularize.z_loss=1e-4"))
    assert [*found] == ["model.dropout.residual", "regularize.z_loss", "optimizer.weight_decay"]


def test_curves_show_each_value_where_it_holds(tiny: Make) -> None:
    config = tiny(LATE, "schedule.name=constant", "schedule.warmup_fraction=0")
    plan = plan_mixture(config, {"data": 5000})
    curves = _curves(config, plan, StepPlan(config.train.batch_windows, plan.total_windows))
    tokens, rates = curves["learning rate"]
    assert tokens[0] == 0 and tokens == sorted(tokens) and set(rates) == {3e-3}
    late = dict(zip(*curves["model.dropout.residual"], strict=True))
    assert all(value == (0.2 if at >= 5000 else 0) for at, value in late.items())
    assert set(late.values()) == {0, 0.2}


@pytest.mark.parametrize("suffix", [".png", ".svg", ".pdf"])
def test_draw_schedules_writes_a_picture(suffix: str, tiny: Make, tmp_path: Path) -> None:
    path = tmp_path / f"picture{suffix}"
    draw_schedules(tiny(LATE), path)
    assert path.read_bytes()[:5] in (b"\x89PNG\r", b"<?xml", b"%PDF-")


def test_draw_schedules_refuses_another_kind(tiny: Make, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--plot.*\.png, \.svg, \.pdf"):
        draw_schedules(tiny(), tmp_path / "picture.txt")
