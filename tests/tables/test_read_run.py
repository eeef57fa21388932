"""Run folders as rows: what is read, and what damage costs."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from run_folders import write_run

from reptrain.config import RunConfig
from reptrain.runs.events import EventRecord
from reptrain.runs.folder import RunFolder
from reptrain.runs.metrics import ValidRecord
from reptrain.tables import (
    EVALUATION_COLUMNS,
    RUN_COLUMNS,
    evaluations_table,
    read_run,
    runs_table,
    write_parquet,
)
from reptrain.tables.losses import best_evaluation

CONFIG = RunConfig.model_validate(
    {
        "data": {"store": "s", "window_tokens": 64, "unique_tokens": 1024},
        "train": {"total_tokens": 8192},
        "model": {"vocab_size": 512},
    }
)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished and audited run."""
    return write_run(CONFIG, tmp_path / "one", exact=True).path


def test_row_has_tokens_losses_and_verdict(run: Path) -> None:
    row = read_run(run).row
    assert row["status"] == "done" and row["audit_verdict"] == "exact"
    assert (row["unique_tokens"], row["consumed_tokens"], row["planned_tokens"]) == (1024, 8192, 8192)
    assert (row["epochs"], row["repeats"], row["planned_epochs"]) == (8.0, 7.0, 8.0)
    # The losses of run_folders.LOSSES: the selection split is lowest at the second of three evaluations.
    assert (row["loss_select_best_nats"], row["loss_report_best_nats"], row["best_epoch"]) == (6.0, 6.2, 4.0)
    assert (row["loss_select_final_nats"], row["loss_report_final_nats"]) == (7.0, 7.4)
    assert row["gap_final_nats"] == pytest.approx(7.4 - 2.0)
    assert row["bits_per_byte_report_best"] == pytest.approx(3.1)
    assert (row["steps"], row["tokens_per_second"], row["train_seconds"]) == (3, 1000.0, 0.003)


def test_row_compares_the_averaged_weights_at_the_last_evaluation(run: Path) -> None:
    assert read_run(run).row.get("loss_report_average_nats") is None
    folder = RunFolder.open(run)
    last = [record for record in folder.metrics.records() if isinstance(record, ValidRecord)][-1]
    for step, nats in ((last.step - 1, 5.0), (last.step, 7.1)):
        changed = {"weights": "average", "set": "report", "step": step, "nats": nats}
        folder.metrics.append(last.model_copy(update=changed))
    row = read_run(run).row
    assert row["loss_report_average_nats"] == 7.1
    assert row["average_gain_nats"] == pytest.approx(7.4 - 7.1)
    assert row["loss_report_final_nats"] == 7.4


def test_row_has_sizes_and_flops_of_the_consumed_tokens(run: Path) -> None:
    from reptrain.sizes import count_parameters, train_flops_per_window

    row, count = read_run(run).row, count_parameters(CONFIG.model, 512)
    assert (row["parameters_total"], row["parameters_nonembedding"]) == (count.total, count.non_embedding)
    per_window = train_flops_per_window(CONFIG.model, 512, CONFIG.example_shape)
    assert row["train_flops"] == per_window * 8192 / 64


def test_vocabulary_of_the_environment_counts_where_the_store_is_gone(tmp_path: Path) -> None:
    config = RunConfig.model_validate({"data": {"store": "gone", "unique_tokens": 1024}})
    run = write_run(config, tmp_path / "one").path
    assert "parameters_total" not in read_run(run).row
    environment = json.loads((run / "environment.json").read_text()) | {"vocab_size": 300}
    (run / "environment.json").write_text(json.dumps(environment))
    assert read_run(run).row["parameters_total"] > 300


def test_every_value_has_a_column_and_the_tables_keep_it(run: Path, tmp_path: Path) -> None:
    reading = read_run(run)
    assert set(reading.row) <= {column.name for column in RUN_COLUMNS}
    assert set(reading.evaluations[0]) <= {column.name for column in EVALUATION_COLUMNS}
    write_parquet(runs_table([reading], ["data.unique_tokens", "optimizer.lr"]), tmp_path / "t" / "a.parquet")
    table = pq.read_table(tmp_path / "t" / "a.parquet")
    assert table["set.data.unique_tokens"].to_pylist() == [1024]
    assert str(table.schema.field("set.optimizer.lr").type) == "double"
    assert table["loss_report_best_nats"].to_pylist() == [6.2]
    assert b"report split" in table.schema.field("loss_report_best_nats").metadata[b"description"]
    assert evaluations_table([reading]).num_rows == 9


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([1, 2], "int64"),
        ([1, 0.5], "double"),
        ([True, None], "bool"),
        (["a", 3], "string"),
        ([[1], {"b": 2}], "string"),
        ([2**70, 1], "double"),
        ([None, None], "string"),
    ],
)
def test_settings_have_the_narrowest_type(run: Path, values: list[object], kind: str) -> None:
    readings = [read_run(run), read_run(run)]
    for reading, value in zip(readings, values, strict=True):
        reading.row["set.k"] = value
    assert str(runs_table(readings, ["k"]).schema.field("set.k").type) == kind


