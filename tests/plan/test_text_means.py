"""Budgets in words and bytes become tokens by the means of the store."""

from __future__ import annotations

from collections.abc import Callable
from fractions import Fraction
from pathlib import Path

import pytest

from reptrain.config import RunConfig
from reptrain.config.quantities import Budget, TextUnit
from reptrain.plan.text_amounts import text_per_token, with_token_budgets
from reptrain.store import open_store


@pytest.mark.parametrize(("unit", "field"), [("words", "words"), ("bytes", "text_bytes")])
def test_a_budget_of_text_becomes_tokens(
    store_path: Path, tiny: Callable[..., RunConfig], unit: TextUnit, field: str
) -> None:
    store = open_store(store_path)
    split = store.split("train")
    mean = text_per_token(store, unit)
    assert mean == Fraction(getattr(split, field), split.num_tokens)
    config = with_token_budgets(tiny(f"train.total_tokens=7000{unit}"), {"data": store})
    assert config.train.total_tokens == Budget(tokens=round(7000 * split.num_tokens / getattr(split, field)))


def test_words_are_fewer_than_bytes(store_path: Path) -> None:
    store = open_store(store_path)
    assert 0 < text_per_token(store, "words") < text_per_token(store, "bytes")
