import doctest

from hypothesis import given
from hypothesis import strategies as st

from reptrain.config import spans
from reptrain.config.spans import span_counts, window_filling


def test_docstring_examples_are_true() -> None:
    assert doctest.testmod(spans) == (0, 2)


@given(length=st.integers(1, 5000), density=st.floats(0.001, 0.999), mean=st.floats(1, 200))
def test_span_counts_can_be_drawn_and_grow_with_the_window(length: int, density: float, mean: float) -> None:
    counts, longer = span_counts(length, density, mean), span_counts(length + 1, density, mean)
    assert 1 <= counts.spans <= counts.noise <= length
    assert length == 1 or counts.spans <= length - counts.noise
    assert counts.inputs <= longer.inputs and counts.targets <= longer.targets


def test_window_filling_is_found_at_once() -> None:
    assert window_filling(2**20, 0.95, 1.0) > 2**20
    assert window_filling(3, 0.15, 3.0) == 2


@given(inputs=st.integers(3, 600), density=st.floats(0.01, 0.9), mean=st.floats(1, 70))
def test_window_filling_fits(inputs: int, density: float, mean: float) -> None:
    window = window_filling(inputs, density, mean)
    assert span_counts(window, density, mean).inputs <= inputs
    assert span_counts(window + 2, density, mean).inputs > inputs or density == 0.5
