"""Denoising: reconstruct a whole window from a copy with masked spans.

Shapes: B rows of a micro-batch, L raw tokens of a window, S = T = L + 1 positions of inputs and targets.

Source:
    Raffel et al., "Exploring the limits of transfer learning with a unified text-to-text transformer",
    2020, section 3.3.1: the "MASS-style" variant, which replaces no token by a random one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from reptrain.batch.micro_batch import MicroBatch
from reptrain.batch.objectives.example import Example, NoisePlaces
from reptrain.batch.objectives.spans import draw_hidden, mask_spans
from reptrain.config.spans import SpanCounts, span_counts


@dataclass(frozen=True)
class Denoising:
    """The targets are the whole window, and most of it is also in the inputs, so the model learns to copy.

    The window 11 ... 18 with 13 14 and 18 masked by id 99, EOS 1, start token 0:

    >>> import torch
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

    For a decoder-only model, one row holds the inputs, as a bidirectional prefix, and then the targets:

    >>> from dataclasses import replace
    >>> example = replace(objective, in_one_row=True).example(batch)
    >>> example.inputs["tokens_BT"].tolist()[0][9:], example.inputs["prefix_B"].tolist()
    ([0, 11, 12, 13, 14, 15, 16, 17, 18], [9])

    Args:
        noise_density: Fraction of a window's tokens to mask.
        mean_span_tokens: Mean length of a masked span, in tokens.
        mask_id: Id that replaces a masked token.
        eos_id: Id of the token that ends inputs and targets.
        start_id: Id of the decoder's first input.
        window_tokens: Tokens of the longest window.
        noise_seed: Seed of the masks: the run's, or for a held-out set one of the store's.
        frozen: Whether a window gets the same masks in every epoch.
        document_eos_id: Id of the token that ends a document; None lets attention cross documents.
        in_one_row: Whether one row holds inputs and targets, for a decoder-only model.
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
        """All tokens of each window, and its EOS."""
        return int((places.length_N + (places.length_N > 0)).sum())

    def noise(self, places: NoisePlaces, *, width: int) -> dict[str, np.ndarray]:
        """`is_noise_BL`: the masked tokens."""
        is_noise_BL = draw_hidden(
            places, self._counts, noise_seed=self.noise_seed, frozen=self.frozen, width=width
        )
        return {"is_noise_BL": is_noise_BL}

    def example(self, batch: MicroBatch) -> Example:
        """Inputs of an encoder-decoder or of a decoder-only model (see `Rows`)."""
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
