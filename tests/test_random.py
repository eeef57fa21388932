"""The host's random function: published answers, a frozen layout, permutations and their statistics."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reptrain import random, random_native

seeds = st.integers(0, 2**63 - 1)
sizes = st.one_of(st.integers(1, 300), st.integers(4080, 4110), st.sampled_from([2**14, 20_000]))


def words(text: str) -> tuple[np.ndarray, ...]:
    return tuple(np.asarray(int(word, 16), dtype=np.uint64) for word in text.split())


def excess(counts: np.ndarray) -> float:
    """Chi-squared of counts that should be equal, in standard deviations above its mean."""
    expected = counts.sum() / counts.size
    freedom = counts.size - 1
    return (((counts - expected) ** 2 / expected).sum() - freedom) / math.sqrt(2 * freedom)


@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [
        (
            "00000000 00000000 00000000 00000000",
            "00000000 00000000",
            "6627e8d5 e169c58d bc57ac4c 9b00dbd8",
        ),
        (
            "ffffffff ffffffff ffffffff ffffffff",
            "ffffffff ffffffff",
            "408f276d 41c83b0e a20bc7c6 6d5451fd",
        ),
        (
            "243f6a88 85a308d3 13198a2e 03707344",
            "a4093822 299f31d0",
            "d16cfe09 94fdcceb 5001e420 24126ea1",
        ),
    ],
)
def test_philox4x32_gives_the_known_answers_of_random123(counter, key, answer):
    assert random.philox4x32(words(counter), words(key)) == words(answer)


def test_mix_gives_the_known_answers_of_splitmix64():
    """The first outputs of the generator started at 1234567, as its reference code prints them."""
    states = (1234567 + np.arange(1, 6, dtype=np.uint64) * np.uint64(random.GAMMA)).astype(np.uint64)
    expected = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert random.mix(states).tolist() == expected


def test_layout_is_frozen():
    """Plans of sealed runs hang on these values: a change here makes every old run another."""
    key = random.key(7, "order", 3)
    assert int(key) == 3038653999522392975
    assert random.uint64(key, np.arange(2)).tolist() == [3948316934929542903, 4976385630847451100]
    assert random.permute(np.arange(6), 6, key).tolist() == [1, 2, 5, 0, 4, 3]
    assert random.permute(np.asarray([0, 2**61]), 2**62, key).tolist() == [
        1230393388346159815,
        3507015331531275864,
    ]


def test_key_separates_seed_purpose_and_parts():
    keys = [
        random.key(0, "order"),
        random.key(1, "order"),
        random.key(0, "cut"),
        random.key(0, "order", 0),
        random.key(0, "order", 1),
        random.key(0, "order", 0, 0),
        random.key(0, "order", 0, 1),
        random.key(0, "order", 1, 0),
        random.key(0, "order", 2**32),
    ]
    assert len({int(key) for key in keys}) == len(keys)


def test_key_of_an_array_is_the_keys_of_its_elements():
    parts = np.arange(5)
    assert random.key(3, "order", parts).tolist() == [int(random.key(3, "order", int(p))) for p in parts]


@given(seeds, st.lists(st.integers(0, 2**62), min_size=1, max_size=20))
def test_uint64_is_a_function_of_the_counter_alone(seed, counters):
    key = random.key(seed, "noise")
    together = random.uint64(key, np.asarray(counters))
    assert together.tolist() == [int(random.uint64(key, counter)) for counter in counters]


def test_draws_are_uniform_and_uncorrelated():
    key = random.key(0, "noise")
    numbers = random.uniform(key, np.arange(2**16))
    assert numbers.min() >= 0 and numbers.max() < 1
    assert excess(np.histogram(numbers, 256, (0, 1))[0]) < 4
    assert abs(np.corrcoef(numbers[:-1], numbers[1:])[0, 1]) < 4 / 256
    neighbor = random.uniform(random.key(1, "noise"), np.arange(2**16))
    assert abs(np.corrcoef(numbers, neighbor)[0, 1]) < 4 / 256


def test_below_draws_every_value_equally_often():
    drawn = random.below(7, random.key(0, "cut"), np.arange(70_000))
    assert set(drawn.tolist()) == set(range(7))
    assert excess(np.bincount(drawn)) < 4


def test_uint32_is_the_low_half():
    key = random.key(0, "noise")
    low = random.uint64(key, np.arange(4)) % np.uint64(2**32)
    drawn = random.uint32(key, np.arange(4))
    assert drawn.dtype == np.uint32 and (drawn == low).all()


@given(sizes, seeds)
def test_permute_is_a_bijection(n, seed):
    image = random.permute(np.arange(n), n, random.key(seed, "order"))
    assert (np.sort(image) == np.arange(n)).all()


@given(st.integers(1, 2**62), seeds, st.data())
def test_permute_stays_inside_and_unpermute_undoes_it(n, seed, data):
    indices = np.asarray(data.draw(st.lists(st.integers(0, n - 1), min_size=1, max_size=10)))
    key = random.key(seed, "order")
    image = random.permute(indices, n, key)
    assert image.min() >= 0 and image.max() < n
    assert (random.unpermute(image, n, key) == indices).all()


@given(st.integers(1, 5000), seeds)
def test_permute_takes_a_key_for_each_index(n, seed):
    keys = random.key(seed, "order", np.arange(4))
    index = np.asarray([0, n - 1, n // 2, n // 3])
    together = random.permute(index, n, keys)
    assert together.tolist() == [int(random.permute(i, n, k)) for i, k in zip(index, keys, strict=True)]


@pytest.mark.parametrize("n", range(2, 7))
def test_permute_reaches_every_permutation_equally_often(n):
    keys = random.key(0, "order", np.arange(40 * math.factorial(n)))
    images = random.permute(np.broadcast_to(np.arange(n), (keys.size, n)), n, keys[:, None])
    _, counts = np.unique(images @ n ** np.arange(n), return_counts=True)
    assert counts.size == math.factorial(n)
    assert excess(counts) < 4


@pytest.mark.parametrize("n", [8, 9, 16, 100, 4100])
def test_permute_sends_pairs_of_neighbors_anywhere(n):
    keys = random.key(1, "order", np.arange(100_000))
    first = random.permute(np.full(keys.size, n // 2 - 1), n, keys)
    second = random.permute(np.full(keys.size, n // 2), n, keys)
    assert excess(np.bincount((second - first) % n, minlength=n)[1:]) < 4
    assert excess(np.bincount(first, minlength=n)) < 4


@given(st.one_of(st.integers(0, 300), st.sampled_from([2**14 - 1, 2**14, 20_000])), seeds)
def test_shuffled_is_the_order_of_mixed_words(count, seed):
    key = random.key(seed, "repack")
    order = random.shuffled(count, key)
    assert order.dtype == np.int64 and sorted(order) == list(range(count))
    dropped = max(count - 1, 0).bit_length()
    steps = np.asarray([(i + 1) * random.GAMMA % 2**64 for i in range(count)], dtype=np.uint64)
    words = (random.mix(key + steps) >> np.uint64(dropped)).tolist()
    assert order.tolist() == sorted(range(count), key=lambda i: (words[i], i))


@pytest.mark.parametrize("n", range(2, 6))
def test_shuffled_reaches_every_permutation_equally_often(n):
    keys = random.key(0, "repack", np.arange(40 * math.factorial(n)))
    orders = np.stack([random.shuffled(n, key) for key in keys])
    _, counts = np.unique(orders @ n ** np.arange(n), return_counts=True)
    assert counts.size == math.factorial(n)
    assert excess(counts) < 4


def test_permute_of_a_long_range_looks_shuffled():
    n = 10**5
    image = random.permute(np.arange(n), n, random.key(2, "order"))
    assert abs(np.corrcoef(image[:-1], image[1:])[0, 1]) < 4 / math.sqrt(n)
    assert abs(np.corrcoef(np.arange(n), image)[0, 1]) < 4 / math.sqrt(n)


@pytest.mark.parametrize(("index", "n"), [(3, 3), (-1, 3), (0, 0), (0, 2**62 + 1)])
def test_permute_refuses_what_lies_outside(index, n):
    with pytest.raises(ValueError, match="must be in"):
        random.permute(np.asarray([index]), n, random.key(0, "order"))


def test_draws_in_c_equal_those_in_numpy(monkeypatch: pytest.MonkeyPatch) -> None:
    large = np.array([0, 1, 2**32 - 1, 2**32, 2**62 + 12345] * 20, dtype=np.int64)

    def drawn() -> list[np.ndarray]:
        keys = random.key(2**64 - 1, "a purpose", large[:, None], 3)
        return [keys, random.uint64(keys, np.arange(50)), random.uniform(random.key(5, "one key"), large)]

    in_c = drawn()
    monkeypatch.setattr(random_native, "_library", lambda: None)
    for ours, theirs in zip(in_c, drawn(), strict=True):
        assert ours.dtype == theirs.dtype and np.array_equal(ours, theirs)


@pytest.mark.parametrize("count", [2**14, 2**14 + 1, 100_003, 2**20 + 1])
def test_shuffled_in_c_is_that_of_numpy(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [random.key(seed, "repack", count) for seed in (0, 2**63)]
    in_c = [random.shuffled(count, key) for key in keys]
    monkeypatch.setattr(random_native, "_library", lambda: None)
    for key, order in zip(keys, in_c, strict=True):
        assert np.array_equal(order, random.shuffled(count, key))
