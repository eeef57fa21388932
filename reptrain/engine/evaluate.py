"""Scoring on the sealed sets and on a fixed probe of the training subset."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

import numpy as np

from reptrain.batch.collate import MicroBatch, collate
from reptrain.config.quantities import Budget
from reptrain.config.schema import RunConfig
from reptrain.engine.distributed import World
from reptrain.engine.step import Score, score
from reptrain.plan import EpochPlan, Subset, plan_epochs
from reptrain.plan.shard import rank_rows
from reptrain.store import Store

SetName = Literal["probe", "select", "report"]


@dataclass(frozen=True)
class EvaluationSet:
    """A fixed list of windows with a rank's share of it on the host."""

    name: SetName
    micro_batches: Sequence[MicroBatch]

    def score(self, engine: Any, *, world: World, start_id: int) -> Score:
        """Sum over all ranks, in evaluation mode; training mode is restored."""
        engine.eval()
        try:
            return score(engine, self.micro_batches, world=world, start_id=start_id)
        finally:
            engine.train()


def evaluation_sets(
    config: RunConfig, store: Store, train_subset: Subset, *, world: World, micro_batch_windows: int
) -> list[EvaluationSet]:
    """The probe of the training subset and the two held-out sets.

    Held-out windows depend on the store alone, never on the run's seed, so that arms compare. The probe is
    spread evenly over the subset.
    """
    sources: list[tuple[SetName, Subset]] = [("probe", train_subset)]
    names: tuple[SetName, ...] = ("select", "report")
    sources += [(name, Subset.open(store, split=name)) for name in names]
    return [
        EvaluationSet(
            name,
            _rank_share(
                subset,
                window_tokens=config.data.window_tokens,
                max_windows=config.evaluate.max_windows,
                world=world,
                micro_batch_windows=micro_batch_windows,
            ),
        )
        for name, subset in sources
    ]


def _in_order(subset: Subset, window_tokens: int) -> EpochPlan:
    """One pass over a set; a set shorter than a window is one short window."""
    return plan_epochs(
        unique_tokens=subset.unique_tokens,
        window_tokens=min(window_tokens, subset.unique_tokens),
        budget=Budget(epochs=Fraction(1)),
        order="same",
        cut="fixed",
        seed=0,
    )


def _rank_share(
    subset: Subset, *, window_tokens: int, max_windows: int, world: World, micro_batch_windows: int
) -> list[MicroBatch]:
    plan = _in_order(subset, window_tokens)
    count = min(max_windows, plan.total_windows)
    chosen = np.arange(count, dtype=np.int64) * plan.total_windows // count
    rows_MB = rank_rows(
        count, rank=world.rank, world_size=world.world_size, micro_batch_windows=micro_batch_windows
    )
    index_MB = np.where(rows_MB < count, chosen[np.minimum(rows_MB, count - 1)], -1)
    return [collate(subset, plan, index_B, row_B) for index_B, row_B in zip(index_MB, rows_MB, strict=True)]
