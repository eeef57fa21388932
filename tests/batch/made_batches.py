"""Micro-batches made by hand."""

import torch
from torch import Tensor

from reptrain.batch.collate import MicroBatch


def windows(tokens_BL: Tensor, lengths: list[int], is_noise_BL: Tensor | None = None) -> MicroBatch:
    rows = torch.arange(len(lengths))
    return MicroBatch(tokens_BL, torch.tensor(lengths), rows * tokens_BL.shape[1], rows, is_noise_BL)
