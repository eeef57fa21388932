"""What an objective makes of a micro-batch.

B: rows; T: positions of the decoder; S: positions of the encoder; L: raw tokens of a window.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from reptrain import random
from reptrain_kernels.ops.linear_cross_entropy import IGNORE

if TYPE_CHECKING:
    from reptrain.batch.collate import MicroBatch

Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Example:
    """What the model is given, and what it is asked."""

    inputs: dict[str, Tensor]
    """Keyword arguments of the model's forward pass."""
    targets_BT: Tensor
    """int64; `IGNORE` where nothing is scored."""
    is_raw_BT: Tensor
    """bool: targets that are tokens of the window, not sentinels or the EOS that ends an example."""
    num_inputs_B: Tensor
    """int64: tokens that are read and not predicted."""
    weight_BT: Tensor | None = None
    """fp32: what the nats of each target are multiplied by; None: 1."""
    bounded_B: Tensor | None = None
    """int64: where the nats so weighted are a bound for more tokens than are scored, these; else None."""

    @property
    def is_scored_BT(self) -> Tensor:
        """bool: where there is a target."""
        return self.targets_BT != IGNORE

    @property
    def loss_tokens_B(self) -> Tensor:
        """int64: what the nats are divided by."""
        return self.is_scored_BT.sum(1) if self.bounded_B is None else self.bounded_B

    def text_bytes(self, batch: MicroBatch, byte_length_V: Tensor) -> Tensor:
        """Bytes of the text that the nats tell: a scalar, float64.

        Args:
            batch: What the example was made from.
            byte_length_V: float64, the bytes that each id stands for.
        """
        if self.bounded_B is None:
            return byte_length_V[self.targets_BT[self.is_raw_BT]].sum()
        is_token_BL = (
            torch.arange(batch.tokens_BL.shape[1], device=batch.length_B.device) < batch.length_B[:, None]
        )
        return byte_length_V[batch.tokens_BL[is_token_BL]].sum()

    def weighted(self, nats_BT: Tensor) -> Tensor:
        """The targets' nats times their weights."""
        return nats_BT if self.weight_BT is None else nats_BT * self.weight_BT


class NoisePlaces(NamedTuple):
    """What the noise of windows is a function of, int64 [N] each."""

    seed_N: Int64s
    """Of the window's source."""
    epoch_N: Int64s
    """The epoch that it is read in."""
    start_N: Int64s
    """Its first position in the stream of its source."""
    length_N: Int64s
    """Its tokens; 0 for a row that pads the batch."""

    def key(self, noise_seed: int, purpose: str, *, frozen: bool) -> random.UInt64s:
        """A key for each window; the same in all epochs where the noise is frozen."""
        epoch_N = np.zeros_like(self.epoch_N) if frozen else self.epoch_N
        return random.key(noise_seed, purpose, self.seed_N, epoch_N, self.start_N)


class Objective(Protocol):
    """What is predicted from what. Its noise is drawn on the host, as a function of the window alone; the
    example is made on the device, from the very tensor that the digest of the ledger is taken from."""

    def loss_tokens(self, places: NoisePlaces) -> int:
        """What the sum of the nats of these windows is divided by."""

    def noise(self, places: NoisePlaces, *, width: int) -> dict[str, np.ndarray]:
        """What is drawn for each window, by name; ``width`` columns where each raw token has a value."""

    def example(self, batch: MicroBatch) -> Example:
        """Inputs and targets of a micro-batch, on its device."""


def document_segments(tokens_BL: Tensor, length_B: Tensor, *, eos_id: int | None) -> Tensor:
    """The document of each token within its window, from 1; 0 behind the window's end.

    >>> document_segments(torch.tensor([[5, 6, 1, 7, 8, 0]]), torch.tensor([5]), eos_id=1).tolist()
    [[1, 1, 1, 2, 2, 0]]

    Args:
        tokens_BL: int64 token ids.
        length_B: int64 tokens of each row.
        eos_id: The token that ends a document, still its own; None makes one segment of a window.
    """
    is_token_BL = torch.arange(tokens_BL.shape[1], device=tokens_BL.device) < length_B[:, None]
    if eos_id is None:
        return is_token_BL.long()
    is_end_BL = (tokens_BL == eos_id).long()
    return (1 + is_end_BL.cumsum(1) - is_end_BL) * is_token_BL


def shift_right(targets_BT: Tensor, segments_BT: Tensor, *, start_id: int) -> Tensor:
    """Decoder inputs: the token before each target, and a start token where its segment begins.

    >>> targets = torch.tensor([[11, 12, 21, 22, -100]])
    >>> shift_right(targets, torch.tensor([[1, 1, 2, 2, 0]]), start_id=0).tolist()
    [[0, 11, 0, 21, 0]]

    Args:
        targets_BT: int64, `IGNORE` for padding.
        segments_BT: int64, 0 for padding.
        start_id: The id that stands before the first token.
    """
    begins_BT = torch.ones_like(segments_BT, dtype=torch.bool)
    begins_BT[:, 1:] = segments_BT[:, 1:] != segments_BT[:, :-1]
    before_BT = targets_BT.roll(1, dims=1)
    return before_BT.masked_fill(begins_BT | (segments_BT == 0), start_id)
