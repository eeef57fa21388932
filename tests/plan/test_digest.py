"""The digest: whatever a loader may do wrong changes it, whatever is allowed does not."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reptrain.plan.digest import (
    place_base,
    step_digest,
    sum_of_window_digest,
    token_hash,
    token_of_hash,
    window_digest,
    window_digest_of_sum,
)

seeds = st.integers(0, 2**32 - 1)
WRAP = 2**64


def digest(tokens: list[int], start: int = 0) -> int:
    return int(window_digest(np.asarray([tokens]), np.asarray([start]), np.asarray([len(tokens)]))[0])


def by_the_formula(tokens: list[int], start: int) -> int:
    """The docstring's formula on Python's integers."""

    def mix(x):
        x ^= x >> 30
        x = x * 0xBF58476D1CE4E5B9 % WRAP
        x ^= x >> 27
        x = x * 0x94D049BB133111EB % WRAP
        return x ^ x >> 31

    def m(x):
        return mix(x * 0x9E3779B97F4A7C15 % WRAP)

    gamma = 0x9E3779B97F4A7C15
    total = sum(mix((token + (start + place + 1) * gamma) % WRAP) for place, token in enumerate(tokens))
    return mix((total + m((m(start) + len(tokens)) % WRAP)) % WRAP) if tokens else 0


@given(st.lists(st.integers(0, 2**32 - 1), max_size=20), st.integers(0, 2**62))
def test_window_digest_is_the_written_formula(tokens, start):
    assert digest(tokens, start) == by_the_formula(tokens, start)


@given(st.integers(1, 12), st.integers(1, 40), seeds)
def test_step_digest_does_not_depend_on_rows_padding_or_micro_batches(rows, width, seed):
    rng = np.random.default_rng(seed)
    tokens, start = rng.integers(0, 2048, (rows, width)), rng.integers(0, 10**6, rows)
    length = rng.integers(0, width + 1, rows)
    whole = step_digest(window_digest(tokens, start, length))
    order = rng.permutation(rows)
    cut = int(rng.integers(0, rows + 1))
    padded = np.pad(tokens[order], ((0, 0), (0, 3)), constant_values=9)
    parts = [
        window_digest(padded[part], start[order][part], length[order][part])
        for part in (slice(None, cut), slice(cut, None))
    ]
    assert step_digest(np.concatenate(parts)) == whole


@given(st.lists(st.integers(0, 2047), min_size=1, max_size=40), st.data())
def test_window_digest_finds_one_wrong_token(tokens, data):
    place = data.draw(st.integers(0, len(tokens) - 1))
    other = data.draw(st.integers(0, 2047).filter(lambda token: token != tokens[place]))
    assert digest([*tokens[:place], other, *tokens[place + 1 :]]) != digest(tokens)


@given(st.lists(st.integers(0, 2047), min_size=2, max_size=40, unique=True), st.data())
def test_window_digest_finds_two_exchanged_tokens(tokens, data):
    first, second = data.draw(
        st.lists(st.sampled_from(range(len(tokens))), min_size=2, max_size=2, unique=True)
    )
    exchanged = list(tokens)
    exchanged[first], exchanged[second] = tokens[second], tokens[first]
    assert digest(exchanged) != digest(tokens)


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=20), st.integers(0, 2**60))
def test_token_of_hash_and_sum_of_window_digest_are_inverses(tokens, position):
    base = place_base(position + np.arange(len(tokens)))
    hashed = token_hash(np.asarray(tokens), base)
    assert token_of_hash(hashed, base).tolist() == tokens
    start, length = np.asarray([position]), np.asarray([len(tokens)])
    total = hashed.sum(keepdims=True)
    digest = window_digest_of_sum(total, start, length)
    assert sum_of_window_digest(digest, start, length) == total


@pytest.mark.parametrize(
    ("position", "base"),
    # Positions at which the sum of base and token wraps: (p + 1) * G is 2**64 - 1 and 2**64 - 4.
    [(1018231460777725122, 2**64 - 1), (4072925843110900491, 2**64 - 4)],
)
@pytest.mark.parametrize("token", [0, 3, 1000, 2**32 - 1])
def test_token_of_hash_inverts_a_sum_that_wraps(position, base, token):
    place = place_base(np.asarray([position]))
    assert int(place[0]) == base == (position + 1) * 0x9E3779B97F4A7C15 % WRAP
    hashed = token_hash(np.asarray([token]), place)
    assert int(token_of_hash(hashed, place)[0]) == token


def test_token_hash_of_places_far_apart_differs():
    """Multiples of the golden gamma are far apart, so that no token can replace a position."""
    base = place_base(np.arange(1 << 20))
    gaps = np.diff(np.sort(base))
    assert int(gaps.min()) > 2**32


def test_window_digest_depends_on_start_and_length():
    assert (
        len({digest([5, 6]), digest([5, 6], start=1), digest([5]), digest([5, 6, 0]), digest([0, 5, 6])}) == 5
    )


def test_window_digest_of_a_masked_row_is_zero():
    assert window_digest(np.asarray([[7, 7]]), np.asarray([3]), np.asarray([0])).tolist() == [0]


def test_step_digest_detects_tokens_swapped_between_windows():
    tokens = np.asarray([[1, 2], [3, 4]])
    start, length = np.asarray([0, 2]), np.asarray([2, 2])
    swapped = np.asarray([[3, 2], [1, 4]])
    assert step_digest(window_digest(tokens, start, length)) != step_digest(
        window_digest(swapped, start, length)
    )


def test_window_digest_bits_are_even():
    """Each bit is set in half of the digests of windows that differ in one small number."""
    tokens = np.arange(20_000)[:, None]
    digests = window_digest(tokens, np.zeros(20_000, int), np.ones(20_000, int))
    set_bits = ((digests[:, None] >> np.arange(64, dtype=np.uint64)) & np.uint64(1)).mean(axis=0)
    assert np.abs(set_bits - 0.5).max() < 5 * 0.5 / np.sqrt(20_000)
    assert np.unique(digests).size == 20_000


def test_step_digest_is_frozen():
    """Ledgers of sealed runs hang on this value."""
    tokens = np.asarray([[1, 2, 3], [4, 5, 0]])
    assert step_digest(window_digest(tokens, np.asarray([0, 3]), np.asarray([3, 2]))) == "74c64ddaf2fbcf62"
