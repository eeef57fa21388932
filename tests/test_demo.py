"""The demo as a newcomer runs it, and what a model learns on its text."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from forked import run_forked
from time_limits import takes_up_to

from reptrain.auditing.audit import audit
from reptrain.batch.loader import Loader
from reptrain.batch.objectives import IGNORE
from reptrain.config import RunConfig
from reptrain.config.load import load_run_config
from reptrain.config.quantities import Budget
from reptrain.demo import _for_small as demo_settings
from reptrain.demo import _in_pieces
from reptrain.plan import Subset
from reptrain.runs import RunFolder
from reptrain.sizes import count_parameters, train_flops_per_window
from reptrain.store import open_store
from reptrain.study import arms, demo_study
from reptrain.study.preflight import check_arms
from reptrain.training.loop import train
from reptrain.training.setup import open_data

ROOT = Path(__file__).parents[1]
DEMO_S = 1200
"""For the quick demo: a minute on two quiet cores."""


def run_demo(out: Path) -> subprocess.CompletedProcess[str]:
    return run_forked(["-m", "reptrain", "demo", "--quick", "--out", out], timeout=DEMO_S)


@pytest.fixture(scope="module")
@takes_up_to(DEMO_S)
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The quick demo's folder, and what it printed."""
    out = tmp_path_factory.mktemp("demo") / "demo"
    ended = run_demo(out)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return out, ended.stdout


def test_demo_trains_audits_and_answers(demo: tuple[Path, str]) -> None:
    out, printed = demo
    assert "audit: 3 runs are exact (level windows)\n" in printed
    assert "4 epochs of 8,192 tokens reached" in printed
    assert "64 epochs of 512 tokens" in printed
    page = (out / "report.html").read_text()
    assert page.count("<svg") >= 4 and page.count("<script") == 1 and "<script src" not in page
    for epochs in (4, 16, 64):
        assert f">{epochs}<" in page or f"{epochs} epochs" in page


@pytest.mark.timeout(DEMO_S)
def test_demo_run_twice_reuses_what_is_sealed(demo: tuple[Path, str]) -> None:
    out, printed = demo
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.suffix in (".arrow", ".jsonl")}
    again = run_demo(out)
    assert (again.returncode, again.stdout) == (0, printed)
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_demo_cuts_a_text_file_into_pieces(tmp_path: Path) -> None:
    paragraphs = [f"Paragraph {number} of a long text. " * 20 for number in range(50)]
    (tmp_path / "book.txt").write_text("\n\n".join(paragraphs))
    made = _in_pieces(tmp_path / "book.txt", tmp_path)
    pieces = [json.loads(line)["text"] for line in made.read_text().splitlines()]
    assert len(pieces) > 20
    assert "".join(pieces).split("\n\n")[:-1] == paragraphs


def unigram_entropy(store: Path, split: str) -> float:
    """Nats per token of the best guess that ignores all context."""
    subset = Subset.open(open_store(store), split=split)
    counts = np.bincount(subset.read(0, subset.unique_tokens))
    share = counts[counts > 0] / counts.sum()
    return float(-(share * np.log(share)).sum())


@pytest.mark.timeout(DEMO_S)
@pytest.mark.parametrize(("steps", "margin"), [(100, 0.0), pytest.param(300, 0.5, marks=pytest.mark.slow)])
def test_steps_end_under_the_unigram_entropy(
    demo: tuple[Path, str], tmp_path: Path, steps: int, margin: float
) -> None:
    store = demo[0] / "store"
    overrides = [
        *(f"data.store={store}", "data.unique_tokens=null", "data.window_tokens=64"),
        *(f"train.total_tokens={steps * 1024}", "train.batch_windows=16"),
        *("evaluate.every_fraction=1", f"evaluate.max_windows={200 if steps == 100 else 1000}"),
    ]
    config = load_run_config(ROOT / "configs" / "tiny" / "decoder.yaml", overrides)
    assert train(config, tmp_path / "run").steps == pytest.approx(steps, abs=1)
    scores = {record.set: record.nats for record in RunFolder.open(tmp_path / "run").metrics.records("valid")}
    assert scores["report"] < unigram_entropy(store, "report") - margin
    assert scores["select"] < unigram_entropy(store, "select") - margin


def target_entropy(config: RunConfig) -> float:
    """Nats per target of the best guess that ignores all context, over the run's own examples."""
    data = open_data(config)
    loader = Loader(data.stream, data.plan, data.steps, data.objective, 0, 1, config.train.batch_windows)
    counts = torch.zeros(data.tokenizer.vocab_size)
    for step in range(data.steps.num_steps):
        targets = data.objective.example(loader.batch(step).micro_batches[0]).targets_BT
        counts += torch.bincount(targets[targets != IGNORE], minlength=len(counts))
    return float(torch.distributions.Categorical(counts / counts.sum()).entropy())


