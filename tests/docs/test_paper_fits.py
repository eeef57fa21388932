"""Scaling laws on docs/paper.md: fitted to tables of several studies, and kept until these change."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest

from reptrain.analysis.answer import FitOptions

FINDING: dict[str, Any] = {
    "number": 0,
    "fits": {
        "tables": ["small", "large"],
        "laws": ["chinchilla", "excess-1"],
        "metric": "loss",
        "columns": {"N": "parameters", "D": "consumed_tokens", "U": "unique_tokens"},
        "held_out": {"consumed_tokens": 2**14},
    },
}


QUICK = FitOptions(num_starts=1, num_bootstraps=3)


@pytest.fixture(scope="module")
def fitted_lines(open_tool: Callable[[str], ModuleType]) -> Callable[..., list[str]]:
    return partial(open_tool("paper_fits").fitted_lines, options=QUICK)


def write_table(path: Path, budgets: list[int]) -> None:
    """Losses of 2 + 10 / sqrt(parameters) + 10 / sqrt(tokens)."""
    rows = [
        {
            "node_fingerprint": f"{parameters}-{tokens}",
            "arm": f"{parameters}-{tokens}",
            "seed": 0,
            "role": "main",
            "status": "done",
            "parameters": parameters,
            "train_flops": 6.0 * parameters * tokens,
            "unique_tokens": tokens,
            "consumed_tokens": tokens,
            "loss": 2 + 10 / parameters**0.5 + 10 / tokens**0.5,
        }
        for tokens in budgets
        for parameters in (100, 400, 1600)
    ]
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), path)


def test_laws_are_fitted_to_the_runs_of_all_tables_and_scored_on_those_held_out(
    fitted_lines: Callable[..., list[str]], tmp_path: Path
) -> None:
    write_table(tmp_path / "small.parquet", [2**6, 2**8, 2**10])
    assert fitted_lines(FINDING, tmp_path, renew=True) == []
    # Both studies have the runs of 2**10.
    write_table(tmp_path / "large.parquet", [2**10, 2**12, 2**14])
    chinchilla, excess, _, comparison = fitted_lines(FINDING, tmp_path, renew=True)[2:]
    values = dict(re.findall(r"(\w+) = ([\d.]+) \[", chinchilla))
    expected = {"E": 2, "A": 10, "alpha": 0.5, "B": 10, "beta": 0.5}
    assert {name: float(value) for name, value in values.items()} == pytest.approx(expected, rel=0.01)
    assert chinchilla.endswith("| 0.000 | 0.000 |")
    # No run repeats its tokens: they say nothing about P.
    assert re.search(r"\| excess-1 \| .* P = .* \(at its bound\)", excess)
    assert re.search(
        r"RMSE of the log loss: \S+ [\d.]+, \S+ [\d.]+\. Chosen: (chinchilla|excess-1)\.$", comparison
    )


def test_fits_are_kept_until_a_table_changes(fitted_lines: Callable[..., list[str]], tmp_path: Path) -> None:
    finding = FINDING | {"fits": FINDING["fits"] | {"tables": ["small"], "laws": ["chinchilla"]}}
    write_table(tmp_path / "small.parquet", [2**6, 2**8, 2**10, 2**14])
    lines = fitted_lines(finding, tmp_path, renew=True)
    kept = json.loads((tmp_path / "fits.json").read_text())
    assert fitted_lines(finding, tmp_path, renew=False) == lines == kept["0"]["lines"]
    write_table(tmp_path / "small.parquet", [2**6, 2**8, 2**12, 2**14])
    with pytest.raises(SystemExit, match=r"fits\.json does not match the tables of finding 0"):
        fitted_lines(finding, tmp_path, renew=False)
