"""The window at a global index: a pure function, without table or state.

U = 10 tokens, window_tokens = 4, cut fixed:    [0 4) [4 8) [8 10)              W = 3
the same, cut shifted, this epoch's offset 3:   [0 3) [3 7) [7 10)              W = 3
the same, cut repacked, epoch 1:                [10 14) [14 18) [18 20)         W = 3
global index   0 1 2 | 3 4 5 | 6                epoch = g div W
window         2 0 1 | 1 0 2 | 0                a keyed permutation of [0, W) for each epoch
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property, lru_cache
from typing import Literal, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from reptrain import random
from reptrain.config import Budget
from reptrain.errors import PlanError
from reptrain.plan.interleaving import LARGEST_WINDOWS

Int64s = npt.NDArray[np.int64]
Order = Literal["reshuffle", "same", "mixed"]
Cut = Literal["fixed", "shifted", "repacked"]
Number = TypeVar("Number", Int64s, random.UInt64s)


class Windows(NamedTuple):
    """Windows of a stream: int64 arrays of equal shape."""

    epoch: Int64s
    window: Int64s
    start: Int64s
    length: Int64s
    source: Int64s
    """Index of the source in the run; 0 in a run on one store."""


@dataclass(frozen=True)
class EpochPlan:
    """The order of a run's windows.

    Args:
        unique_tokens: U, the tokens of the subset.
        window_tokens: L, the tokens of a window, at most U.
        total_windows: Global indices of the run: [0, total_windows).
        order: A new permutation for each epoch, one for all epochs, or all epochs shuffled as one list.
        cut: Fixed window boundaries, a keyed offset in each epoch, or documents in a new order in each epoch:
            positions then count through all epochs (`reptrain.plan.repacked`).
        seed: Seed of the permutations and offsets.
    """

    unique_tokens: int
    window_tokens: int
    total_windows: int
    order: Order
    cut: Cut
    seed: int

    def __post_init__(self) -> None:
        if not 1 <= self.window_tokens <= self.unique_tokens:
            raise PlanError(
                "data.window_tokens",
                got=f"{self.window_tokens} tokens for a subset of {self.unique_tokens}",
                rule="must not be longer than the subset",
                remedy=f"Set data.window_tokens to at most {self.unique_tokens} or raise unique_tokens.",
            )
        if not 1 <= self.total_windows < LARGEST_WINDOWS:
            raise PlanError(
                "total_tokens",
                got=f"{self.total_windows} windows",
                rule="must be from 1 to 2**62 windows",
                remedy="Change total_tokens.",
            )
        if self.cut == "repacked" and self.order == "mixed":
            raise PlanError(
                "data.cut",
                got="repacked with the order mixed",
                rule="must not mix the windows of epochs that are packed one by one",
                remedy="Set data.order to reshuffle or same.",
            )
        if self.cut == "repacked" and self.stream_tokens >= LARGEST_WINDOWS:
            raise PlanError(
                "total_tokens",
                got=f"{self.stream_tokens} tokens in windows that are packed again in each epoch",
                rule="must be below 2**62 tokens",
                remedy="Change total_tokens.",
            )

    @cached_property
    def windows_per_epoch(self) -> int:
        """W. The same for every epoch, also with shifted cuts."""
        return _windows_per_epoch(self.unique_tokens, self.window_tokens, self.cut)

    @property
    def epochs(self) -> Fraction:
        """k: passes over the windows of the subset."""
        return Fraction(self.total_windows, self.windows_per_epoch)

    @property
    def stream_tokens(self) -> int:
        """Tokens of the stream that holds the windows: the subset, or with repacked cuts all its epochs."""
        return self.unique_tokens * (math.ceil(self.epochs) if self.cut == "repacked" else 1)

    def locate(self, global_index: Int64s) -> Windows:
        """The windows at these global indices.

        Args:
            global_index: int64 in [0, total_windows), any shape.
        """
        index = np.asarray(global_index, dtype=np.int64)
        per_epoch = self.windows_per_epoch
        if self.order == "mixed":
            index = random.permute(index, self._mixed_windows, random.key(self.seed, "mixed"))
            epoch, window = np.divmod(index, per_epoch)
        else:
            epoch, position = np.divmod(index, per_epoch)
            window = random.permute(position, per_epoch, self._order_key(epoch))
        start, length = self._span(epoch, window)
        return Windows(epoch, window, start, length, np.zeros_like(window))

    def noise_place(self, windows: Windows) -> tuple[Int64s, Int64s]:
        """The keys of the windows' noise, besides the epoch: the seed of the order, and their start."""
        return np.full_like(windows.start, self.seed), windows.start

    def tokens_of(self, global_index: Int64s) -> Int64s:
        """Tokens of the windows at these global indices."""
        return self.locate(global_index).length

    def tokens_before(self, global_index: int) -> int:
        """Tokens of all windows before a global index, from 0 to total_windows.

        O(1), or O(epochs) for the order `mixed`: every window is full except for the first and the last of an
        epoch, and the inverse permutation gives the global index of these two.
        """
        per_epoch = self.windows_per_epoch
        whole = 0 if self.order == "mixed" else global_index // per_epoch
        missing, index = _ends(self, whole)
        after = global_index - whole * per_epoch
        return (
            whole * self.unique_tokens + after * self.window_tokens - int(missing[index < global_index].sum())
        )

    @cached_property
    def total_tokens(self) -> int:
        """Tokens that the run consumes, repeats counted."""
        return self.tokens_before(self.total_windows)

    @property
    def _mixed_windows(self) -> int:
        return math.ceil(self.epochs) * self.windows_per_epoch

    def _order_key(self, epoch: Int64s) -> random.UInt64s:
        if self.order == "same":
            return random.key(self.seed, "order", 0)
        if epoch.size and epoch.min() == epoch.max():
            return random.key(self.seed, "order", int(epoch.flat[0]))
        return _by_epoch(lambda epoch: random.key(self.seed, "order", epoch), epoch)

    def indices_of(self, position: int | Int64s, epoch: Int64s) -> Int64s:
        """The global index, in each of these epochs, of the window that holds a position of the stream.

        In the order `mixed` an epoch is one of the ceil(k) shuffled copies, and an index may be beyond the
        run's last one.
        """
        boundary = self._boundary(epoch)
        return self._global_index(epoch, (position - boundary) // self.window_tokens)

    def _global_index(self, epoch: Int64s, window: Int64s) -> Int64s:
        """The inverse of `locate`."""
        per_epoch = self.windows_per_epoch
        if self.order == "mixed":
            place = epoch * per_epoch + window
            return random.unpermute(place, self._mixed_windows, random.key(self.seed, "mixed"))
        return epoch * per_epoch + random.unpermute(window, per_epoch, self._order_key(epoch))

    def _span(self, epoch: Int64s, window: Int64s) -> tuple[Int64s, Int64s]:
        """Start and length in the stream of a window of an epoch."""
        start = self._boundary(epoch) + window * self.window_tokens
        end = np.minimum(start + self.window_tokens, self._epoch_start(epoch) + self.unique_tokens)
        start = np.maximum(start, 0)
        return start, end - start

    def _boundary(self, epoch: Int64s) -> Int64s:
        """Where window 0 of each epoch would begin if it were full: at most the epoch's start."""
        offset = self.offset(epoch)
        return np.where(offset > 0, offset - self.window_tokens, self._epoch_start(epoch))

    def _epoch_start(self, epoch: Int64s) -> Int64s:
        """Position of the first token of each epoch."""
        return epoch * self.unique_tokens if self.cut == "repacked" else np.zeros_like(epoch)

    def offset(self, epoch: Int64s) -> Int64s:
        """Tokens before the first boundary of each epoch; 0 if the first window is full."""
        return _by_epoch(self._offset, epoch)

    def _offset(self, epoch: Int64s) -> Int64s:
        if self.cut != "shifted" or self.window_tokens == 1:
            return np.zeros_like(epoch)
        few, many = _offset_counts(self.unique_tokens, self.window_tokens)
        remainder = self.unique_tokens % self.window_tokens
        drawn = random.below(max(few, many), random.key(self.seed, "cut", epoch), 0)
        if many > few or remainder == 0:
            return drawn + 1
        return np.where(drawn == 0, 0, drawn + remainder - 1)


@lru_cache(maxsize=64)
def _ends(plan: EpochPlan, epoch: int) -> tuple[Int64s, Int64s]:
    """The windows that may be short: the first and the last of an epoch; with order `mixed` of every epoch.

    Each step asks for the tokens before it, so the inverse permutation is computed once per epoch.

    Returns:
        How many tokens each lacks, and its global index.
    """
    per_epoch = plan.windows_per_epoch
    ends = np.asarray([0, per_epoch - 1] if per_epoch > 1 else [0], dtype=np.int64)
    epochs = np.asarray([epoch], dtype=np.int64)
    if plan.order == "mixed":
        epochs = np.arange(plan._mixed_windows // per_epoch, dtype=np.int64)
    number, window = (np.ravel(grid) for grid in np.meshgrid(epochs, ends, indexing="ij"))
    missing = plan.window_tokens - plan._span(number, window)[1]
    return missing, plan._global_index(number, window)


def plan_epochs(
    *, unique_tokens: int, window_tokens: int, budget: Budget, order: Order, cut: Cut, seed: int
) -> EpochPlan:
    """The plan that spends a budget: k x W windows, rounded half up to a whole window, at least one.

    Raises:
        PlanError: If a window is longer than the subset, or the budget exceeds 2**62 windows.
    """
    one = EpochPlan(unique_tokens, window_tokens, 1, order, cut, seed)
    windows = budget.epochs_over(unique_tokens) * one.windows_per_epoch
    total = max(1, math.floor(windows + Fraction(1, 2)))
    return EpochPlan(unique_tokens, window_tokens, total, order, cut, seed)


def _by_epoch(function: Callable[[Int64s], Number], epoch: Int64s) -> Number:
    """`function` of each epoch; evaluates repeated epochs once."""
    low, high = (int(epoch.min()), int(epoch.max())) if epoch.size else (0, 0)
    if high - low >= epoch.size // 2:
        return function(epoch)
    return np.asarray(function(np.arange(low, high + 1))[epoch - low])


def _offset_counts(unique_tokens: int, window_tokens: int) -> tuple[int, int]:
    """How many offsets give q + 1 and how many give q + 2 windows, for U = q L + r tokens.

    q + 1 windows: offset 0 (if r > 0) and [max(r, 1), L - 1]. q + 2 windows: [1, r - 1].
    """
    remainder = unique_tokens % window_tokens
    few = (remainder > 0) + window_tokens - max(remainder, 1)
    return few, max(remainder - 1, 0)


def _windows_per_epoch(unique_tokens: int, window_tokens: int, cut: Cut) -> int:
    if cut != "shifted" or window_tokens == 1:
        return -(-unique_tokens // window_tokens)
    few, many = _offset_counts(unique_tokens, window_tokens)
    return unique_tokens // window_tokens + (2 if many > few else 1)
