"""The source and window at each global index of a run.

Two sources: real text of 6 tokens for 2 epochs, synthetic text of 4 tokens once, windows of 2 tokens:

global index    0      1      2      3      4      5      6      7
source          real   real   syn    real   real   real   syn    real      shares 6 : 2 in every stretch
of its epoch    0      0      0      0      1      1      0      1         each source counts its own
start           0      2      8      4      0      4      6      2         in the subsets laid end to end
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from reptrain import random
from reptrain.config import RunConfig
from reptrain.errors import PlanError
from reptrain.plan.epochs import EpochPlan, Windows, plan_epochs
from reptrain.plan.interleaving import Interleaving

Int64s = npt.NDArray[np.int64]


class Share(NamedTuple):
    """One source's part of a step."""

    windows: int
    tokens: int
    epoch: int
    """Epoch of the source's next window at the step's start."""


@dataclass(frozen=True)
class MixturePlan:
    """The order of a run's windows. A run on one store is a mixture of one.

    Args:
        plans: One plan for each source, with equal window_tokens.
    """

    plans: tuple[EpochPlan, ...]

    def __post_init__(self) -> None:
        assert len({plan.window_tokens for plan in self.plans}) == 1
        # Refuse counts that cannot be interleaved now, not at the first window.
        _ = self.interleaving

    @cached_property
    def interleaving(self) -> Interleaving:
        """The order of the sources."""
        return Interleaving(tuple(plan.total_windows for plan in self.plans))

    @property
    def window_tokens(self) -> int:
        """L, the tokens of a window."""
        return self.plans[0].window_tokens

    @property
    def unique_tokens(self) -> int:
        """Tokens of all subsets together."""
        return sum(plan.unique_tokens for plan in self.plans)

    @property
    def windows_per_epoch(self) -> int:
        """Windows of one pass over every source: an epoch of the run as a whole."""
        return sum(plan.windows_per_epoch for plan in self.plans)

    @property
    def total_windows(self) -> int:
        """Global indices of the run: [0, total_windows)."""
        return self.interleaving.total

    @cached_property
    def total_tokens(self) -> int:
        """Tokens that the run consumes, repeats counted."""
        return sum(plan.total_tokens for plan in self.plans)

    @property
    def epochs(self) -> Fraction:
        """Passes over all sources together."""
        return Fraction(self.total_windows, self.windows_per_epoch)

    @cached_property
    def _starts(self) -> Int64s:
        tokens = [plan.stream_tokens for plan in self.plans]
        return np.cumsum([0, *tokens[:-1]], dtype=np.int64)

    def locate(self, global_index: Int64s) -> Windows:
        """The windows at these global indices.

        Args:
            global_index: int64 in [0, total_windows), any shape.

        Returns:
            `epoch` and `window` are the source's own; `start` counts in the stream of all sources.
        """
        if len(self.plans) == 1:
            return self.plans[0].locate(global_index)
        turns = self.interleaving.locate(global_index)
        epoch, window, start, length = (np.empty_like(turns.local) for _ in range(4))
        for source in np.unique(turns.source):
            mine = turns.source == source
            part = self.plans[source].locate(turns.local[mine])
            epoch[mine], window[mine], length[mine] = part.epoch, part.window, part.length
            start[mine] = part.start + self._starts[source]
        return Windows(epoch, window, start, length, turns.source)

    def noise_place(self, windows: Windows) -> tuple[Int64s, Int64s]:
        """The keys of the windows' noise, besides the epoch: `EpochPlan.noise_place` of each source.

        So a source's noise does not depend on the other sources.
        """
        seeds = np.asarray([plan.seed for plan in self.plans], dtype=np.int64)
        return seeds[windows.source], windows.start - self._starts[windows.source]

    def tokens_of(self, global_index: Int64s) -> Int64s:
        """Tokens of the windows at these global indices."""
        return self.locate(global_index).length

    def tokens_before(self, global_index: int) -> int:
        """Tokens of all windows before a global index, from 0 to total_windows, in O(1)."""
        counts = self.interleaving.counts_before(global_index)
        return sum(plan.tokens_before(count) for plan, count in zip(self.plans, counts, strict=True))

    def epochs_before(self, global_index: int) -> tuple[Fraction, ...]:
        """Epochs of each source before a global index."""
        counts = self.interleaving.counts_before(global_index)
        return tuple(
            Fraction(count, plan.windows_per_epoch) for plan, count in zip(self.plans, counts, strict=True)
        )

    def shares(self, first_index: int, windows: int) -> tuple[Share, ...]:
        """Each source's part of some windows from a global index."""
        before = self.interleaving.counts_before(first_index)
        after = self.interleaving.counts_before(first_index + windows)
        return tuple(
            Share(
                windows=end - start,
                tokens=plan.tokens_before(end) - plan.tokens_before(start),
                epoch=start // plan.windows_per_epoch,
            )
            for plan, start, end in zip(self.plans, before, after, strict=True)
        )

    def index_of(self, source: int, local: int) -> int:
        """The global index of a source's window number `local`, by bisection."""
        if len(self.plans) == 1:
            return local
        low, high = local, self.total_windows - 1
        while low < high:
            middle = (low + high) // 2
            if self.interleaving.counts_before(middle + 1)[source] > local:
                high = middle
            else:
                low = middle + 1
        return low

    def source_at(self, global_index: int) -> int:
        """The index of the source at a global index."""
        return int(self.interleaving.locate(np.asarray([global_index])).source[0])


def plan_mixture(config: RunConfig, unique_tokens: Mapping[str, int]) -> MixturePlan:
    """The order of a run's windows.

    Args:
        config: The run.
        unique_tokens: U of each source, by name.

    Raises:
        PlanError: If a window is longer than a source's subset, or there are more than 2**62 windows.
    """
    plans = []
    order_seed = config.seed_of("order")
    for name, source in config.sources.items():
        is_named = bool(config.data.sources)
        try:
            plan = plan_epochs(
                unique_tokens=unique_tokens[name],
                window_tokens=config.window_tokens,
                budget=source.total_tokens,
                order=source.order or config.data.order,
                cut=source.cut or config.data.cut,
                seed=source_seed(order_seed, name) if is_named else order_seed,
            )
        except PlanError as error:
            if not is_named:
                raise
            raise PlanError(
                f"source {name}: {error.what}", got=error.got, rule=error.rule, remedy=error.remedy
            ) from error
        plans.append(plan)
    return MixturePlan(tuple(plans))


def source_seed(seed: int, name: str) -> int:
    """The seed of a source's permutations and cuts in a mixture.

    Derived from the run's seed and the source's name: stores of equal size are shuffled differently, and a
    source keeps its order whatever the other sources are.
    """
    return int(random.key(seed, f"source {name}")) >> 1
