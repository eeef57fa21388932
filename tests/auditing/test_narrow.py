"""From a wrong digest to the wrong token or window, where there is a single fault."""

from __future__ import annotations

import numpy as np
import pytest
from audited_runs import UNIQUE, WINDOW, consumed, replaced, rewrite, trained

from reptrain.auditing.audit import audit
from reptrain.plan import Stream, Subset
from reptrain.plan.digest import step_digest, window_digest

STEP = 2
FIRST = 16


@pytest.fixture(params=["fixed", "shifted", "repacked"])
def run(request, store, tmp_path):
    return trained(store, tmp_path / "run", cut=request.param)


@pytest.fixture
def subset(store):
    return Subset.open(store, unique_tokens=UNIQUE)


def stream_of(run, subset):
    return Stream([subset], run.plan.mixture_plan().plans)


def spoilt(run, subset, spoil):
    """The one problem of a run whose step 2 passed through `spoil`."""
    rewrite(
        run, lambda records: replaced(records, STEP, digest=consumed(run, subset, STEP, spoil=spoil).digest)
    )
    report = audit(run.path)
    assert not report.exact and report.num_problems == 1, report.text()
    (problem,) = report.problems
    assert problem.step == STEP
    assert f"for global indices {FIRST} to {FIRST + 7}: the model saw other tokens; " in problem.message
    return problem


def place(run, row):
    """Start of a window of step 2 in the stream."""
    return int(run.plan.mixture_plan().locate(np.asarray([FIRST + row])).start[0])


def test_one_wrong_token_is_located(run, subset):
    before = []

    def wrong(tokens):
        before.append(int(tokens[5, 7]))
        tokens[5, 7] = 99 - tokens[5, 7]

    problem = spoilt(run, subset, wrong)
    position = place(run, 5) + 7
    assert problem.message.endswith(
        f"it saw token {99 - before[0]} at position {position} of the stream, where the store has {before[0]}"
    )
    assert (problem.index, problem.document) == (FIRST + 5, stream_of(run, subset).documents(position, 1)[0])


def test_two_exchanged_tokens_name_the_documents_of_the_step(run, subset):
    def swap(tokens):
        assert tokens[3, 7] != tokens[3, 8]
        tokens[3, [7, 8]] = tokens[3, [8, 7]]

    problem = spoilt(run, subset, swap)
    assert problem.message.endswith(
        "several tokens or windows differ, and the sum of 8 windows does not show which"
    )
    assert (problem.index, problem.document) == (FIRST, None)
    found = run.plan.mixture_plan().locate(np.arange(FIRST, FIRST + 8))
    all_of_step = dict.fromkeys(
        name
        for start, length in zip(found.start, found.length, strict=True)
        for name in stream_of(run, subset).documents(start, length)
    )
    assert len(all_of_step) > 8 and problem.candidates == tuple(all_of_step)[:8]
    assert f"in documents {problem.candidates[0]}, " in problem.text()


def test_two_exchanged_tokens_of_a_step_of_one_window_name_its_document(store, subset, tmp_path):
    run = trained(store, tmp_path / "run", batch=1)

    def swap(tokens):
        tokens[0, [7, 8]] = tokens[0, [8, 7]]

    rewrite(run, lambda records: replaced(records, 5, digest=consumed(run, subset, 5, spoil=swap).digest))
    (problem,) = audit(run.path).problems
    start = int(run.plan.mixture_plan().locate(np.asarray([5])).start[0])
    assert problem.document == stream_of(run, subset).documents(start, 1)[0]
    assert problem.text().startswith("step 5, global index 5, document ")


def digest_of(run, subset, index):
    """The digest of a step with the windows of these global indices."""
    found = run.plan.mixture_plan().locate(np.asarray(index, dtype=np.int64))
    tokens, length = stream_of(run, subset).tokens(found.start, found.length, WINDOW)
    return step_digest(window_digest(tokens, found.start, length))


def other_digest(run, subset, change):
    """The problem of step 2 if its digest is that of the windows changed by `change`."""
    digest = digest_of(run, subset, change(list(range(FIRST, FIRST + 8))))
    rewrite(run, lambda records: replaced(records, STEP, digest=digest))
    (problem,) = audit(run.path).problems
    return problem


def test_a_replaced_window_is_located(run, subset):
    problem = other_digest(run, subset, lambda index: [*index[:3], 40, *index[4:]])
    assert problem.message.endswith(f"tokens from position {place(run, 24)} came in its place")
    assert (
        problem.index == FIRST + 3
        and problem.document == stream_of(run, subset).documents(place(run, 3), 1)[0]
    )


def test_a_missing_window_is_located(run, subset):
    problem = other_digest(run, subset, lambda index: [*index[:3], *index[4:]])
    assert problem.message.endswith("its window is missing")
    assert problem.index == FIRST + 3


def test_a_repeated_window_is_located(run, subset):
    problem = other_digest(run, subset, lambda index: [*index, FIRST + 6])
    assert problem.message.endswith(f"tokens from position {place(run, 6)} came in addition")


def test_the_windows_of_another_step_are_recognized(run, subset):
    problem = other_digest(run, subset, lambda index: range(24, 32))
    assert problem.message.endswith("it saw the windows of step 3")


def test_a_step_without_windows_is_recognized(run, subset):
    assert other_digest(run, subset, lambda index: []).message.endswith("it saw no window at all")


def test_of_several_places_that_fit_the_first_is_named(store, subset, tmp_path):
    # A step has four times as many windows as there are different ones, so each occurs several times.
    run = trained(store, tmp_path / "run", order="mixed", cut="fixed", batch=84, budget="8epochs")
    records = list(run.ledger.records())
    start_N = run.plan.mixture_plan().locate(np.arange(84)).start
    last = int(max(np.flatnonzero(start_N == start_N[0])))
    other = int(np.flatnonzero(start_N != start_N[0])[0])
    assert last > 40
    for index, message in (
        ([*range(last), *range(last + 1, 84)], "its window is missing"),
        ([*range(last), other, *range(last + 1, 84)], "came in its place"),
    ):
        digest = digest_of(run, subset, index)
        rewrite(run, lambda _, digest=digest: replaced(records, 0, digest=digest))
        (problem,) = audit(run.path).problems
        assert problem.message.endswith(message)
        assert problem.index == 0