# The tiny configurations that are arms of a dense one.
ARM = re.compile(r"^(decoder|t5)-(moe|shared)$")
TINY_T5 = ROOT / "configs" / "tiny" / "t5.yaml"


def hold_half_a_nat_under_the_unigram_entropy(out: Path, config: RunConfig) -> None:
    scores = {record.set: record.nats for record in RunFolder.open(out).metrics.records("valid")}
    assert max(scores.values()) < target_entropy(config) - 0.5
    assert audit(out).exact


@pytest.mark.timeout(DEMO_S)
def test_t5_learns_on_short_windows(demo: tuple[Path, str], tmp_path: Path) -> None:
    overrides = [
        *(f"data.store={demo[0] / 'store'}", "data.unique_tokens=2**17", "objective.input_tokens=32"),
        *("train.batch_windows=32", "train.total_tokens=1.3epochs", "evaluate.every_fraction=1"),
        # A few short windows would measure little but chance.
        "evaluate.max_windows=300",
    ]
    config = load_run_config(TINY_T5, overrides)
    assert train(config, tmp_path / "run").steps <= 160
    hold_half_a_nat_under_the_unigram_entropy(tmp_path / "run", config)


@pytest.mark.slow
@pytest.mark.ranks
@pytest.mark.timeout(3900)
@pytest.mark.parametrize("ranks", [1, 2])
def test_tiny_t5_learns_as_it_stands(demo: tuple[Path, str], tmp_path: Path, ranks: int) -> None:
    overrides = [f"data.store={demo[0] / 'store'}"]
    command = [sys.executable, "-m", "reptrain", "launch", TINY_T5, *overrides, "--gpus", ranks]
    command += ["--out", tmp_path / "run"]
    ended = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=3600)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert RunFolder.open(tmp_path / "run").plan.step_plan().num_steps <= 300
    hold_half_a_nat_under_the_unigram_entropy(tmp_path / "run", load_run_config(TINY_T5, overrides))


ARMS = [path.stem for path in sorted((ROOT / "configs" / "tiny").glob("*-*.yaml")) if ARM.search(path.stem)]


@pytest.mark.parametrize("arm", ARMS)
def test_tiny_arms_have_the_flops_of_their_dense_model(arm: str) -> None:
    dense, own = (
        load_run_config(ROOT / "configs" / "tiny" / f"{name}.yaml") for name in (arm.split("-")[0], arm)
    )
    flops = [train_flops_per_window(config.model, 4096, config.example_shape) for config in (dense, own)]
    assert flops[1] == pytest.approx(flops[0], rel=0.01)
    parameters = [count_parameters(config.model, 4096).non_embedding for config in (dense, own)]
    assert (parameters[1] > 2 * parameters[0]) if "moe" in arm else (parameters[1] < 0.6 * parameters[0])


@pytest.mark.slow
@pytest.mark.timeout(3900)
@pytest.mark.parametrize("arm", ARMS)
def test_tiny_arms_learn_as_they_stand(demo: tuple[Path, str], tmp_path: Path, arm: str) -> None:
    overrides = [f"data.store={demo[0] / 'store'}"]
    config = load_run_config(ROOT / "configs" / "tiny" / f"{arm}.yaml", overrides)
    assert train(config, tmp_path / "run").steps <= 300
    hold_half_a_nat_under_the_unigram_entropy(tmp_path / "run", config)
    *_, last = RunFolder.open(tmp_path / "run").metrics.records("train")
    layers = last.routing or []
    assert len(layers) == {"decoder-moe": 2, "t5-moe": 4}.get(arm, 0)
    assert all(layer.unused == 0 for layer in layers)


def test_demo_takes_smaller_subsets_of_a_small_store(
    store_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    there = open_store(store_path).split("train").num_tokens
    assert demo_settings(store_path, quick=True) == [] and capsys.readouterr().out == ""
    monkeypatch.setattr("reptrain.demo._LARGEST_SUBSET", 2 * there)
    found = arms(demo_study([f"data.store={store_path}", *demo_settings(store_path, quick=False)]))
    subsets = [arm.config.data.unique_tokens or 0 for arm in found]
    assert there / 2 < subsets[0] <= there and f"{there:,} training tokens" in capsys.readouterr().out
    epochs = [
        (arm.config.train.total_tokens or Budget(tokens=1)).epochs_over(n)
        for arm, n in zip(found, subsets, strict=True)
    ]
    assert epochs == [4, 16, 64]
    check_arms(found)
