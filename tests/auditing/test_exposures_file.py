"""The file of every token's count: read back, it is what the audit counted."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from audited_runs import UNIQUE, rewrite, trained
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from memory_store import MemoryStore
from typer.testing import CliRunner

from reptrain.auditing import exposures_file
from reptrain.auditing.audit import audit
from reptrain.auditing.cuts import Cuts
from reptrain.auditing.exposures import Exposures
from reptrain.auditing.exposures_file import EXPOSURES_SCHEMA, write_exposures
from reptrain.cli import app
from reptrain.errors import RunError
from reptrain.plan import Stream, Subset


def read(path):
    """All counts of all rows, and the rows without them."""
    with pa.memory_map(str(path)) as file:
        reader = pa.ipc.open_file(file)
        assert reader.schema == EXPOSURES_SCHEMA
        batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
        counts = [batch.column("counts").values.to_numpy(zero_copy_only=True).copy() for batch in batches]
        table = pa.Table.from_batches(batches)
        rows = list(
            zip(
                table["source"].to_pylist(),
                table["document"].to_pylist(),
                table["position"].to_pylist(),
                (len(values) for values in table["counts"].to_pylist()),
                strict=True,
            )
        )
    return np.concatenate(counts), rows


@pytest.mark.parametrize("cut", ["fixed", "shifted", "repacked"])
def test_exposures_file_sums_up_to_what_was_consumed(store, tmp_path, cut):
    folder = trained(store, tmp_path / "run", cut=cut)
    # One step is left out, another one comes twice.
    rewrite(folder, lambda records: [*records[:2], *records[3:5], *records[4:]])
    path = tmp_path / "exposures.arrow"
    report = audit(folder.path, exposures=path)
    counts, rows = read(path)
    assert counts.dtype == np.uint32 and counts.size == UNIQUE
    assert int(counts.sum()) == report.tokens_consumed
    assert {int(n): int((counts == n).sum()) for n in np.unique(counts)} == report.exposures
    subset = Subset.open(store, unique_tokens=UNIQUE)
    plan = folder.plan.mixture_plan()
    stream = Stream([subset], plan.plans).parts[0]
    # Position in the subset of each token of the stream.
    places = np.arange(UNIQUE)
    if cut == "repacked":
        places = np.concatenate([np.argsort(stream.in_epoch(np.arange(UNIQUE), e)) for e in range(3)])
    plain = np.zeros(UNIQUE, dtype=int)
    for record in folder.ledger.records():
        found = plan.locate(np.arange(record.first_index, record.first_index + record.windows))
        for start, length in zip(found.start, found.length, strict=True):
            plain[places[start : start + length]] += 1
    assert counts.tolist() == plain.tolist()
    lengths = [length for *_, length in rows]
    assert [document for _, document, *_ in rows] == subset.documents(0, UNIQUE)
    assert [position for *_, position, _ in rows] == np.cumsum([0, *lengths[:-1]]).tolist()
    assert {source for source, *_ in rows} == {"data"}


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.lists(st.integers(1, 12), min_size=1, max_size=8), min_size=1, max_size=3),
    st.integers(1, 20),
    st.lists(st.tuples(st.integers(0, 300), st.integers(1, 9)), max_size=10),
)
def test_write_exposures_cuts_batches_at_documents(tmp_path, lengths, batch, windows):
    subsets = []
    for number, documents in enumerate(lengths):
        folder = tmp_path / str(number)
        folder.mkdir(exist_ok=True)
        subsets.append(Subset.open(MemoryStore(folder, documents)))
    stream = Stream(subsets)
    names = [f"source {number}" for number in range(len(lengths))]
    counted, plain = (
        Exposures([*stream.starts.tolist(), stream.unique_tokens]),
        np.zeros(stream.unique_tokens, int),
    )
    for start, length in windows:
        start %= stream.unique_tokens
        source = int(stream.source_of(start))
        length = min(length, int(stream.starts[source]) + subsets[source].unique_tokens - start)
        counted.add(Cuts.of(np.asarray([start]), np.asarray([length])))
        plain[start : start + length] += 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(exposures_file, "_BATCH_TOKENS", batch)
        write_exposures(tmp_path / "x.arrow", counted.stretches(), stream, names)
    counts, rows = read(tmp_path / "x.arrow")
    assert counts.tolist() == plain.tolist()
    # A row is a document, or part of one that is longer than a batch.
    expected = [
        (name, subset.documents(position, 1)[0])
        for name, subset in zip(names, subsets, strict=True)
        for position in range(subset.unique_tokens)
    ]
    assert [(source, document) for source, document, _, length in rows for _ in range(length)] == expected
    pieces = [length for *_, length in rows]
    whole = sum(len(documents) for documents in lengths)
    assert len(pieces) == whole or max(max(documents) for documents in lengths) > batch


def test_exposures_command_replaces_its_own_file_and_refuses_another(store, tmp_path):
    folder = trained(store, tmp_path / "run")
    path = tmp_path / "exposures.arrow"
    for _ in range(2):
        done = CliRunner().invoke(app, ["audit", str(folder.path), "--exposures", str(path)])
        assert done.exit_code == 0, done.output
    before = path.read_bytes()
    other = tmp_path / "notes.txt"
    other.write_text("mine")
    shard = next(store.path.glob("train-*.arrow"))
    for taken in (other, shard, tmp_path):
        with pytest.raises(RunError, match="must be a new file, or one that an earlier audit wrote"):
            audit(folder.path, exposures=taken)
    with pytest.raises(RunError, match="must be in a folder that exists"):
        audit(folder.path, exposures=tmp_path / "nowhere" / "x.arrow")
    assert other.read_text() == "mine" and path.read_bytes() == before


def test_exposures_file_that_cannot_be_written_leaves_none(store, tmp_path, monkeypatch, small_disk):
    folder = trained(store, tmp_path / "run")
    disk = small_disk(4)
    with pytest.raises(RunError, match="No space left"):
        audit(folder.path, exposures=disk / "exposures.arrow")
    assert list(disk.iterdir()) == []
