"""What the order `mixed` does: some tokens come twice before others come once.

Of k copies of W windows shuffled as one list, after W windows about (1 - 1/k)**k are unseen.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from reptrain.auditing.cuts import Cuts
from reptrain.auditing.exposures import Exposures, Stretches
from reptrain.plan import EpochPlan
from reptrain.runs.files import FrozenRecord

Int64s = npt.NDArray[np.int64]

_CHUNK_WINDOWS = 1 << 20
# Nominal epoch ends that are told one by one; behind them those at powers of two.
_FIRST_ENDS = 8


class EpochEnd(FrozenRecord):
    """What had been seen of a source at a nominal epoch end: after so many times W windows."""

    epoch: int
    """The nominal epochs that had ended."""
    unseen: float
    """Share of the source's tokens that had not been consumed."""
    once: float
    """Share consumed once."""
    more: float
    """Share consumed twice or more often."""

    def text(self) -> str:
        """One line for people."""
        return (
            f"at nominal epoch end {self.epoch}: {self.unseen:.1%} of the tokens unseen,"
            f" {self.once:.1%} seen once, {self.more:.1%} twice or more"
        )


class MixedPrefix(NamedTuple):
    """What follows from a plan for its first windows."""

    stretches: Stretches
    """Of the source's own stream, from 0."""
    ends: tuple[EpochEnd, ...]


def mixed_prefix(plan: EpochPlan, windows: int) -> MixedPrefix:
    """Count the exposures of the first windows of a plan.

    Args:
        plan: Of one source.
        windows: How many, at most all.
    """
    exposures = Exposures([0, plan.unique_tokens])
    ends: list[EpochEnd] = []
    first = 0
    for epoch in _told_epochs(windows // plan.windows_per_epoch):
        _count(exposures, plan, first, first := epoch * plan.windows_per_epoch)
        ends.append(_end(epoch, exposures.stretches().histogram(), plan.unique_tokens))
    _count(exposures, plan, first, windows)
    return MixedPrefix(exposures.stretches(), tuple(ends))


def differing(found: Stretches, expected: Stretches) -> list[tuple[Stretches, int]]:
    """Where two counts of one stream differ: what was found, by what was expected."""
    start = np.union1d(found.start, expected.start)
    end = np.append(start[1:], found.end[-1])
    times = found.times[np.searchsorted(found.start, start, side="right") - 1]
    planned = expected.times[np.searchsorted(expected.start, start, side="right") - 1]
    other = times != planned
    pairs = np.unique(np.stack([times[other], planned[other]], axis=1), axis=0)
    result = []
    for number, plan in pairs.tolist():
        where = (times == number) & (planned == plan)
        result.append((Stretches(start[where], end[where], times[where]), plan))
    return result


def _count(exposures: Exposures, plan: EpochPlan, first: int, end: int) -> None:
    for low in range(first, end, _CHUNK_WINDOWS):
        found = plan.locate(np.arange(low, min(low + _CHUNK_WINDOWS, end)))
        exposures.add(Cuts.of(found.start, found.length))


def _told_epochs(last: int) -> list[int]:
    powers = {1 << bit for bit in range(last.bit_length())}
    return sorted(powers | set(range(1, min(last, _FIRST_ENDS) + 1)) | {last} - {0})


def _end(epoch: int, histogram: dict[int, int], unique_tokens: int) -> EpochEnd:
    unseen, once = histogram.get(0, 0), histogram.get(1, 0)
    return EpochEnd(
        epoch=epoch,
        unseen=unseen / unique_tokens,
        once=once / unique_tokens,
        more=(unique_tokens - unseen - once) / unique_tokens,
    )
