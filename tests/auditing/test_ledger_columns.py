"""The ledger as columns: every record, in its order, whatever the numbers."""

from __future__ import annotations

import pytest

from reptrain.auditing import ledger_columns
from reptrain.auditing.ledger_columns import Columns, column_chunks
from reptrain.runs import LedgerRecord


def record(step: int, **fields) -> LedgerRecord:
    values = {"step": step, "first_index": 8 * step, "windows": 8, "tokens": 300, "epoch": 0, "applied": True}
    return LedgerRecord.model_validate({**values, "digest": f"{step % 2**64:016x}", **fields})


@pytest.mark.parametrize("block", [1, 3, 100])
@pytest.mark.parametrize("size", [1, 2, 7, 50])
def test_column_chunks_hold_every_record_in_order(monkeypatch, block, size):
    monkeypatch.setattr(ledger_columns, "_BLOCK", block)
    chunks = list(column_chunks(map(record, range(20)), (), size))
    assert [step for chunk in chunks for step in chunk.step.tolist()] == list(range(20))
    assert [int(digest) for chunk in chunks for digest in chunk.digest] == list(range(20))
    assert all(chunk.step.size >= min(size, 20 - chunk.step[0]) for chunk in chunks)


def test_columns_hold_shares_by_source():
    shares = {"b": {"windows": 3, "tokens": 48, "epoch": 1}}
    columns = Columns.of([record(0), record(1, sources=shares)], ["a", "b"])
    assert columns.shares.tolist() == [[[-1] * 3, [-1] * 3], [[-1] * 3, [3, 48, 1]]]


def test_columns_hold_a_number_beyond_64_bits_as_the_largest():
    columns = Columns.of([record(10**30, tokens=2**63), record(5)])
    assert columns.step.tolist() == [2**62, 5]
    assert columns.tokens.tolist() == [2**62, 300]
