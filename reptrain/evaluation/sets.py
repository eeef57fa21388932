"""Scoring on the sealed sets and on a fixed probe of the training subset."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reptrain.batch.collate import MicroBatch, collate
from reptrain.batch.objectives import Objective, build_objective
from reptrain.batch.objectives.example import Int64s
from reptrain.config.quantities import Budget
from reptrain.config.schema import RunConfig
from reptrain.distributed.world import World
from reptrain.evaluation.score import Score, score
from reptrain.plan import EpochPlan, Subset, plan_epochs
from reptrain.plan.shard import rank_rows
from reptrain.store import Store
from reptrain.text import Tokenizer

SETS = ("probe", "select", "report")
_CALIBRATION_TOKENS = 1 << 24


@dataclass(frozen=True)
class EvaluationSet:
    """A fixed list of windows with a rank's share of it on the host."""

    name: str
    micro_batches: Sequence[MicroBatch]
    objective: Objective
    byte_length_V: Tensor
    """float64: UTF-8 bytes that each id stands for, before tokenization."""

    def score(self, engine: Any, *, world: World) -> Score:
        """Sum over all ranks, in evaluation mode; training mode is restored."""
        was_training = engine.training
        engine.eval()
        try:
            return score(
                engine,
                self.micro_batches,
                world=world,
                objective=self.objective,
                byte_length_V=self.byte_length_V,
            )
        finally:
            engine.train(was_training)


def evaluation_sets(
    config: RunConfig,
    sources: Mapping[str, tuple[Store, Subset | None]],
    tokenizer: Tokenizer,
    *,
    world: World,
    micro_batch_windows: int,
    only: Collection[str] = SETS,
) -> list[EvaluationSet]:
    """For each source a probe of its training subset and its two held-out sets.

    The windows of a set are a sample without replacement, drawn by a fixed key: they depend on the set's
    size, the window and `evaluate.max_windows`, never on the run's seed, so that arms compare. What an
    objective draws for the n-th window of a set is a function of the store and of n: the sets of a source,
    and all arms, are scored under equal noise. Sets are named probe, select and report; in a mixture the
    source's name follows, as in select/books.

    Args:
        config: The run.
        sources: The stores and training subsets by name; without a subset there is no probe.
        tokenizer: The one that made all of them.
        world: The ranks.
        micro_batch_windows: Rows of one forward pass on one rank.
        only: Which of the three.
    """
    sets = []
    for source, (store, subset) in sources.items():
        objective = build_objective(_fresh(config), tokenizer, noise_seed=int(store.fingerprint[:15], 16))
        # The probe's text is not counted: the training split may be far larger.
        lengths = {name: byte_lengths(store, tokenizer, name) for name in ("select", "report")}
        lengths["probe"] = lengths["select"]
        for name in SETS:
            part = subset if name == "probe" else Subset.open(store, split=name)
            if part is None or name not in only:
                continue
            micro_batches = _rank_share(
                part, objective, config=config, world=world, micro_batch_windows=micro_batch_windows
            )
            kind, name = name, name if len(sources) == 1 else f"{name}/{source}"
            sets.append(EvaluationSet(name, micro_batches, objective, lengths[kind]))
    return sets


def byte_lengths(store: Store, tokenizer: Tokenizer, split: str) -> Tensor:
    """UTF-8 bytes of text that each id stands for in a split, float64 [vocab_size].

    Those of the tokenizer's pieces, times what the text has more than its pieces: normalization and unknown
    characters lose bytes. The factor is that of the whole split, or of the first shards of a very large one.
    """
    length_V = tokenizer.byte_lengths()
    tokens, text_bytes = store.split(split).leading_shards(_CALIBRATION_TOKENS)
    counts_V = sum(np.bincount(part, minlength=len(length_V)) for part in tokens)
    in_pieces = int((counts_V * length_V).sum())
    return torch.from_numpy(length_V * (text_bytes / in_pieces if in_pieces else 1.0))


def _fresh(config: RunConfig) -> RunConfig:
    """With noise that differs between samples, which are drawn as those of epochs are."""
    return config.model_copy(update={"objective": config.objective.with_fresh_noise()})


def _in_order(subset: Subset, window_tokens: int, samples: int) -> EpochPlan:
    """So many passes over a set; a set shorter than a window is one short window."""
    return plan_epochs(
        unique_tokens=subset.unique_tokens,
        window_tokens=min(window_tokens, subset.unique_tokens),
        budget=Budget(epochs=Fraction(samples)),
        order="same",
        cut="fixed",
        seed=0,
    )


def sampled_windows(plan: EpochPlan, max_windows: int) -> Int64s:
    """Indices of the windows that are scored, int64 [N], within the first pass of a plan.

    The plan's order is a keyed permutation, so that indices at equal distances are a sample of the windows.
    """
    count = min(max_windows, plan.windows_per_epoch)
    return np.arange(count, dtype=np.int64) * plan.windows_per_epoch // count


def _rank_share(
    subset: Subset, objective: Objective, *, config: RunConfig, world: World, micro_batch_windows: int
) -> list[MicroBatch]:
    samples = config.evaluate.noise_samples if config.objective.is_noisy else 1
    plan = _in_order(subset, config.window_tokens, samples)
    chosen = sampled_windows(plan, config.evaluate.max_windows)
    count = chosen.size
    chosen = (chosen + np.arange(samples)[:, None] * plan.windows_per_epoch).ravel()
    rows_MB = rank_rows(
        chosen.size, rank=world.rank, world_size=world.world_size, micro_batch_windows=micro_batch_windows
    )
    index_MB = np.where(rows_MB < chosen.size, chosen[np.minimum(rows_MB, chosen.size - 1)], -1)
    return [
        collate(subset, plan, objective, index_B, row_B, noise_place_B=row_B % count)
        for index_B, row_B in zip(index_MB, rows_MB, strict=True)
    ]
