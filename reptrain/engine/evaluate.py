"""Scoring on the sealed sets and on a fixed probe of the training subset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np

from reptrain.batch.collate import MicroBatch, collate
from reptrain.batch.objectives import Objective, build_objective
from reptrain.config.quantities import Budget
from reptrain.config.schema import RunConfig
from reptrain.engine.distributed import World
from reptrain.engine.step import Score, score
from reptrain.plan import EpochPlan, Subset, plan_epochs
from reptrain.plan.shard import rank_rows
from reptrain.store import Store
from reptrain.text import Tokenizer


@dataclass(frozen=True)
class EvaluationSet:
    """A fixed list of windows with a rank's share of it on the host."""

    name: str
    micro_batches: Sequence[MicroBatch]
    objective: Objective

    def score(self, engine: Any, *, world: World) -> Score:
        """Sum over all ranks, in evaluation mode; training mode is restored."""
        engine.eval()
        try:
            return score(engine, self.micro_batches, world=world, objective=self.objective)
        finally:
            engine.train()


def evaluation_sets(
    config: RunConfig,
    sources: Mapping[str, tuple[Store, Subset]],
    tokenizer: Tokenizer,
    *,
    world: World,
    micro_batch_windows: int,
) -> list[EvaluationSet]:
    """For each source a probe of its training subset and its two held-out sets.

    Held-out windows and their noise depend on the store alone, never on the run's seed, so that arms
    compare. The probe is spread evenly over the subset. Sets are named probe, select and report; in a
    mixture the source's name follows, as in select/books.

    Args:
        config: The run.
        sources: The stores and training subsets by name.
        tokenizer: The one that made all of them.
        world: The ranks.
        micro_batch_windows: Rows of one forward pass on one rank.
    """
    sets = []
    for source, (store, subset) in sources.items():
        parts = {"probe": subset} | {name: Subset.open(store, split=name) for name in ("select", "report")}
        for name, part in parts.items():
            objective = build_objective(config, tokenizer, noise_seed=int(part.fingerprint[:15], 16))
            micro_batches = _rank_share(
                part, objective, config=config, world=world, micro_batch_windows=micro_batch_windows
            )
            sets.append(
                EvaluationSet(name if len(sources) == 1 else f"{name}/{source}", micro_batches, objective)
            )
    return sets


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
    subset: Subset, objective: Objective, *, config: RunConfig, world: World, micro_batch_windows: int
) -> list[MicroBatch]:
    plan = _in_order(subset, config.window_tokens)
    count = min(config.evaluate.max_windows, plan.total_windows)
    chosen = np.arange(count, dtype=np.int64) * plan.total_windows // count
    rows_MB = rank_rows(
        count, rank=world.rank, world_size=world.world_size, micro_batch_windows=micro_batch_windows
    )
    index_MB = np.where(rows_MB < count, chosen[np.minimum(rows_MB, count - 1)], -1)
    return [
        collate(subset, plan, objective, index_B, row_B)
        for index_B, row_B in zip(index_MB, rows_MB, strict=True)
    ]
