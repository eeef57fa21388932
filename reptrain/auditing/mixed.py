"""Exposures under the order `mixed`, where some tokens are seen twice before others are seen once.

With k copies of W windows shuffled as one list, a fraction of about (1 - 1/k)**k is unseen after W windows.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from reptrain.auditing.cuts import Cuts
from reptrain.auditing.exposures import Exposures, Stretches
from reptrain.plan import EpochPlan
from reptrain.runs.records import FrozenRecord

Int64s = npt.NDArray[np.int64]

_CHUNK_WINDOWS = 1 << 20
# Nominal epoch ends that are all reported; later ones only at powers of two.
_FIRST_ENDS = 8


class EpochEnd(FrozenRecord):
    """How much of a source had been seen at a nominal epoch end: after a multiple of W windows."""

    epoch: int
    """Nominal epochs that had ended."""
    unseen: float
    """Fraction of the source's tokens that had not been consumed."""
    once: float
    """Fraction consumed once."""
    more: float
    """Fraction consumed at least twice."""

    def text(self) -> str:
        """One line of text."""
        return (
            f"at nominal epoch end {self.epoch}: {self.unseen:.1%} of the tokens unseen,"
            f" {self.once:.1%} seen once, {self.more:.1%} twice or more"
        )


class MixedPrefix(NamedTuple):
    """Exposures of the first windows of a plan."""

    stretches: Stretches
    """Positions count in the source's own stream."""
    ends: tuple[EpochEnd, ...]


def mixed_prefix(plan: EpochPlan, windows: int) -> MixedPrefix:
    """Count the exposures of the first windows of a plan.

    Args:
        plan: The plan of one source.
        windows: How many windows.
    """
    exposures = Exposures([0, plan.unique_tokens])
    ends: list[EpochEnd] = []
    first = 0
    for epoch in _reported_epochs(windows // plan.windows_per_epoch):
        _count(exposures, plan, first, first := epoch * plan.windows_per_epoch)
        ends.append(_end(epoch, exposures.stretches().histogram(), plan.unique_tokens))
    _count(exposures, plan, first, windows)
    return MixedPrefix(exposures.stretches(), tuple(ends))


def differing(actual: Stretches, expected: Stretches) -> list[tuple[Stretches, int]]:
    """Where two counts of one stream differ: the stretches of each pair of actual and expected count."""
    start = np.union1d(actual.start, expected.start)
    end = np.append(start[1:], actual.end[-1])
    times = actual.times[np.searchsorted(actual.start, start, side="right") - 1]
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
        windows = plan.locate(np.arange(low, min(low + _CHUNK_WINDOWS, end)))
        exposures.add(Cuts.of(windows.start, windows.length))


def _reported_epochs(last: int) -> list[int]:
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
