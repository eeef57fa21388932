"""The interface of objectives, and the examples that they make.

Shapes: B rows of a micro-batch, T positions of the decoder, L raw tokens of a window, N windows, V ids of the
tokenizer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from reptrain import random
from reptrain.batch.micro_batch import MicroBatch
from reptrain_kernels.ops.linear_cross_entropy import IGNORE

Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Example:
    """Model inputs and targets of a micro-batch."""

    inputs: dict[str, Tensor]
    """Keyword arguments of the model's forward pass."""
    targets_BT: Tensor
    """int64; `IGNORE` where there is no target."""
    is_raw_BT: Tensor
    """bool: targets that are tokens of the window, not sentinels or the EOS at the end of an example."""
    num_inputs_B: Tensor
    """int64: number of input tokens that are not predicted."""
    weight_BT: Tensor | None = None
    """fp32: loss weight of each target; None: 1."""
    bounded_B: Tensor | None = None
    """int64: number of tokens covered by the ELBO, if the weighted nats are a bound; None: the targets."""

    @property
    def is_scored_BT(self) -> Tensor:
        """bool: whether a position has a target."""
        return self.targets_BT != IGNORE

    @property
    def loss_tokens_B(self) -> Tensor:
        """int64: divisor of each row's loss: its targets, or the tokens covered by the ELBO."""
        return self.is_scored_BT.sum(1) if self.bounded_B is None else self.bounded_B

    def text_bytes(self, batch: MicroBatch, byte_length_V: Tensor) -> Tensor:
        """Bytes of text that the loss covers, the divisor of bits per byte.

        Args:
            batch: The micro-batch of this example.
            byte_length_V: float64, number of bytes of each id.

        Returns:
            float64 scalar.
        """
        if self.bounded_B is None:
            return byte_length_V[self.targets_BT[self.is_raw_BT]].sum()
        is_token_BL = (
            torch.arange(batch.tokens_BL.shape[1], device=batch.length_B.device) < batch.length_B[:, None]
        )
        return byte_length_V[batch.tokens_BL[is_token_BL]].sum()

    def weighted(self, nats_BT: Tensor) -> Tensor:
        """The loss of each target times its weight, in nats."""
        return nats_BT if self.weight_BT is None else nats_BT * self.weight_BT


class NoisePlaces(NamedTuple):
    """What the noise of each window is a function of, int64 [N] each."""

    seed_N: Int64s
    """Seed of the window's source."""
    epoch_N: Int64s
    """Epoch of the window's source."""
    start_N: Int64s
    """Position of the window's first token in the stream of its source."""
    length_N: Int64s
    """Number of tokens in the window; 0 for a padding row."""

    def part(self, first: int, end: int) -> NoisePlaces:
        """The windows ``first`` to ``end - 1``."""
        return NoisePlaces(*(values[first:end] for values in self))

    def key(self, noise_seed: int, purpose: str, *, frozen: bool) -> random.UInt64s:
        """One key per window, uint64 [N].

        Args:
            noise_seed: Seed of the objective's noise.
            purpose: Name of the random draw.
            frozen: Whether the key is the same in every epoch.
        """
        epoch_N = np.zeros_like(self.epoch_N) if frozen else self.epoch_N
        return random.key(noise_seed, purpose, self.seed_N, epoch_N, self.start_N)


class Objective(Protocol):
    """Maps a micro-batch to model inputs and targets.

    The host draws the noise, which depends on the window alone. The device builds the example from the same
    tensor that the ledger's digest is computed from.
    """

    def loss_tokens(self, places: NoisePlaces) -> int:
        """Divisor of the loss of these windows."""

    def noise(self, places: NoisePlaces, *, width: int) -> dict[str, np.ndarray]:
        """Draw the noise of each window.

        Args:
            places: The windows.
            width: Number of columns of arrays with one value per raw token.

        Returns:
            Arrays by name, with one row per window.
        """

    def example(self, batch: MicroBatch) -> Example:
        """Inputs and targets of a micro-batch, on its device."""


def document_segments(tokens_BL: Tensor, length_B: Tensor, *, eos_id: int | None) -> Tensor:
    """The document index of each token within its window, from 1; 0 for padding. int64 [B, L].

    >>> document_segments(torch.tensor([[5, 6, 1, 7, 8, 0]]), torch.tensor([5]), eos_id=1).tolist()
    [[1, 1, 1, 2, 2, 0]]

    Args:
        tokens_BL: int64, token ids.
        length_B: int64, number of tokens in each row.
        eos_id: Id of the last token of a document; None: a window is one segment.
    """
    is_token_BL = torch.arange(tokens_BL.shape[1], device=tokens_BL.device) < length_B[:, None]
    if eos_id is None:
        return is_token_BL.long()
    is_end_BL = (tokens_BL == eos_id).long()
    return (1 + is_end_BL.cumsum(1) - is_end_BL) * is_token_BL


def shift_right(targets_BT: Tensor, segments_BT: Tensor, *, start_id: int) -> Tensor:
    """Decoder inputs: the target before each position, or the start token if a segment begins. int64 [B, T].

    >>> targets = torch.tensor([[11, 12, 21, 22, -100]])
    >>> shift_right(targets, torch.tensor([[1, 1, 2, 2, 0]]), start_id=0).tolist()
    [[0, 11, 0, 21, 0]]

    Args:
        targets_BT: int64, `IGNORE` for padding.
        segments_BT: int64, segment of each target, 0 for padding.
        start_id: Id of the start token.
    """
    begins_BT = torch.ones_like(segments_BT, dtype=torch.bool)
    begins_BT[:, 1:] = segments_BT[:, 1:] != segments_BT[:, :-1]
    before_BT = targets_BT.roll(1, dims=1)
    return before_BT.masked_fill(begins_BT | (segments_BT == 0), start_id)
