"""The spans and rows that C makes equal those of NumPy and torch bit for bit."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made_batches import windows

from reptrain import random
from reptrain.batch.objectives import NoisePlaces, spans, spans_native
from reptrain.batch.objectives.rows import Rows

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")

SENTINELS, EOS = tuple(range(599, 399, -1)), 1


@st.composite
def noisy_windows(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray, int]:
    """Lengths, numbers of hidden tokens and of spans, and the width."""
    rows = draw(
        st.lists(st.tuples(st.integers(0, 300), st.floats(0, 1), st.floats(0, 1)), min_size=1, max_size=5)
    )
    length = np.array([row[0] for row in rows])
    noise = np.array([int(fraction * tokens) for tokens, fraction, _ in rows])
    most = np.minimum(np.minimum(noise, length - noise), len(SENTINELS))
    counts = np.array([int(row[2] * spans) for row, spans in zip(rows, most, strict=True)])
    return length, noise, counts, max(1, int(length.max())) + draw(st.integers(0, 9))


def places(length: np.ndarray, epoch: int) -> NoisePlaces:
    zeros = np.zeros_like(length)
    return NoisePlaces(zeros, zeros + epoch, np.arange(len(length)) * 1000, length)


@given(noisy_windows(), st.integers(0, 2**40))
def test_spans_in_c_equal_those_in_numpy(
    case: tuple[np.ndarray, np.ndarray, np.ndarray, int], epoch: int
) -> None:
    length, noise, counts, width = case
    at = places(length, epoch)
    keys = [at.key(7, purpose, frozen=False) for purpose in ("spans kept", "spans hidden")]
    in_c = spans_native.draw_spans(length, noise, counts, *keys, width=width)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(spans_native, "_library", lambda: None)
        in_numpy = spans.draw_spans(at, noise, counts, noise_seed=7, frozen=False, width=width)
    assert in_c is not None and in_c.dtype == in_numpy.dtype
    assert np.array_equal(in_c, in_numpy)


def test_a_long_window_is_cut_at_the_same_places(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bucket of draws has many of them in a long window, so their order within it matters."""
    length = np.array([20_000])
    at = places(length, 3)
    arguments = (at, np.array([9_000]), np.array([4_000]))
    in_c = spans.draw_spans(*arguments, noise_seed=1, frozen=True, width=20_000)
    monkeypatch.setattr(spans_native, "_library", lambda: None)
    assert np.array_equal(in_c, spans.draw_spans(*arguments, noise_seed=1, frozen=True, width=20_000))


def hidden(tokens: torch.Tensor, noise: np.ndarray, lengths: list[int], **settings: int | None) -> Rows:
    widths = {"document_eos_id": None, "input_width": 64, "target_width": 64} | settings
    batch = windows(tokens, lengths, {"is_noise_BL": noise})
    return spans.hide_spans(batch, sentinel_ids=SENTINELS, eos_id=EOS, **widths)  # type: ignore[arg-type]


@pytest.mark.parametrize("document_eos_id", [None, EOS, 0])
@pytest.mark.parametrize("seed", range(4))
def test_rows_in_c_equal_those_in_torch(
    document_eos_id: int | None, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = np.random.default_rng(seed)
    # Few ids, so that documents end everywhere; noise anywhere, also at both ends of a row and in padding.
    tokens = torch.from_numpy(draw.integers(0, 5, (6, 31)))
    noise = draw.random((6, 31)) < [[0.0], [0.2], [0.5], [0.9], [1.0], [0.3]]
    lengths = [31, 31, 17, 30, 1, 0]
    in_c = hidden(tokens, noise, lengths, document_eos_id=document_eos_id)
    monkeypatch.setattr(spans_native, "_library", lambda: None)
    in_torch = hidden(tokens, noise, lengths, document_eos_id=document_eos_id)
    for name, ours, theirs in zip(Rows._fields, in_c, in_torch, strict=True):
        assert ours.dtype == theirs.dtype and torch.equal(ours, theirs), name


@pytest.mark.parametrize(("input_width", "target_width"), [(20, 64), (64, 20), (3, 64), (64, 3)])
def test_rows_that_do_not_fit_are_refused_as_in_torch(input_width: int, target_width: int) -> None:
    tokens = torch.arange(10, 50).reshape(1, 40)
    noise = (np.arange(40) // 4 % 2 == 1)[None]
    with pytest.raises(RuntimeError, match="index"):
        hidden(tokens, noise, [40], input_width=input_width, target_width=target_width)


def test_more_spans_than_sentinels_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = torch.arange(1000, 1500).reshape(1, 500)
    noise = (np.arange(500) % 2 == 1)[None]
    with pytest.raises(IndexError):
        hidden(tokens, noise, [500], input_width=600, target_width=600)


def test_counts_that_do_not_fit_are_left_to_numpy() -> None:
    key = random.key(0, "spans kept", np.arange(1))
    for length, noise in ((9, 3), (5, 6), (5, -1)):
        counts = (np.array([length]), np.array([noise]), np.array([1]))
        assert spans_native.draw_spans(*counts, key, key, width=8) is None
