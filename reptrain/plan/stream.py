"""The stream of a run: the streams of its sources, concatenated.

subsets of 7 and 4 tokens:         C C A A A B B | D D E E                 starts 0 and 7, 11 tokens
the second repacked, 2 epochs:     C C A A A B B | E E D D D D E E         starts 0 and 7, 15 tokens
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import numpy.typing as npt

from reptrain.config import RunConfig
from reptrain.config.json_digest import fingerprint
from reptrain.plan.documents import DocumentStream, check_windows
from reptrain.plan.epochs import EpochPlan
from reptrain.plan.mixture import plan_mixture
from reptrain.plan.repacked import Repacked
from reptrain.plan.subset import Subset

if TYPE_CHECKING:
    from reptrain.store import Store

Int64s = npt.NDArray[np.int64]
Result = TypeVar("Result")


class Stream:
    """The streams of a run's sources. A window lies within one of them.

    Args:
        subsets: At least one, in the order of the run's sources.
        plans: The plan of each; None: no cut is `repacked`.
    """

    def __init__(self, subsets: Sequence[Subset], plans: Sequence[EpochPlan] | None = None) -> None:
        self.subsets = tuple(subsets)
        self.parts: tuple[DocumentStream, ...] = self.subsets
        """The stream of each source: its subset, or all its epochs with the cut `repacked`."""
        if plans is not None:
            self.parts = tuple(map(source_stream, self.subsets, plans))
        tokens = [part.num_tokens for part in self.parts]
        unique = [subset.unique_tokens for subset in self.subsets]
        self.starts: Int64s = np.cumsum([0, *tokens[:-1]], dtype=np.int64)
        """Start of each source's stream."""
        self.subset_starts: Int64s = np.cumsum([0, *unique[:-1]], dtype=np.int64)
        """Start of each subset, if the subsets are concatenated."""
        self.num_tokens = sum(tokens)
        self.unique_tokens = sum(unique)

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the subsets in order; a single subset keeps its own."""
        if len(self.subsets) == 1:
            return self.subsets[0].fingerprint
        return fingerprint([subset.fingerprint for subset in self.subsets])

    def source_of(self, start: Int64s | int) -> Int64s:
        """The source of each position: int64 of the same shape."""
        return np.asarray(np.searchsorted(self.starts, start, side="right") - 1, dtype=np.int64)

    def tokens(self, start_B: Int64s, length_B: Int64s, width: int) -> tuple[Int64s, Int64s]:
        """Windows of the stream as rows.

        Args:
            start_B: int64 [B], first position of each window in the stream.
            length_B: int64 [B], tokens of each; 0 gives an empty row.
            width: Columns of the result, at least the longest window.

        Returns:
            Tokens int64 [B, width], zero after a window's end, and the lengths int64 [B].

        Raises:
            PlanError: If a window exceeds its source or `width`.
        """
        if len(self.parts) == 1:
            return self.parts[0].tokens(start_B, length_B, width)
        start_B, length_B = np.asarray(start_B, np.int64), np.asarray(length_B, np.int64)
        self._check(start_B, length_B)
        source_B = self.source_of(start_B)
        tokens_BL = np.zeros((start_B.size, width), dtype=np.int64)
        for source in np.unique(source_B):
            rows = np.flatnonzero(source_B == source)
            local = start_B[rows] - self.starts[source]
            tokens_BL[rows], _ = self.parts[source].tokens(local, length_B[rows], width)
        return tokens_BL, length_B

    def flat(self, start_N: Int64s, length_N: Int64s) -> npt.NDArray[np.unsignedinteger]:
        """Parts of one source, concatenated, as its store holds them: uint16 or uint32.

        Args:
            start_N: int64 [N], first position of each part in the stream.
            length_N: int64 [N], tokens of each.

        Raises:
            PlanError: If a part is not in the source of the first.
        """
        source = int(self.source_of(int(start_N[0])))
        return self.parts[source].flat(start_N - self.starts[source], length_N)

    def read(self, start: int, length: int) -> Int64s:
        """Tokens [start, start + length) of the stream, within one source, int64."""
        return self._of_source(DocumentStream.read, start, length)

    def documents(self, start: int, length: int) -> list[str]:
        """Ids of the documents with tokens in [start, start + length), within one source, in order."""
        return self._of_source(DocumentStream.documents, start, length)

    def _of_source(
        self, read: Callable[[DocumentStream, int, int], Result], start: int, length: int
    ) -> Result:
        self._check(np.asarray([start]), np.asarray([length]))
        source = int(self.source_of(start))
        return read(self.parts[source], start - int(self.starts[source]), length)

    def _check(self, start_B: Int64s, length_B: Int64s) -> None:
        check_windows(start_B, length_B, self.num_tokens, name="stream")


def source_stream(subset: Subset, plan: EpochPlan) -> DocumentStream:
    """The stream that holds the windows of a source's plan."""
    if plan.cut != "repacked":
        return subset
    return Repacked(subset, seed=plan.seed, epochs=plan.stream_tokens // plan.unique_tokens)


def open_stream(config: RunConfig, stores: Mapping[str, Store]) -> Stream:
    """The training text of a run: the subset of each of its sources.

    Args:
        config: The run.
        stores: Its open stores by the name of the source.

    Raises:
        PlanError: If a subset is larger than its store or shorter than a window, or an order cannot be
            cached.
    """
    subsets = {
        name: Subset.open(
            stores[name],
            seed=source.subset_seed or 0,
            unique_tokens=source.unique_tokens,
            setting=unique_tokens_setting(config, name),
        )
        for name, source in config.sources.items()
    }
    mixture = plan_mixture(config, {name: subset.unique_tokens for name, subset in subsets.items()})
    return Stream([*subsets.values()], mixture.plans)


def unique_tokens_setting(config: RunConfig, source: str) -> str:
    """The configuration key for the unique tokens of a source."""
    return f"data.sources.{source}.unique_tokens" if config.data.sources else "data.unique_tokens"
