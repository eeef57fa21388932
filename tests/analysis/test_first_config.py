"""The first configuration that advice for a store gives."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from reptrain.analysis.advise import Advice, advise
from reptrain.analysis.first_config import StoreFacts, closest_shape, first_config, published_batch_and_rate
from reptrain.cli import app
from reptrain.config import RunConfig, load_run_config
from reptrain.config.load import validate
from reptrain.config.model import DecoderConfig
from reptrain.errors import AnalysisError
from reptrain.sizes import count_parameters

BUDGETS = [(2e5, 1e13), (1e7, 1e16), (1e8, 1e19), (1e10, 1e22)]


def facts(tokens: float, vocab_size: int = 4096) -> StoreFacts:
    return StoreFacts("store", int(tokens), vocab_size)


def value(advice: Advice, store: StoreFacts, key: str) -> Any:
    return next(one.value for one in first_config(advice, store).settings if one.key == key)


@pytest.mark.parametrize("parameters", [3e5, 2e6, 1e7, 1.3e8, 1e9, 7e9, 7e10])
def test_the_closest_shape_has_nearly_the_parameters(parameters: float) -> None:
    shape = closest_shape(parameters, 4096)
    total = count_parameters(DecoderConfig(**shape), 4096).total
    assert total == pytest.approx(parameters, rel=0.2)
    assert 40 <= shape["d_model"] / shape["num_layers"] <= 100 or shape["num_layers"] == 2
    assert shape["d_model"] % shape["num_heads"] == 0


@pytest.mark.parametrize(("tokens", "compute"), BUDGETS)
def test_the_file_holds_the_advice(tokens: float, compute: float, tmp_path: Path) -> None:
    advice = advise(tokens, compute)
    config = first_config(advice, facts(tokens))
    (tmp_path / "first.yaml").write_text(config.yaml())
    run = load_run_config(tmp_path / "first.yaml", [])
    assert run.data.store == "store"
    assert float(run.train.total_tokens.epochs or 0) == pytest.approx(advice.epochs, rel=1e-3)
    assert isinstance(run.model, DecoderConfig)
    assert count_parameters(run.model, 4096).total == config.parameters
    assert all(setting.source for setting in config.settings)
    # At least 500 steps, as far as whole windows allow.
    step_tokens = run.train.batch_windows * run.window_tokens
    assert run.train.batch_windows == 1 or advice.tokens / step_tokens > 450
    assert tokens / run.window_tokens >= 64


def test_regularization_follows_the_epochs() -> None:
    few, many = advise(1e12, 1e20), advise(1e8, 1e19)
    assert few.epochs <= 1 and many.epochs > 16
    assert value(few, facts(1e12), "train.total_tokens") == round(few.tokens) < 1e12
    assert [value(few, facts(1e12), key) for key in ("model.dropout.residual", "optimizer.weight_decay")] == [
        0,
        0.1,
    ]
    assert [value(many, facts(1e8), key) for key in ("model.dropout.residual", "optimizer.weight_decay")] == [
        0.2,
        1,
    ]


def test_a_large_vocabulary_is_named() -> None:
    advice = advise(1e7, 1e15)
    (hint,) = first_config(advice, facts(1e7, 100_000)).hints
    assert "smaller --vocab-size" in hint.advice
    (hint,) = first_config(advice, facts(1e7, 256)).hints
    assert "smaller" not in hint.advice


def test_a_store_too_small_for_windows_is_refused() -> None:
    with pytest.raises(AnalysisError, match="must have at least 4,096"):
        first_config(advise(4000, 1e12), facts(4000))


@pytest.mark.parametrize("compute", [1e-3, 1e60])
def test_a_run_without_a_window_or_an_end_is_refused(compute: float) -> None:
    with pytest.raises(AnalysisError, match="at least one window of 128 tokens, and fewer than"):
        first_config(advise(1e4, compute), facts(1e4))


def test_settings_beyond_the_runs_of_the_law_are_marked() -> None:
    found = {
        unique: next(
            one.source
            for one in first_config(advise(unique, 1e20), facts(unique)).settings
            if one.key == "train.total_tokens"
        )
        for unique in (1e9, 1e6)
    }
    assert "extrapolated" not in found[1e9] and re.search("extrapolated by .*U x100", found[1e6])


def test_advise_writes_a_configuration_that_trains(
    store_path: Path, tmp_path: Path, tiny: Callable[..., RunConfig]
) -> None:
    from reptrain.training.loop import train

    out = tmp_path / "first.yaml"
    words = ["advise", "--store", str(store_path), "--compute", "1e12", "--out", str(out)]
    result = CliRunner().invoke(app, [*words, "--json"], catch_exceptions=False)
    keys = [setting["key"] for setting in json.loads(result.output)["first_config"]["settings"]]
    assert {"optimizer.lr", "data.window_tokens", "train.total_tokens"} <= {*keys}
    short = ["train.total_tokens=4000", "evaluate.max_windows=2", "train.device=cpu", "train.batch_windows=2"]
    config = load_run_config(out, short)
    assert train(validate(RunConfig, config.model_dump(mode="json")), tmp_path / "run").state == "done"
    # It is not overwritten.
    before = out.read_text()
    assert CliRunner().invoke(app, words).exit_code == 2 and out.read_text() == before


@pytest.mark.parametrize(
    "words",
    [
        ["--compute", "1e15"], ["--unique-tokens", "1M", "--store", "x", "--compute", "1e15"],
        ["--unique-tokens", "1M", "--compute", "1e15", "--out", "x.yaml"],
        ["--unique-tokens", "1M", "--hours", "0", "--mfu", "0.4", "--device", "A100"],
        ["--unique-tokens", "1M", "--hours", "1", "--mfu", "0.4", "--device", "TPU"],
    ],
)  # fmt: skip
def test_advise_refuses_options_that_give_no_budget_or_store(words: list[str]) -> None:
    assert CliRunner().invoke(app, ["advise", *words]).exit_code == 2


def test_a_remote_store_keeps_its_address(
    store_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REPTRAIN_STORE_CACHE", str(tmp_path / "cache"))
    out = tmp_path / "first.yaml"
    words = ["advise", "--store", f"file://{store_path}", "--compute", "1e12", "--out", str(out)]
    assert CliRunner().invoke(app, words, catch_exceptions=False).exit_code == 0
    assert load_run_config(out, []).data.store == f"file://{store_path}"


@pytest.mark.parametrize(
    ("layers", "width", "windows", "rate"), [(30, 4096, 2304, 4.2e-4), (95, 8192, 4608, 3.2e-4)]
)
def test_published_batch_and_rate_are_near_those_of_the_published_models(
    layers: int, width: int, windows: int, rate: float
) -> None:
    """DeepSeek LLM 7B and 67B, arXiv 2401.02954, table 2: 2T tokens in windows of 4,096."""
    flops_per_token = 72 * layers * width**2 + 12 * layers * width * 4096
    tokens, found = published_batch_and_rate(2e12 * flops_per_token)
    assert tokens / 4096 == pytest.approx(windows, rel=0.1)
    assert found == pytest.approx(rate, rel=0.03)
