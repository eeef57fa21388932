"""Which documents stay, and in which split."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reptrain.text.documents import Fields, Slice, read_slice
from reptrain.text.sources import expand_sources
from reptrain.tokenization.jobs import number_lines, plan_jobs
from reptrain.tokenization.scan import DUPLICATE, EMPTY, KEPT, Scan, decide
from reptrain.tokenization.strata import Strata
from reptrain.tokenization.work import Work, write_array

LARGEST = 2**64 - 1
hashes = st.sampled_from([0, 1, 2**32, 2**62, 2**63, LARGEST - 1, LARGEST])
jobs_of_hashes = st.lists(st.lists(st.none() | st.tuples(hashes, hashes), max_size=8), min_size=1, max_size=5)


@settings(max_examples=50, deadline=None)
@given(jobs=jobs_of_hashes, bucket=st.sampled_from([1, 3, 1000]))
def test_decide_keeps_the_first_of_equal_hashes(
    jobs: list[list[tuple[int, int] | None]], bucket: int
) -> None:
    seen: set[tuple[int, int]] = set()
    expected = []
    for job in jobs:
        for document in job:
            if document is None:
                expected.append(EMPTY)
            elif document in seen:
                expected.append(DUPLICATE)
            else:
                seen.add(document)
                # Half is held out: below a quarter of the range is select, below a half is report.
                low = document[1]
                expected.append(KEPT + (1 if low < 2**62 else 2 if low < 2**63 else 0))
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr("reptrain.tokenization.scan._BUCKET_DOCUMENTS", bucket)
        patch.setattr("os.fsync", lambda handle: None)
        work = Work(Path(folder))
        work.folder.mkdir()
        for number, job in enumerate(jobs):
            rows = sorted((*document, index) for index, document in enumerate(job) if document)
            write_array(work.hashes(number), np.array(rows, np.uint64).reshape(-1, 3).T.copy())
        # As in a large stratum.
        patch.setattr("reptrain.tokenization.strata._LARGE_HELD_OUT", 0)
        scans = [Scan(len(job), 0, (), (len(job),), "") for job in jobs]
        strata = Strata(
            1, tuple(np.array([len(job)]) for job in jobs), tuple(np.zeros(1, np.int64) for _ in jobs)
        )
        counts = decide(work, scans, strata, dedup="exact", held_out_fraction=0.5)
        found = np.concatenate([np.load(work.statuses(number)) for number in range(len(jobs))])
    assert found.tolist() == expected
    assert counts.tolist() == np.bincount(expected, minlength=KEPT + 3).tolist()


def test_plan_jobs_covers_every_byte_once_and_keeps_the_order(
    tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("b/2.txt", "b/10.txt", "a.txt", "c.jsonl.gz"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x" * 1500)
    monkeypatch.setattr("reptrain.tokenization.jobs._SMALLEST_JOB_BYTES", 1_000)
    files = expand_sources([corpus, tmp_path])
    jobs = plan_jobs(files, Fields())
    slices = [part for job in jobs for part in job.slices]
    assert [job.index for job in jobs] == list(range(len(jobs)))
    assert sum(job.size for job in jobs) == sum(file.size for file in files)
    names = [file.name for file in files]
    assert names == ["web.jsonl", "a.txt", "b/10.txt", "b/2.txt", "c.jsonl.gz"]
    assert list(dict.fromkeys(part.name for part in slices)) == names
    assert all(part.first_line is None for part in slices if part.start)
    counts = [[part.stop - part.start for part in job.slices] for job in jobs]
    numbered = [part for job in number_lines(jobs, counts) for part in job.slices]
    assert all(part.first_line == 1 + part.start for part in numbered)


def test_read_slice_counts_no_lines_for_names_that_are_not_known_yet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def counted(*_: object) -> int:
        raise AssertionError("the file was read once more")

    path = tmp_path / "web.jsonl"
    path.write_text('{"text": "a"}\n{"text": "b"}\n{"text": "c", "id": "own"}\n')
    monkeypatch.setattr("reptrain.text.documents.count_newlines", counted)
    part = Slice(path, path.name, "web", 14, path.stat().st_size, first_line=None)
    assert [document.id for document in read_slice(part, Fields())] == ["web.jsonl:?", "own"]


def test_plan_jobs_makes_few_jobs_of_many_bytes(corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reptrain.tokenization.jobs._SMALLEST_JOB_BYTES", 10)
    monkeypatch.setattr("reptrain.tokenization.jobs._MOST_JOBS", 7)
    assert 5 <= len(plan_jobs(expand_sources([corpus]), Fields())) <= 8
