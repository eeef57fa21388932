"""Which held-out losses are comparable."""

from __future__ import annotations

from typing import Any

from reptrain.config import RunConfig
from reptrain.config.load import validate
from reptrain.tables.losses import loss_measure


def measure(store: str = "text", window: int = 64, **objective: Any) -> str:
    data = {"store": "a", "window_tokens": window}
    return loss_measure(validate(RunConfig, {"data": data, "objective": objective}), store)


def test_losses_are_comparable_if_text_window_and_scored_objective_are_equal() -> None:
    causal = measure(name="causal")
    # Its held-out windows are scored as under `causal`.
    assert measure(name="augmented_causal", max_offset=5, right_to_left=0.5) == causal
    assert measure(name="prefix_lm", noise="frozen") == measure(name="prefix_lm") != causal
    assert causal not in (measure("other", name="causal"), measure(window=128, name="causal"))
