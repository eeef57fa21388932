"""Ledger and metrics: whole lines, typed records, cut back on resume."""

from __future__ import annotations

import json
import math
from hashlib import sha256

import pytest
from pydantic import ValidationError

from reptrain.errors import RunError
from reptrain.runs import Ledger, LedgerRecord, MetricsLog, TrainRecord, ValidRecord


def entry(step: int, *, applied: bool = True) -> LedgerRecord:
    return LedgerRecord(
        step=step,
        first_index=step * 4,
        windows=4,
        tokens=64,
        epoch=step // 3,
        applied=applied,
        digest=f"{step:016x}",
    )


def trained(step: int, loss: float = 2.5) -> TrainRecord:
    return TrainRecord(
        step=step,
        tokens=64 * (step + 1),
        input_tokens=0,
        target_tokens=64 * (step + 1),
        epoch=0.5,
        loss_nats=loss,
        lr=1e-3,
        grad_norm=1.0,
        step_ms=10.0,
        tokens_per_s=6400.0,
        tokens_per_s_per_device=3200.0,
    )


def scored(step: int) -> ValidRecord:
    return ValidRecord(
        step=step, tokens=64 * step, epoch=0.5, set="select", nats=3.0, accuracy=0.25, scored_tokens=640,
        raw_accuracy=0.25, raw_tokens=640, bits_per_byte=1.5,
    )  # fmt: skip


@pytest.fixture
def ledger(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    for step in range(4):
        ledger.append(entry(step))
    return ledger


@pytest.fixture
def metrics(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    for record in (scored(0), trained(0), trained(1), scored(2), trained(2), scored(3)):
        log.append(record)
    return log


def test_ledger_keeps_records_in_order_one_a_line(ledger):
    assert [record.step for record in ledger.records()] == [0, 1, 2, 3]
    lines = ledger.path.read_text().splitlines()
    previous = sha256(lines[2].encode()).hexdigest()[:32]
    assert json.loads(lines[3]) == entry(3).model_dump(exclude_none=True) | {"previous": previous}
    assert json.loads(lines[0])["previous"] == "0" * 32


def test_ledger_of_a_run_without_steps_is_empty(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    assert list(ledger.records()) == []
    ledger.cut(0)
    ledger.drop_half_line()
    ledger.sync()
    assert not ledger.path.exists()


def test_cut_drops_everything_beyond_a_size(ledger):
    size = len(b"".join(ledger.path.read_bytes().splitlines(keepends=True)[:2]))
    with ledger.path.open("ab") as file:
        file.write(b"\xff no record\n{half")
    ledger.cut(size)
    assert [record.step for record in ledger.records()] == [0, 1]
    ledger.append(entry(2, applied=False))
    assert [record.applied for record in ledger.records()] == [True, True, False]
    assert [path.name for path in ledger.path.parent.iterdir()] == ["ledger.jsonl"]


@pytest.mark.parametrize(
    "line",
    ['{"step": 4}', "not json", '{"step": "4"}', "", json.dumps({**entry(4).model_dump(), "digest": "12"})],
)
def test_records_names_the_line_that_is_none(ledger, line):
    with ledger.path.open("a") as file:
        file.write(f"{line}\n")
    with pytest.raises(RunError, match=r"ledger\.jsonl, line 5: must be a record"):
        list(ledger.records())


def test_half_a_line_is_no_record_and_can_be_cut_off(ledger):
    with ledger.path.open("a") as file:
        file.write('{"step": 4, "first_ind')
    again = Ledger(ledger.path)
    assert [record.step for record in again.records()] == [0, 1, 2, 3]
    with pytest.raises(RunError, match="must end with a complete line"):
        again.append(entry(4))
    again.drop_half_line()
    again.append(entry(4))
    assert [record.step for record in Ledger(ledger.path).records()] == [0, 1, 2, 3, 4]


def test_metrics_records_of_one_kind(metrics):
    assert [record.kind for record in metrics.records()] == [
        "valid",
        "train",
        "train",
        "valid",
        "train",
        "valid",
    ]
    assert [record.loss_nats for record in metrics.records("train")] == [2.5] * 3
    assert [record.step for record in metrics.records("valid")] == [0, 2, 3]


def test_metrics_keep_a_loss_that_is_not_finite(tmp_path):
    log = MetricsLog(tmp_path / "metrics.jsonl")
    log.append(trained(0, math.nan))
    assert json.loads(log.path.read_text())["loss_nats"] == "NaN"
    assert math.isnan(next(log.records("train")).loss_nats)


def test_records_are_typed_and_frozen():
    with pytest.raises(ValidationError):
        ValidRecord.model_validate({**scored(0).model_dump(), "set": "test"})
    with pytest.raises(ValidationError):
        entry(0).step = 1
