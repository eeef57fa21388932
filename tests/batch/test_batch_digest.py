import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from reptrain.batch.collate import MicroBatch
from reptrain.batch.digest import batch_digest
from reptrain.plan.digest import window_digest


def make(tokens: np.ndarray, start: np.ndarray, length: np.ndarray) -> MicroBatch:
    rows = np.arange(len(start))
    return MicroBatch(*(torch.from_numpy(array) for array in (tokens, length, start, rows)))


@given(
    rows=st.integers(1, 5),
    width=st.integers(1, 40),
    vocab=st.sampled_from([2, 2048, 2**31]),
    seed=st.integers(0, 2**32 - 1),
)
def test_batch_digest_equals_that_of_the_audit(rows: int, width: int, vocab: int, seed: int) -> None:
    draw = np.random.default_rng(seed)
    tokens = draw.integers(0, vocab, (rows, width))
    length, start = draw.integers(0, width + 1, rows), draw.integers(0, 2**50, rows)
    expected = int(window_digest(tokens, start, length).sum(dtype=np.uint64))
    assert batch_digest(make(tokens, start, length)).item() % 2**64 == expected


def test_batch_digest_changes_with_one_token() -> None:
    tokens, start, length = np.arange(12).reshape(2, 6), np.array([0, 6]), np.array([6, 6])
    before = batch_digest(make(tokens, start, length)).item()
    tokens[1, 2] += 1
    assert batch_digest(make(tokens, start, length)).item() != before
