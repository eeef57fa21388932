"""Denoising: a window with some tokens masked is given back whole.

B: rows; L: raw tokens of a window; S = T = L + 1: positions of inputs and targets.

Source:
    Raffel et al., "Exploring the limits of transfer learning with a unified text-to-text transformer",
    2020, section 3.3.1: the variant without random tokens that they call MASS-style.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from reptrain.batch.objectives.example import Example, NoisePlaces
from reptrain.batch.objectives.spans import draw_hidden, mask_spans
from reptrain.config.spans import SpanCounts, span_counts

if TYPE_CHECKING:
    from reptrain.batch.collate import MicroBatch


@dataclass(frozen=True)
class Denoising:
    """The decoder writes all of the window, most of which it finds in its inputs: so it learns to copy.

    The window 11 ... 18 with 13 14 and 18 masked by 99, EOS 1, start token 0:

    >>> import torch
    >>> from reptrain.batch.collate import MicroBatch
    >>> hidden = {"is_noise_BL": torch.tensor([[False, False, True, True, False, False, False, True]])}
    >>> batch = MicroBatch(torch.arange(11, 19)[None], torch.tensor([8]), *torch.zeros(2, 1), hidden)
    >>> objective = Denoising(0.375, 1.5, mask_id=99, eos_id=1, start_id=0, window_tokens=8)
    >>> example = objective.example(batch)
    >>> example.inputs["source_BS"].tolist()
    [[11, 12, 99, 99, 15, 16, 17, 99, 1]]
    >>> example.targets_BT.tolist()
    [[11, 12, 13, 14, 15, 16, 17, 18, 1]]
    >>> example.inputs["inputs_BT"].tolist()
    [[0, 11, 12, 13, 14, 15, 16, 17, 18]]

    A decoder alone reads the inputs bidirectionally, and in the same row behind them the targets:

    >>> from dataclasses import replace
    >>> example = replace(objective, in_one_row=True).example(batch)
    >>> example.inputs["tokens_BT"].tolist()[0][9:], example.inputs["prefix_B"].tolist()
    ([0, 11, 12, 13, 14, 15, 16, 17, 18], [9])

    Args:
        noise_density: Share of a window's tokens that is masked.
        mean_span_tokens: Mean length of a run of them.
        mask_id: Stands for a masked token.
        eos_id: Ends inputs and targets.
        start_id: The decoder's first input.
        window_tokens: Tokens of the longest window.
        noise_seed: Keys the masks: the run's seed, or for a held-out set one of the store's.
        frozen: Whether a window has the same masks in every epoch.
        document_eos_id: The token that ends a document; None lets attention cross documents.
        in_one_row: Whether the targets stand behind the inputs, for a decoder alone.
    """

    noise_density: float
    mean_span_tokens: float
    mask_id: int
    eos_id: int
    start_id: int
    window_tokens: int
    noise_seed: int = 0
    frozen: bool = False
    document_eos_id: int | None = None
    in_one_row: bool = False

    def _counts(self, num_tokens: int) -> SpanCounts:
        return span_counts(num_tokens, self.noise_density, self.mean_span_tokens)

    def loss_tokens(self, places: NoisePlaces) -> int:
        """Every token of a window, and EOS."""
        return int((places.length_N + (places.length_N > 0)).sum())

    def noise(self, places: NoisePlaces, *, width: int) -> dict[str, np.ndarray]:
        """`is_noise_BL`: which tokens are masked."""
        is_noise_BL = draw_hidden(
            places, self._counts, noise_seed=self.noise_seed, frozen=self.frozen, width=width
        )
        return {"is_noise_BL": is_noise_BL}

    def example(self, batch: MicroBatch) -> Example:
        """Inputs of an encoder-decoder or of a decoder (see `Rows`)."""
        rows = mask_spans(
            batch,
            mask_id=self.mask_id,
            eos_id=self.eos_id,
            document_eos_id=self.document_eos_id,
            width=self.window_tokens + 1,
        )
        if self.in_one_row:
            return rows.for_decoder(start_id=self.start_id, document_mask=self.document_eos_id is not None)
        return rows.for_encoder_decoder(start_id=self.start_id)
