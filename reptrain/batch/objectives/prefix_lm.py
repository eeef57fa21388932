"""Prefix language modeling: predict the rest of a window from its prefix.

Shapes: B rows of a micro-batch, L raw tokens of a window, S positions of the inputs, T positions of the
targets, N windows.

Source:
    Raffel et al., "Exploring the limits of transfer learning with a unified text-to-text transformer",
    2020, sections 3.2.1 and 3.3.1.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from reptrain import random
from reptrain.batch.micro_batch import MicroBatch
from reptrain.batch.objectives.example import (
    Example,
    Int64s,
    NoisePlaces,
    document_segments,
    shift_right,
)
from reptrain.batch.objectives.rows import Rows, scatter
from reptrain.config.objectives import PrefixLMConfig
from reptrain_kernels.ops.linear_cross_entropy import IGNORE


@dataclass(frozen=True)
class PrefixLM:
    """Splits a window into a prefix, which is input, and the rest, which is predicted.

    The window 11 ... 15 with a prefix of two tokens, for a decoder-only model. The prefix length is 3, with
    the start token: all positions attend to the first three, and the third predicts 13.

    >>> noise = {"split_B": torch.tensor([2])}
    >>> batch = MicroBatch(torch.arange(11, 16)[None], torch.tensor([5]), *torch.zeros(2, 1), noise)
    >>> objective = PrefixLM(PrefixLMConfig(name="prefix_lm"), start_id=0, window_tokens=5, in_one_row=True)
    >>> example = objective.example(batch)
    >>> example.inputs["tokens_BT"].tolist(), example.inputs["prefix_B"].tolist()
    ([[0, 11, 12, 13, 14]], [3])
    >>> example.targets_BT.tolist()
    [[-100, -100, 13, 14, 15]]

    For an encoder-decoder, the prefix is the encoder's input. There is no EOS, since windows end anywhere:

    >>> from dataclasses import replace
    >>> example = replace(objective, in_one_row=False).example(batch)
    >>> example.inputs["source_BS"].tolist(), example.inputs["inputs_BT"].tolist()
    ([[11, 12, 0, 0]], [[0, 13, 14, 0]])
    >>> example.targets_BT.tolist()
    [[13, 14, 15, -100]]

    Args:
        config: How to draw the length of the prefix.
        start_id: Id of the start token.
        window_tokens: Tokens of the longest window, which sets S and T.
        in_one_row: Whether one row holds prefix and targets, for a decoder-only model.
        noise_seed: Seed of the splits.
        frozen: Whether a window gets the same split in every epoch.
        document_eos_id: Id of the token that ends a document; None lets attention cross documents.
    """

    config: PrefixLMConfig
    start_id: int
    window_tokens: int
    in_one_row: bool
    noise_seed: int = 0
    frozen: bool = False
    document_eos_id: int | None = None

    def _split(self, places: NoisePlaces) -> Int64s:
        """Number of tokens in each window's prefix, int64 [N]."""
        length_N = places.length_N
        drawn_N = 1 + random.below(
            np.maximum(length_N - 1, 1), places.key(self.noise_seed, "split", frozen=self.frozen), 0
        )
        lengths, which_N = np.unique(length_N, return_inverse=True)
        splits = [self.config.split(int(length)) for length in lengths]
        fixed_N = np.array([-1 if split is None else split for split in splits], dtype=np.int64)[which_N]
        return np.where(fixed_N < 0, drawn_N, fixed_N)

    def loss_tokens(self, places: NoisePlaces) -> int:
        """The tokens after the prefixes."""
        return int((places.length_N - self._split(places)).sum())

    def noise(self, places: NoisePlaces, *, width: int) -> dict[str, np.ndarray]:
        """`split_B`: number of tokens in the prefix."""
        return {"split_B": self._split(places)}

    def example(self, batch: MicroBatch) -> Example:
        """Inputs of a decoder-only model, those of `Causal` and `prefix_B`, or of an encoder-decoder."""
        split_B = batch.noise["split_B"]
        segments_BL = document_segments(batch.tokens_BL, batch.length_B, eos_id=self.document_eos_id)
        column_L = torch.arange(batch.tokens_BL.shape[1], device=split_B.device)
        is_target_BL = (segments_BL > 0) & (column_L >= split_B[:, None])
        if not self.in_one_row:
            return self._rows(batch, segments_BL, is_target_BL).for_encoder_decoder(start_id=self.start_id)
        targets_BL = batch.tokens_BL.masked_fill(segments_BL == 0, IGNORE)
        inputs = {
            "tokens_BT": shift_right(targets_BL, segments_BL, start_id=self.start_id),
            "is_token_BT": segments_BL > 0,
        }
        if self.config.bidirectional:
            inputs["prefix_B"] = torch.where(batch.length_B > 0, split_B + 1, 0)
        if self.document_eos_id is not None:
            inputs["segments_BT"] = segments_BL
        return Example(inputs, targets_BL.masked_fill(~is_target_BL, IGNORE), is_target_BL, split_B)

    def _rows(self, batch: MicroBatch, segments_BL: torch.Tensor, is_target_BL: torch.Tensor) -> Rows:
        widths = self.config.shape(self.window_tokens, "t5")
        is_source_BL = (segments_BL > 0) & ~is_target_BL
        column_L = torch.arange(batch.tokens_BL.shape[1], device=segments_BL.device)
        source_place_BL = torch.where(is_source_BL, column_L, -1)
        target_place_BL = torch.where(is_target_BL, column_L - batch.noise["split_B"][:, None], -1)
        sources, targets = widths.input_tokens, widths.target_tokens
        return Rows(
            scatter(source_place_BL, batch.tokens_BL, sources, fill=0),
            scatter(source_place_BL, segments_BL, sources, fill=0),
            scatter(target_place_BL, batch.tokens_BL, targets, fill=IGNORE),
            scatter(target_place_BL, segments_BL, targets, fill=0),
            scatter(target_place_BL, is_target_BL, targets, fill=False),
        )
