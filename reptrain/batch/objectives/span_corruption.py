"""Span corruption: replace spans of a window by sentinels, and predict the spans.

Shapes: B rows of a micro-batch, L raw tokens of a window, S positions of the inputs, T positions of the
targets.

Source:
    Raffel et al., "Exploring the limits of transfer learning with a unified text-to-text transformer",
    2020, section 3.1.4; the counts and the distribution of spans follow its published preprocessor.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from reptrain.batch.micro_batch import MicroBatch
from reptrain.batch.objectives.example import Example, NoisePlaces
from reptrain.batch.objectives.spans import draw_hidden, hide_spans
from reptrain.config.spans import SpanCounts, span_counts


@dataclass(frozen=True)
class SpanCorruption:
    """T5's objective.

    The window 11 ... 18 with the spans 13 14 and 18 hidden, sentinels 99 and 98, EOS 1, start token 0:

    >>> import torch
    >>> hidden = {"is_noise_BL": torch.tensor([[False, False, True, True, False, False, False, True]])}
    >>> batch = MicroBatch(torch.arange(11, 19)[None], torch.tensor([8]), *torch.zeros(2, 1), hidden)
    >>> objective = SpanCorruption(0.375, 1.5, sentinel_ids=(99, 98), eos_id=1, start_id=0, window_tokens=8)
    >>> example = objective.example(batch)
    >>> example.inputs["source_BS"].tolist()
    [[11, 12, 99, 15, 16, 17, 98, 1]]
    >>> example.targets_BT.tolist()
    [[99, 13, 14, 98, 18, 1]]
    >>> example.inputs["inputs_BT"].tolist()
    [[0, 99, 13, 14, 98, 18]]

    For a decoder-only model, one row holds the inputs, as a bidirectional prefix, and then the targets:

    >>> from dataclasses import replace
    >>> example = replace(objective, in_one_row=True).example(batch)
    >>> example.inputs["tokens_BT"].tolist(), example.inputs["prefix_B"].tolist()
    ([[11, 12, 99, 15, 16, 17, 98, 1, 0, 99, 13, 14, 98, 18]], [8])
    >>> example.targets_BT.tolist()[0][8:]
    [99, 13, 14, 98, 18, 1]

    With a document mask, each token keeps the segment of its document, and a sentinel gets the segment of the
    first token that it hides, so that attention does not cross documents. A span may cross them.

    Args:
        noise_density: Fraction of a window's tokens to hide.
        mean_span_tokens: Mean length of a span, in tokens.
        sentinel_ids: Ids of the sentinels, in the order of use; at least one per span of a full window.
        eos_id: Id of the token that ends inputs and targets.
        start_id: Id of the decoder's first input.
        window_tokens: Tokens of the longest window, which sets S and T.
        noise_seed: Seed of the spans: the run's, or for a held-out set one of the store's.
        frozen: Whether a window gets the same spans in every epoch.
        document_eos_id: Id of the token that ends a document; None lets attention cross documents.
        in_one_row: Whether one row holds inputs and targets, for a decoder-only model.
    """

    noise_density: float
    mean_span_tokens: float
    sentinel_ids: tuple[int, ...]
    eos_id: int
    start_id: int
    window_tokens: int
    noise_seed: int = 0
    frozen: bool = False
    document_eos_id: int | None = None
    in_one_row: bool = False

    def __post_init__(self) -> None:
        assert self._widths.spans <= len(self.sentinel_ids)

    @cached_property
    def _widths(self) -> SpanCounts:
        return self._counts(self.window_tokens)

    def _counts(self, num_tokens: int) -> SpanCounts:
        return span_counts(num_tokens, self.noise_density, self.mean_span_tokens)

    def loss_tokens(self, places: NoisePlaces) -> int:
        """Hidden tokens, one sentinel per span, and EOS."""
        length, times = np.unique(places.length_N[places.length_N > 0], return_counts=True)
        return sum(self._counts(int(n)).targets * int(k) for n, k in zip(length, times, strict=True))

    def noise(self, places: NoisePlaces, *, width: int) -> dict[str, np.ndarray]:
        """`is_noise_BL`: the hidden tokens."""
        is_noise_BL = draw_hidden(
            places, self._counts, noise_seed=self.noise_seed, frozen=self.frozen, width=width
        )
        return {"is_noise_BL": is_noise_BL}

    def example(self, batch: MicroBatch) -> Example:
        """Inputs of an encoder-decoder or of a decoder-only model (see `Rows`)."""
        rows = hide_spans(
            batch,
            sentinel_ids=self.sentinel_ids,
            eos_id=self.eos_id,
            document_eos_id=self.document_eos_id,
            input_width=self._widths.inputs,
            target_width=self._widths.targets,
        )
        if self.in_one_row:
            return rows.for_decoder(start_id=self.start_id, document_mask=self.document_eos_id is not None)
        return rows.for_encoder_decoder(start_id=self.start_id)
