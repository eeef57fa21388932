"""Answers to fits are kept in the folder of the study."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from reptrain.analysis.answer import FitOptions
from reptrain.analysis.questions import FitQuestion
from reptrain.report import fit_cache
from reptrain.report.fit_cache import answer_fits

OPTIONS = FitOptions(num_starts=4, num_bootstraps=0)
QUESTION = FitQuestion(name="f", law="power", columns={"x": "consumed_tokens"})


def table(last: float = 1.5) -> pa.Table:
    tokens = np.geomspace(1e4, 1e7, 8)
    losses = [*(20.0 * tokens[:-1] ** -0.15), last]
    return pa.table({"consumed_tokens": tokens, "loss_report_final_nats": losses})


def test_unchanged_fits_are_read_and_changed_ones_fitted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, fitted = tmp_path / "fits.json", []
    answer = fit_cache.answer_fit
    monkeypatch.setattr(
        fit_cache, "answer_fit", lambda *given: fitted.append(given[0].name) or answer(*given)
    )
    first = answer_fits([(QUESTION, OPTIONS)], table(), file)
    assert answer_fits([(QUESTION, OPTIONS)], table(), file) == first
    assert fitted == ["f"]
    other = answer_fits([(QUESTION, OPTIONS)], table(last=1.6), file)
    assert other != first
    answer_fits([(QUESTION, OPTIONS._replace(seed=1))], table(last=1.6), file)
    assert fitted == ["f", "f", "f"]
    file.write_text("{")
    assert answer_fits([(QUESTION, OPTIONS)], table(), file) == first
