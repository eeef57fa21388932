"""Evaluation sets: the held-out splits and a fixed probe of the training subset."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
import torch
from torch import Tensor, nn

from reptrain.batch.collate import MicroBatch, collate
from reptrain.batch.objectives import Objective, build_objective
from reptrain.batch.objectives.example import Int64s
from reptrain.config.quantities import Budget
from reptrain.config.schema import RunConfig
from reptrain.distributed.engine import Engine
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
    """This rank's share of a fixed list of windows, in host memory."""

    name: str
    micro_batches: Sequence[MicroBatch]
    objective: Objective
    byte_length_V: Tensor
    """float64: UTF-8 bytes of the text before tokenization for each id."""

    def score(self, engine: Engine | nn.Module, *, world: World) -> Score:
        """Score the set on all ranks in evaluation mode, then restore the mode."""
        was_training = engine.training
        engine.eval()
        try:
            result: Score = score(
                engine,
                self.micro_batches,
                world=world,
                objective=self.objective,
                byte_length_V=self.byte_length_V,
            )
            return result
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
    """The sets of each source: a probe of its training subset and the two held-out sets.

    The windows of a set are a sample without replacement, drawn with a fixed key. They depend on the size of
    the set, the window and `evaluate.max_windows`, not on the run's seed, so that arms are comparable. The
    noise of the n-th window of a set depends on the store and n only: all sets of a source, and all arms, are
    scored under the same noise. The sets are named probe, select and report; in a mixture the source follows,
    as in select/books.

    Args:
        config: Configuration of the run.
        sources: Store and training subset of each source by name; without a subset there is no probe.
        tokenizer: Tokenizer of the stores.
        world: The ranks.
        micro_batch_windows: Rows of a micro-batch.
        only: The sets to build.
    """
    sets = []
    for source, (store, subset) in sources.items():
        objective = build_objective(
            _for_scoring(config), tokenizer, noise_seed=int(store.fingerprint[:15], 16)
        )
        # The probe uses the lengths of `select`: counting the training split may take long.
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
    """UTF-8 bytes of text for each id in a split, float64 [vocab_size].

    Bytes of the tokenizer's pieces, times a factor for what normalization and unknown characters lose: bytes
    of the text over bytes of its pieces, in the whole split or the first shards of a large one.
    """
    length_V = tokenizer.byte_lengths()
    tokens, text_bytes = store.split(split).leading_shards(_CALIBRATION_TOKENS)
    counts_V = sum(np.bincount(part, minlength=len(length_V)) for part in tokens)
    in_pieces = int((counts_V * length_V).sum())
    return torch.from_numpy(length_V * (text_bytes / in_pieces if in_pieces else 1.0))


def _for_scoring(config: RunConfig) -> RunConfig:
    """The configuration with the noise of scoring: noise samples are drawn like epochs and must differ."""
    return config.model_copy(update={"objective": config.objective.for_scoring()})


def _in_order(subset: Subset, window_tokens: int, samples: int) -> EpochPlan:
    """``samples`` passes over a set in order. A set shorter than a window becomes one short window."""
    return plan_epochs(
        unique_tokens=subset.unique_tokens,
        window_tokens=min(window_tokens, subset.unique_tokens),
        budget=Budget(epochs=Fraction(samples)),
        order="same",
        cut="fixed",
        seed=0,
    )


def sampled_windows(plan: EpochPlan, max_windows: int) -> Int64s:
    """Indices of the scored windows within the first pass of a plan, int64 [N].

    The order of a plan is a keyed permutation, so equidistant indices are a random sample of the windows.
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
        chosen.size,
        rank=world.data_rank,
        world_size=world.data_ranks,
        micro_batch_windows=micro_batch_windows,
    )
    index_MB = np.where(rows_MB < chosen.size, chosen[np.minimum(rows_MB, chosen.size - 1)], -1)
    return [
        collate(subset, plan, objective, index_B, row_B, noise_place_B=row_B % count)
        for index_B, row_B in zip(index_MB, rows_MB, strict=True)
    ]
