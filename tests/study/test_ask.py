"""The questions of studies from Python and by `reptrain fit`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from typer.main import get_command

import reptrain
from reptrain.analysis.answer import FitOptions
from reptrain.cli import app
from reptrain.errors import AnalysisError
from reptrain.study import StudyConfig
from reptrain.study.schema import save_study

QUICK = FitOptions(num_starts=8, num_bootstraps=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study with two questions on a power law in tokens, one of which has too few runs."""
    out = tmp_path_factory.mktemp("ask") / "s"
    law = {"law": "power", "columns": {"x": "consumed_tokens"}}
    study = StudyConfig.model_validate(
        {
            "name": "s",
            "base": {"data": {"store": "s"}, "model": {"vocab_size": 256}},
            "seeds": [0],
            "fits": [{"name": "by-tokens", **law}, {"name": "one-seed", **law, "where": {"seed": 1}}],
        }
    )
    save_study(study, out)
    tokens = np.geomspace(1e4, 1e7, 9)
    table = {
        "run": [f"r{index}" for index in range(9)],
        "seed": [0] * 8 + [1],
        "consumed_tokens": tokens,
        "loss_report_final_nats": 20.0 * tokens**-0.15,
    }
    (out / "tables").mkdir()
    pq.write_table(pa.table(table), out / "tables" / "runs.parquet")
    return out


def test_fit_answers_the_fits_of_the_study(folder: Path) -> None:
    answers = reptrain.fit(folder, options=QUICK)
    assert [answer.name for answer in answers] == ["by-tokens", "one-seed"]
    assert answers[0].fit is not None
    assert answers[0].fit.score.rmse_nats < 1e-3
    assert answers[1].fit is None and answers[1].refusal


def test_fit_command_answers_the_fits_of_the_study(folder: Path) -> None:
    command = ["fit", str(folder), "--starts", "8", "--bootstraps", "0"]
    shown = CliRunner().invoke(get_command(app), command)
    assert shown.exit_code == 0, shown.output
    assert shown.output.startswith("by-tokens: power: loss = ")
    assert "\none-seed: power: not fitted. " in shown.output
    record = json.loads(CliRunner().invoke(get_command(app), [*command, "--json"]).output)
    assert [answer["name"] for answer in record["fits"]] == ["by-tokens", "one-seed"]
    refused = CliRunner().invoke(get_command(app), [*command, "--metric", "other"])
    assert refused.exit_code == 2
    assert "of their own" in refused.output


def test_fit_of_a_named_law_takes_the_question_from_its_arguments(folder: Path) -> None:
    (answer,) = reptrain.fit(folder, "power", columns={"x": "consumed_tokens"}, options=QUICK)
    assert answer.fit is not None
    assert answer.fit.num_points == 9
    with pytest.raises(AnalysisError, match="Name a law"):
        reptrain.fit(folder / "tables" / "runs.parquet")
