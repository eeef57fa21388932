"""What the audit's level `inputs` rebuilds. The rebuilding needs torch (`reptrain.training.rebuilt_inputs`).

Shapes: N windows of some records.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt

from reptrain.auditing.ledger_columns import Columns
from reptrain.plan import Stream
from reptrain.runs.folder import RunFolder
from reptrain.store import Store


class RebuiltInputs(NamedTuple):
    """The model's inputs in the windows of some records."""

    digest_N: npt.NDArray[np.uint64]
    """The part of each window in the input digest (docs/format.md)."""
    targets_N: npt.NDArray[np.int64]
    """Number of targets in each window."""

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """The parts in their order."""
        return cls(*(np.concatenate(columns) for columns in zip(*parts, strict=True)))


Rebuild = Callable[[Columns], RebuiltInputs]
"""Rebuilds the inputs of some records."""
OpenRebuild = Callable[[RunFolder, Mapping[str, Store], Stream], Rebuild]
"""Prepares the rebuilding of a run, from its folder, stores and stream."""
