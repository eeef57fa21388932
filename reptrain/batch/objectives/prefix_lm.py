"""Prefix language modelling: the rest of a window is predicted from its beginning.

B: rows; L: raw tokens of a window; S: positions of the inputs; T: positions of the targets.

Source:
    Raffel et al., "Exploring the limits of transfer learning with a unified text-to-text transformer",
    2020, sections 3.2.1 and 3.3.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch

from reptrain import random
from reptrain.batch.objectives.example import (
    IGNORE,
    Example,
    Int64s,
    NoisePlaces,
    document_segments,
    shift_right,
)
from reptrain.batch.objectives.rows import Rows, scatter
from reptrain.config.objectives import PrefixLMConfig

if TYPE_CHECKING:
    from reptrain.batch.collate import MicroBatch


@dataclass(frozen=True)
class PrefixLM:
    """A window is split in two: its beginning is read, the rest is predicted, each token once.

    The window 11 ... 15 split behind 12, in a decoder: what stands at the first three places, the start token
    and 11 and 12, is read by all positions; the third predicts 13.

    >>> from reptrain.batch.collate import MicroBatch
    >>> noise = {"split_B": torch.tensor([2])}
    >>> batch = MicroBatch(torch.arange(11, 16)[None], torch.tensor([5]), *torch.zeros(2, 1), noise)
    >>> objective = PrefixLM(PrefixLMConfig(name="prefix_lm"), start_id=0, window_tokens=5, in_one_row=True)
    >>> example = objective.example(batch)
    >>> example.inputs["tokens_BT"].tolist(), example.inputs["prefix_B"].tolist()
    ([[0, 11, 12, 13, 14]], [3])
    >>> example.targets_BT.tolist()
    [[-100, -100, 13, 14, 15]]

    An encoder-decoder reads the beginning with its encoder. No EOS is added, as the window is cut anywhere:

    >>> from dataclasses import replace
    >>> example = replace(objective, in_one_row=False).example(batch)
    >>> example.inputs["source_BS"].tolist(), example.inputs["inputs_BT"].tolist()
    ([[11, 12, 0, 0]], [[0, 13, 14, 0]])
    >>> example.targets_BT.tolist()
    [[13, 14, 15, -100]]

    Args:
        config: Where the split is.
        start_id: The id that stands before the first token.
        window_tokens: Tokens of the longest window, which gives S and T.
        in_one_row: For a decoder alone.
        noise_seed: Keys the splits.
        frozen: Whether a window has the same split in every epoch.
        document_eos_id: The token that ends a document; None lets attention cross documents.
    """

    config: PrefixLMConfig
    start_id: int
    window_tokens: int
    in_one_row: bool
    noise_seed: int = 0
    frozen: bool = False
    document_eos_id: int | None = None

    def _split(self, places: NoisePlaces) -> Int64s:
        """Tokens of each window's beginning."""
        length_N = places.length_N
        drawn_N = 1 + random.below(
            np.maximum(length_N - 1, 1), places.key(self.noise_seed, "split", frozen=self.frozen), 0
        )
        lengths, which_N = np.unique(length_N, return_inverse=True)
        splits = [self.config.split(int(length)) for length in lengths]
        fixed_N = np.array([-1 if split is None else split for split in splits], dtype=np.int64)[which_N]
        return np.where(fixed_N < 0, drawn_N, fixed_N)

    def loss_tokens(self, places: NoisePlaces) -> int:
        """The tokens behind the splits."""
        return int((places.length_N - self._split(places)).sum())

    def noise(self, places: NoisePlaces, *, width: int) -> dict[str, np.ndarray]:
        """`split_B`: tokens of the beginning."""
        return {"split_B": self._split(places)}

    def example(self, batch: MicroBatch) -> Example:
        """Inputs of a decoder, as in `Causal` with `prefix_B`, or of an encoder-decoder."""
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
        read_BL = (segments_BL > 0) & ~is_target_BL
        column_L = torch.arange(batch.tokens_BL.shape[1], device=segments_BL.device)
        source_place_BL = torch.where(read_BL, column_L, -1)
        target_place_BL = torch.where(is_target_BL, column_L - batch.noise["split_B"][:, None], -1)
        sources, targets = widths.input_tokens, widths.target_tokens
        return Rows(
            scatter(source_place_BL, batch.tokens_BL, sources, fill=0),
            scatter(source_place_BL, segments_BL, sources, fill=0),
            scatter(target_place_BL, batch.tokens_BL, targets, fill=IGNORE),
            scatter(target_place_BL, segments_BL, targets, fill=0),
            scatter(target_place_BL, is_target_BL, targets, fill=False),
        )
