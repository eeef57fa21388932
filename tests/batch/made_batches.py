"""Micro-batches for tests."""

import numpy as np
import torch
from torch import Tensor

from reptrain.batch.collate import MicroBatch
from reptrain.batch.objectives import NoisePlaces


def windows(tokens_BL: Tensor, lengths: list[int], noise: dict[str, np.ndarray] | None = None) -> MicroBatch:
    rows = torch.arange(len(lengths))
    drawn = {name: torch.from_numpy(values) for name, values in (noise or {}).items()}
    return MicroBatch(tokens_BL, torch.tensor(lengths), rows * tokens_BL.shape[1], rows, drawn)


def places(lengths: list[int] | np.ndarray, *, epoch: int = 0, width: int = 64) -> NoisePlaces:
    """Consecutive windows in the stream of one source."""
    length = np.array(lengths, dtype=np.int64)
    return NoisePlaces(
        np.zeros_like(length), np.full_like(length, epoch), np.arange(len(length)) * width, length
    )
