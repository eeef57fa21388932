"""The studies of configs/studies/mini: each can be planned, and its runs can answer each of its claims."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from run_folders import FakeStore

from reptrain.analysis.claims import judge
from reptrain.config.load import read_yaml
from reptrain.sizes import train_flops_per_window
from reptrain.sizes.parameters import count_parameters
from reptrain.study.build import build_graph
from reptrain.study.graph import Node
from reptrain.study.result_claims import entry_of
from reptrain.study.schema import StudyConfig, load_study
from reptrain.tables import RunReading, runs_table

MINI = Path(__file__).parents[2] / "configs" / "studies" / "mini"
STUDIES = sorted(path for path in MINI.glob("*.yaml") if path.name != "base.yaml")
VOCABULARY = 2048
H100_FLOPS = 989e12
"""In bf16, without sparsity, a second."""
LOSSES = [
    f"{loss}_{checkpoint}{unit}"
    for loss, unit in (("loss_report", "_nats"), ("loss_select", "_nats"), ("bits_per_byte_report", ""))
    for checkpoint in ("final", "best")
]


@pytest.fixture(autouse=True)
def no_stores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reptrain.study.preflight.open_store", lambda path, *, named_by: FakeStore())


def training_flops(nodes: list[Node]) -> float:
    flops = 0.0
    for config in (node.run for node in nodes):
        budget = config.train.total_tokens
        assert budget is not None and budget.tokens is not None
        windows = budget.tokens / config.data.window_tokens
        flops += windows * train_flops_per_window(config.model, VOCABULARY, config.example_shape)
    return flops


def made_table(study: StudyConfig, nodes: list[Node]) -> pa.Table:
    """A table of finished runs with made-up losses: 1 plus noise of 0.01."""
    draw = np.random.default_rng(0)
    results = [claim.metric for claim in study.claims if entry_of(study, claim.metric)]
    readings = []
    for node in nodes:
        row: dict[str, Any] = {
            "study": study.name, "arm": node.arm, "run": node.name, "seed": node.run.seed,
            "cluster": node.cluster, "status": "done", "audit_verdict": "exact", "numerics_version": 2,
            "measure": "one", "expert_load": 1.0,
            "parameters_nonembedding": count_parameters(node.run.model, VOCABULARY).non_embedding,
            **{f"set.{key}": value for key, value in node.values.items()},
            **dict.fromkeys([*LOSSES, *results], 1 + draw.normal(0, 0.01)),
            "average_gain_nats": draw.normal(0, 0.01),
        }  # fmt: skip
        readings.append(RunReading(row))
    return runs_table(readings, [*dict.fromkeys(key for node in nodes for key in node.values)], results)


@pytest.mark.parametrize(
    ("path", "scale"),
    [(path, scale) for path in STUDIES for scale in (None, *read_yaml(path)["scales"])],
    ids=lambda value: getattr(value, "stem", value),
)
def test_the_runs_of_a_study_answer_its_claims(path: Path, scale: str | None, tmp_path: Path) -> None:
    study = load_study(path, scale=scale)
    trainings = build_graph(study, tmp_path).trainings
    if scale == "gpu":
        assert training_flops(trainings) < 0.125 * H100_FLOPS * 1800, "more than half an hour at 12 % MFU"
    nodes = [node for node in trainings if node.role != "tune"]
    assert nodes
    if not study.claims:
        return
    for result in judge(made_table(study, nodes), study.claims, num_draws=99):
        judged = result.judged
        assert judged.seeds_used == result.claim.seeds, (judged.reason, judged.excluded)
        assert judged.verdict != "not run", judged
