"""Amounts of text in a run: words and bytes by their means per token in each store."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from fractions import Fraction
from math import floor

from reptrain.config import RunConfig
from reptrain.config.quantities import Budget, TextAmount, TextUnit
from reptrain.errors import StoreError
from reptrain.plan.mixture import MixturePlan
from reptrain.plan.shard import StepPlan
from reptrain.store import Store

# Half a window of the budget's rounding, and the two short windows of an epoch.
_ROUNDED_WINDOWS = 3


def text_per_token(store: Store, unit: TextUnit) -> Fraction:
    """Mean words or bytes of a token in a store's training split.

    Raises:
        StoreError: If the store has no word counts.
    """
    split = store.split("train")
    count = split.words if unit == "words" else split.text_bytes
    if count is None:
        raise StoreError(
            f"store {store.path}",
            got="no word counts",
            rule="must have been made by a version that counts words",
            remedy="Rebuild it with `reptrain tokenize`, or give bytes.",
        )
    return Fraction(count, split.num_tokens)


def has_budget_of_text(config: RunConfig) -> bool:
    """Whether a budget of the run is in words or bytes."""
    budgets = [config.train.total_tokens, *(source.total_tokens for source in config.data.sources.values())]
    return any(budget is not None and budget.text is not None for budget in budgets)


def with_token_budgets(config: RunConfig, stores: Mapping[str, Store]) -> RunConfig:
    """The run with budgets in words or bytes replaced by tokens, to the nearest token.

    Args:
        config: The run.
        stores: Its open stores by source.

    Raises:
        StoreError: If a store has no word counts.
    """

    def in_tokens(budget: Budget | None, source: str) -> Budget | None:
        if budget is None or budget.text is None:
            return budget
        return Budget(
            tokens=max(1, round(budget.text.count / text_per_token(stores[source], budget.text.unit)))
        )

    train = config.train.model_copy(update={"total_tokens": in_tokens(config.train.total_tokens, "data")})
    sources = {
        name: source.model_copy(update={"total_tokens": in_tokens(source.total_tokens, name)})
        for name, source in config.data.sources.items()
    }
    data = config.data.model_copy(update={"sources": sources})
    return config.model_copy(update={"train": train, "data": data})


def steps_of_text(
    amounts: Iterable[TextAmount], stores: Sequence[Store], plan: MixturePlan, steps: StepPlan
) -> dict[TextAmount, int]:
    """The first number of completed steps at which a run has consumed each amount; amounts that it never
    consumes are left out.

    A run of 10 million words may end some words before them, since budgets are rounded to whole windows and
    the windows at the ends of an epoch may be short. It has consumed an amount at its last step if fewer than
    three windows of each source are missing.

    Args:
        amounts: Amounts of text, repeats included.
        stores: The store of each source, in the order of the plan.
        plan: The order of the windows.
        steps: The steps of the run.

    Raises:
        StoreError: If a store has no word counts.
    """
    found = {}
    for amount in amounts:
        means = [text_per_token(store, amount.unit) for store in stores]

        def consumed(step: int, means: Sequence[Fraction] = means) -> int:
            windows = min(step * steps.batch_windows, steps.total_windows)
            counts = plan.interleaving.counts_before(windows)
            parts = zip(plan.plans, counts, means, strict=True)
            return floor(sum(one.tokens_before(count) * mean for one, count, mean in parts))

        missing = amount.count - consumed(steps.num_steps)
        if missing <= 0 or missing < _ROUNDED_WINDOWS * plan.window_tokens * sum(means):
            found[amount] = bisect_left(range(steps.num_steps), amount.count, key=consumed)
    return found
