"""Sweep a proxy and train the target at its pick, with a fake trainer and with real training."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from run_folders import FakeStore
from typer.main import get_command

from reptrain.analysis.proxy import compare, sweeps_of_claim
from reptrain.analysis.tables import read_table
from reptrain.cli import app
from reptrain.errors import StudyError
from reptrain.study import StudyConfig, open_study, run_study
from reptrain.study.local_pool import LocalPool
from reptrain.study.paths import run_path
from reptrain.study.stand_in import StandIn, stand_in
from reptrain.study.sweep import Space
from reptrain.study.write_tables import write_tables

TESTS = Path(__file__).parents[1]
TRAINER = [sys.executable, str(Path(__file__).with_name("sweep_trainer.py"))]
BASE = {
    "data": {"store": "s", "unique_tokens": 4096, "window_tokens": 64},
    "train": {"total_tokens": 8192},
}
ARMS = [{"name": "small", "set": {"model.num_layers": 1}}, {"name": "large"}]
STUDY = StudyConfig.model_validate({"name": "s", "base": BASE, "arms": ARMS, "seeds": [0]})
RATES = Space("optimizer.lr", (0.001, 0.002))


@pytest.fixture
def fake_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reptrain.study.preflight.open_store", lambda path, *, named_by: FakeStore())
    monkeypatch.setenv("PYTHONPATH", str(TESTS))


@pytest.mark.usefixtures("fake_store")
def test_stand_in_trains_the_target_at_the_pick_of_the_proxy(tmp_path: Path) -> None:
    means = StandIn("small", "large", judge=False, num_trials=9)
    pool = LocalPool(2, poll_s=0.05)
    sweep, study = stand_in(STUDY, tmp_path, RATES, means, launch=TRAINER, executor=pool)
    assert [values for values, _ in sweep.trials] == [{"optimizer.lr": 0.002}, {"optimizer.lr": 0.001}]
    assert study is not None
    folder = means.folder(tmp_path)
    assert run_study(study, folder, launch=TRAINER, executor=pool).exit_code == 0
    write_tables(study, folder)
    runs = {(row["set.entry"], row["set.optimizer.lr"]) for row in read_table(folder).to_pylist()}
    assert runs == {("small", 0.001), ("small", 0.002), ("large", 0.002)}
    # The proxy was trained once: its runs are those of the trials.
    trials = {path.resolve() for path in (tmp_path / "sweep").glob("trials/*/runs/*")}
    assert trials == {path.resolve() for path in run_path(folder, "").glob("small*")}
    # A second call finds everything done, and keeps values at which the target has begun.
    again = stand_in(STUDY, tmp_path, RATES, means, launch=["false"], executor=pool)
    assert again == (sweep, study)


@pytest.mark.parametrize(
    ("means", "message"),
    [
        (
            StandIn("tiny", "large", judge=False, num_trials=1),
            "must have an arm tiny",
        ),
        (StandIn("small", "large", judge=True, num_trials=1), "must have at least 2 seeds"),
    ],
)
def test_stand_in_refuses_what_it_cannot_do(tmp_path: Path, means: StandIn, message: str) -> None:
    with pytest.raises(StudyError, match=message):
        stand_in(STUDY, tmp_path, RATES, means)
    assert not [*tmp_path.iterdir()]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "proxy",
    [
        {"model.moe": {"num_experts": 4, "top_k": 1}, "model.d_model": 16, "model.d_ff": 32},
        {"model.d_model": 16, "model.d_ff": 32, "model.mup_base_width": 16},
    ],
    ids=["sparse", "mup"],
)
def test_stand_in_is_judged_on_real_trainings(
    store_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, proxy: dict[str, object]
) -> None:
    """Sweep, target on the whole grid, and the report with rank correlation, regret and cost."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    mup = {key: value for key, value in proxy.items() if "mup" in key}
    study = {
        "base": {
            "data": {"store": str(store_path), "unique_tokens": 4096, "window_tokens": 32},
            "model": {"d_model": 32, "num_layers": 1, "num_heads": 2, "d_ff": 64},
            "train": {"total_tokens": 2**14, "batch_windows": 8, "device": "cpu"},
            "evaluate": {"every_fraction": 0.5, "max_windows": 8},
        },
        "arms": [{"name": "proxy", "set": proxy}, {"name": "target", "set": mup}],
        "seeds": [0, 1],
    }
    (tmp_path / "stand-in.yaml").write_text(yaml.safe_dump(study))
    out = tmp_path / "out"
    command = ["study", "sweep", str(tmp_path / "stand-in.yaml"), "--out", str(out), "--jobs", "2"]
    command += ["--over", "optimizer.lr=1e-3,1e-2,1e-1", "--proxy", "proxy", "--target", "target", "--judge"]
    ended = CliRunner().invoke(get_command(app), command)
    assert ended.exit_code == 0, (ended.output, ended.exception)
    assert re.search(r"rank correlation -?[01]\.\d\d at 3 values, cost 0\.\d\dx", ended.output)
    judged = out / "judged"
    table = read_table(judged)
    assert table.num_rows == 12
    (claim,) = open_study(judged).claims
    pair = compare(*sweeps_of_claim(table, claim))
    flops = {row["set.entry"]: row["train_flops"] for row in table.to_pylist()}
    assert pair.cost_ratio == pytest.approx((3 * flops["proxy"] + flops["target"]) / (3 * flops["target"]))
    assert pair.regret >= 0.0
    page = (judged / "report.html").read_text()
    assert 'id="figure-proxy-pick-is-good"' in page
    assert f"regret {pair.regret:.4f}" in page
