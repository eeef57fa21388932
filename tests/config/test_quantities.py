from fractions import Fraction

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from reptrain.config import Budget
from reptrain.config.quantities import parse_count


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("2**20", 2**20),
        ("2^20", 2**20),
        ("1e9", 10**9),
        ("1_000", 1000),
        ("1,000", 1000),
        ("12,345,678", 12_345_678),
        ("1,500M", 1_500_000_000),
        ("1_024.5k", 1_024_500),
        ("7", 7),
        (3.0, 3),
        ("64k", 64_000),
        ("64 K", 64_000),
        ("100M", 100_000_000),
        ("1.5B", 1_500_000_000),
        ("0.5G", 500_000_000),
        ("2T", 2 * 10**12),
        ("1e3k", 1_000_000),
    ],
)
def test_parse_count_accepts_common_notations(text: object, value: int) -> None:
    assert parse_count(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "two",
        "2**",
        "2**99999999999",
        "1e99999999",
        "inf",
        "nan",
        "4e18k",
        "1.5",
        "0.0001k",
        "64Ki",
        "5m",
        "3x",
        "k",
        "1,5B",
        "1,5",
        "0,5k",
        "1,50,000",
        "1,000,0",
        ",100",
        "100,",
        "_1000",
        "1000_",
        "1__000",
        "1,000_000",
    ],
)
def test_parse_count_refuses_other_text(text: str) -> None:
    with pytest.raises(ValueError):
        parse_count(text)


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("2**20", Budget(tokens=2**20)),
        (1000, Budget(tokens=1000)),
        ("64epochs", Budget(epochs=Fraction(64))),
        ("1 epoch", Budget(epochs=Fraction(1))),
        ("2.5epochs", Budget(epochs=Fraction(5, 2))),
        ("7/3epochs", Budget(epochs=Fraction(7, 3))),
        ("2**20inputs", Budget(inputs=2**20)),
        ("1e9 targets", Budget(targets=10**9)),
        ("100M", Budget(tokens=10**8)),
        ("1.5Binputs", Budget(inputs=1_500_000_000)),
        ("64k tokens", Budget(tokens=64_000)),
    ],
)
def test_budget_parses_tokens_and_epochs(text: object, budget: Budget) -> None:
    assert Budget.parse(text) == budget


@pytest.mark.parametrize(
    "text",
    [
        "0",
        "-1",
        0,
        True,
        "0epochs",
        "1/0epochs",
        "epochs",
        "1.5",
        None,
        "e5epochs",
        "0inputs",
        "1.5targets",
        "targets",
    ],
)
def test_budget_refuses(text: object) -> None:
    with pytest.raises(ValueError):
        Budget.parse(text)


@given(st.fractions(min_value=Fraction(1, 10**6), max_value=10**6, max_denominator=10**80))
@example(Budget.parse("0." + "3" * 54 + "1e-30epochs").epochs)
def test_budget_text_parses_to_the_same_budget(epochs: Fraction) -> None:
    for budget in (Budget(epochs=epochs), Budget(inputs=min(epochs.numerator, 2**62 - 1)), Budget(targets=7)):
        assert Budget.parse(str(budget)) == budget


@given(st.integers(1, 2**50), st.integers(1, 2**50))
def test_budget_epochs_over_is_exact(tokens: int, unique: int) -> None:
    assert Budget(tokens=tokens).epochs_over(unique) * unique == tokens
