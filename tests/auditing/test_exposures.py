"""Exposures counted by boundaries equal those counted token by token."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from reptrain.auditing.cuts import Cuts
from reptrain.auditing.exposures import Exposures

windows = st.lists(
    st.tuples(st.integers(0, 30), st.integers(0, 30)).map(lambda pair: (min(pair), max(pair) - min(pair))),
    max_size=30,
)


@given(st.lists(windows, max_size=4))
def test_exposures_equal_a_count_token_by_token(batches):
    counted, plain = Exposures([0, 30]), np.zeros(30, dtype=int)
    for batch in batches:
        start, length = np.asarray(batch, dtype=np.int64).reshape(-1, 2).T
        counted.add(Cuts.of(start, length))
        for low, number in batch:
            plain[low : low + number] += 1
    start, end, times = counted.stretches()
    assert np.repeat(times, end - start).tolist() == plain.tolist()
    assert counted.stretches().histogram() == {int(t): int((plain == t).sum()) for t in np.unique(plain)}


@given(windows, st.integers(1, 29))
def test_stretches_between_are_those_of_one_source(batch, bound):
    counted, plain = Exposures([0, bound, 30]), np.zeros(30, dtype=int)
    for low, number in batch:
        number = number if low >= bound else min(number, bound - low)
        counted.add(Cuts.of(np.asarray([low]), np.asarray([number])))
        plain[low : low + number] += 1
    for first, end in ((0, bound), (bound, 30)):
        start, stop, times = counted.stretches().between(first, end)
        assert np.repeat(times, stop - start).tolist() == plain[first:end].tolist()


@given(windows, st.integers(0, 29), st.integers(1, 30))
def test_stretches_between_clips_at_any_position(batch, first, size):
    start, length = np.asarray(batch, dtype=np.int64).reshape(-1, 2).T
    counted = Exposures([0, 30])
    counted.add(Cuts.of(start, length))
    end = min(first + size, 30)
    whole = counted.stretches().each()
    assert counted.stretches().between(first, end).each().tolist() == whole[first:end].tolist()


@given(windows, st.data())
def test_exposures_count_the_chosen_windows_alone(batch, data):
    start, length = np.asarray(batch, dtype=np.int64).reshape(-1, 2).T
    chosen = np.asarray(data.draw(st.lists(st.booleans(), min_size=start.size, max_size=start.size)), bool)
    some, those = Exposures([0, 30]), Exposures([0, 30])
    some.add(Cuts.of(start, length), chosen)
    those.add(Cuts.of(start[chosen], length[chosen]))
    assert some.stretches().each().tolist() == those.stretches().each().tolist()