def test_best_evaluation_is_finite_and_after_the_first_step(tmp_path: Path) -> None:
    losses = {"select": [1.0, float("nan"), 7.0, float("-inf")]}
    folder = write_run(CONFIG, tmp_path / "one", losses=losses)
    best = best_evaluation(folder.metrics.records("valid"))
    assert best is not None and best.nats == 7.0


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe", b'{"exact": 3}', b"null\n", b"- a\n"])
@pytest.mark.parametrize(
    "name",
    [
        "plan.json", "config.yaml", "status.json", "environment.json", "audit.json", "metrics.jsonl",
        "events.jsonl",
    ],
)  # fmt: skip
def test_damage_is_a_status(run: Path, name: str, content: bytes) -> None:
    (run / name).write_bytes(content)
    row = read_run(run).row
    # An incomplete last line does not count, and any mapping is an environment.
    harmless = name.endswith(".jsonl") and not content.endswith(b"\n")
    harmless = harmless or ((name, content[:1]) == ("environment.json", b"{") and len(content) > 1)
    assert row["status"] == ("done" if harmless else "damaged")
    if row["status"] == "damaged":
        assert name in row["reason"]
    if name == "audit.json":
        # What does not depend on the file is kept.
        assert row["loss_report_best_nats"] == 6.2


TIMES = (
    b'{"event":"started","step":0,"detail":"","time":"%s"}\n'
    b'{"event":"done","step":0,"detail":"","time":"2026-01-01T00:00:00+00:00"}\n'
)


@pytest.mark.parametrize(
    ("name", "old", "new"),
    [
        ("events.jsonl", b"", TIMES % b"soon"),
        ("events.jsonl", b"", TIMES % b"2026-01-01"),
        ("metrics.jsonl", b'"tokens":8192', b'"tokens":%d' % 2**70),
        ("environment.json", b"{", b'{"world_size": "two", "gpu": ["a"], "vocab_size": true,'),
        ("plan.json", b'"batch_windows": 16', b'"batch_windows": 9223372036854775807'),
    ],
)
def test_strange_values_never_stop_the_table(run: Path, name: str, old: bytes, new: bytes) -> None:
    path = run / name
    content = path.read_bytes() if path.exists() else b""
    assert old in content
    path.write_bytes(content.replace(old, new, 1))
    reading = read_run(run)
    assert runs_table([reading]).num_rows == 1
    evaluations_table([reading])


def test_missing_files_are_damage_except_those_that_a_run_may_lack(run: Path) -> None:
    (run / "config.yaml").unlink()
    assert read_run(run).row["status"] == "damaged"
    assert read_run(run / "nothing").row["status"] == "damaged"


@pytest.mark.parametrize(
    ("audit", "verdict"),
    [
        ({"exact": True, "steps": 3}, "exact"),
        ({"exact": False, "as_planned": False}, "not exact"),
        ({"exact": False, "as_planned": True}, "as planned"),
        ({"exact": False, "problems": [{"message": "cannot be audited: no ledger"}]}, "cannot say"),
        ({"exact": False, "cannot_say": ["ledger.jsonl is missing"]}, "cannot say"),
        # The run has taken a step since.
        ({"exact": True, "steps": 2}, "not audited"),
        ({"exact": True, "steps": 2, "not_applied": {"num_skipped": 1}}, "exact"),
    ],
)
def test_audit_verdict(run: Path, audit: dict[str, object], verdict: str) -> None:
    (run / "audit.json").write_text(json.dumps(audit))
    assert read_run(run).row["audit_verdict"] == verdict


def test_a_run_whose_process_has_ended_is_killed_not_running(run: Path) -> None:
    def status(pid: int, host: str) -> str:
        record = {"state": "running", "pid": pid, "host": host, "time": "2026-01-01T00:00:00+00:00"}
        (run / "status.json").write_text(json.dumps(record))
        return str(read_run(run).row["status"])

    gone = 2**22 + 1
    assert status(os.getpid(), socket.gethostname()) == "running"
    assert status(gone, socket.gethostname()) == "killed"
    assert status(gone, "another-host") == "running"


def test_wall_seconds_and_cost_count_every_start(run: Path) -> None:
    folder = RunFolder.open(run)
    for event, time in [
        ("started", "00:00"),
        ("preempted", "01:00"),
        ("resumed", "05:00"),
        ("done", "05:30"),
    ]:
        folder.events.append(
            EventRecord(event=event, step=0, detail="", time=f"2026-01-01T{time}:00+00:00")  # type: ignore[arg-type]
        )
    row = read_run(run, usd_per_hour=2.0).row
    assert (row["wall_seconds"], row["cost_usd"]) == (5400.0, 3.0)
    folder.events.append(EventRecord(event="resumed", step=0, detail="", time="2026-01-01T07:00:00+00:00"))
    assert read_run(run).row["wall_seconds"] is None
