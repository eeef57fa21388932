"""Span corruption: spans of a window are hidden behind sentinels, and the decoder gives them back.

B: rows; L: raw tokens of a window; S: encoder positions; T: decoder positions; K: spans of a window.

Source:
    Raffel et al., "Exploring the limits of transfer learning with a unified text-to-text transformer",
    2020, section 3.1.4; counts and the way of drawing spans follow its published preprocessor.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from reptrain import random
from reptrain.batch.objectives.example import IGNORE, Example, Int64s, document_segments, shift_right
from reptrain.config.spans import SpanCounts, span_counts

if TYPE_CHECKING:
    from reptrain.batch.collate import MicroBatch


@dataclass(frozen=True)
class SpanCorruption:
    """T5's objective.

    The window 11 ... 18 with the spans 13 14 and 18 hidden, sentinels 99, 98 ..., EOS 1, start token 0:

    >>> import torch
    >>> from reptrain.batch.collate import MicroBatch
    >>> hidden = torch.tensor([[False, False, True, True, False, False, False, True]])
    >>> batch = MicroBatch(torch.arange(11, 19)[None], torch.tensor([8]), *torch.zeros(2, 1), hidden)
    >>> objective = SpanCorruption(0.375, 1.5, sentinel_ids=(99, 98), eos_id=1, start_id=0, window_tokens=8)
    >>> example = objective.example(batch)
    >>> example.inputs["source_BS"].tolist()
    [[11, 12, 99, 15, 16, 17, 98, 1]]
    >>> example.targets_BT.tolist()
    [[99, 13, 14, 98, 18, 1]]
    >>> example.inputs["inputs_BT"].tolist()
    [[0, 99, 13, 14, 98, 18]]

    Under a document mask each token keeps the segment of its document, a sentinel that of the first token
    it hides, so that nothing is seen across documents; spans are drawn over the window all the same.

    Args:
        noise_density: Share of a window's tokens that is hidden.
        mean_span_tokens: Mean length of a span.
        sentinel_ids: The tokenizer's, in the order of use; at least as many as a full window has spans.
        eos_id: Ends inputs and targets.
        start_id: The decoder's first input.
        window_tokens: Tokens of the longest window, which gives S and T.
        noise_seed: Keys the spans: the run's seed, or for a held-out set one of the store's.
        frozen: Whether a window has the same spans in every epoch.
        document_eos_id: The token that ends a document; None lets attention cross documents.
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

    def __post_init__(self) -> None:
        assert self._widths.spans <= len(self.sentinel_ids)

    @cached_property
    def _widths(self) -> SpanCounts:
        return self._counts(self.window_tokens)

    def _counts(self, num_tokens: int) -> SpanCounts:
        return span_counts(num_tokens, self.noise_density, self.mean_span_tokens)

    def target_tokens(self, length_N: Int64s) -> int:
        """Hidden tokens, a sentinel for each span, and EOS."""
        length, times = np.unique(length_N[length_N > 0], return_counts=True)
        return sum(self._counts(int(n)).targets * int(k) for n, k in zip(length, times, strict=True))

    def noise(
        self, seed_B: Int64s, epoch_B: Int64s, start_B: Int64s, length_B: Int64s, *, width: int
    ) -> npt.NDArray[np.bool_]:
        """Which tokens are hidden, bool [B, width]: a function of (seeds, epoch, window).

        Args:
            seed_B: int64, the seed of each window's source.
            epoch_B: int64, the epoch that it is read in; counts only where noise is fresh.
            start_B: int64, its first position in the stream of its source.
            length_B: int64, its tokens; 0 for a row that pads the batch.
            width: Columns of the result.
        """
        epoch_B = np.zeros_like(epoch_B) if self.frozen else epoch_B
        lengths, which_B = np.unique(length_B, return_inverse=True)
        counts = np.array([self._counts(int(n))[:2] if n else (0, 0) for n in lengths], dtype=np.int64)
        noise_B, spans_B = counts[which_B].T
        kept_key_B, hidden_key_B = (
            random.key(self.noise_seed, purpose, seed_B, epoch_B, start_B)
            for purpose in ("spans kept", "spans hidden")
        )
        kept_BK = _composition(length_B - noise_B, spans_B, kept_key_B)
        hidden_BK = _composition(noise_B, spans_B, hidden_key_B)
        # Kept and hidden runs take turns, a kept one first; what is left of the row is not hidden.
        runs = np.stack([kept_BK, hidden_BK], axis=2).reshape(len(length_B), -1)
        runs = np.concatenate([runs, (width - length_B)[:, None]], axis=1)
        is_hidden = np.arange(runs.shape[1]) % 2 == 1
        return np.repeat(np.tile(is_hidden, len(runs)), runs.ravel()).reshape(len(runs), width)

    def example(self, batch: MicroBatch) -> Example:
        """Inputs of an encoder-decoder: `source_BS`, `inputs_BT` and the segments of both."""
        assert batch.is_noise_BL is not None
        tokens_BL, is_noise_BL = batch.tokens_BL, batch.is_noise_BL
        segments_BL = document_segments(tokens_BL, batch.length_B, eos_id=self.document_eos_id)
        begins_BL = is_noise_BL & ~is_noise_BL.roll(1, dims=1)
        begins_BL[:, 0] = is_noise_BL[:, 0]
        span_BL = begins_BL.long().cumsum(1) - 1
        sentinel_K = torch.tensor(self.sentinel_ids, device=tokens_BL.device)
        sentinel_BL = sentinel_K[span_BL.clamp(min=0)]

        kept_BL = (segments_BL > 0) & (~is_noise_BL | begins_BL)
        source_place_BL = torch.where(kept_BL, kept_BL.long().cumsum(1) - 1, -1)
        target_place_BL = torch.where(is_noise_BL, is_noise_BL.long().cumsum(1) + span_BL, -1)
        sentinel_place_BL = torch.where(begins_BL, target_place_BL - 1, -1)

        source_BS, source_segments_BS = self._rows(
            [(source_place_BL, torch.where(begins_BL, sentinel_BL, tokens_BL))],
            segments_BL, batch.length_B, width=self._widths.inputs, fill=0,
        )  # fmt: skip
        targets_BT, segments_BT = self._rows(
            [(sentinel_place_BL, sentinel_BL), (target_place_BL, tokens_BL)],
            segments_BL, batch.length_B, width=self._widths.targets, fill=IGNORE,
        )  # fmt: skip
        is_raw_BT = _scatter(target_place_BL, is_noise_BL, self._widths.targets, fill=False)
        inputs = {
            "source_BS": source_BS,
            "inputs_BT": shift_right(targets_BT, segments_BT, start_id=self.start_id),
            "source_segments_BS": source_segments_BS,
            "segments_BT": segments_BT,
        }
        return Example(inputs, targets_BT, is_raw_BT)

    def _rows(
        self,
        parts: list[tuple[Tensor, Tensor]],
        segments_BL: Tensor,
        length_B: Tensor,
        *,
        width: int,
        fill: int,
    ) -> tuple[Tensor, Tensor]:
        """Values at their places, EOS behind the last of them, and the segments of all.

        Args:
            parts: Places and values of the raw tokens, [B, L] each; a place of -1 leaves one out.
            segments_BL: Segments of the raw tokens.
            length_B: Tokens of each row; a row of none gets no EOS.
            width: Columns of the result.
            fill: What stands behind EOS.
        """
        end_B1 = torch.cat([place for place, _ in parts], dim=1).amax(1, keepdim=True) + 1
        end_B1 = torch.where(length_B[:, None] > 0, end_B1, -1)
        place = torch.cat([*(place for place, _ in parts), end_B1], dim=1)
        values = torch.cat([*(value for _, value in parts), torch.full_like(end_B1, self.eos_id)], dim=1)
        last_B1 = segments_BL.amax(1, keepdim=True)
        segments = torch.cat([*(segments_BL for _ in parts), last_B1], dim=1)
        return _scatter(place, values, width, fill=fill), _scatter(place, segments, width, fill=0)


def _scatter(place_BN: Tensor, values_BN: Tensor, width: int, *, fill: int | bool) -> Tensor:
    """Rows of ``width`` with each value at its place; a place of -1 drops it."""
    out = values_BN.new_full((values_BN.shape[0], width + 1), fill)
    # Dropped values share a column behind the row, which is cut off.
    return out.scatter_(1, torch.where(place_BN < 0, width, place_BN), values_BN)[:, :width]


def _composition(total_B: Int64s, parts_B: Int64s, key_B: random.UInt64s) -> Int64s:
    """Random lengths: ``total`` as an ordered sum of ``parts`` positive numbers, all sums equally likely.

    Of the total - 1 places between two tokens, parts - 1 are drawn as cuts.

    Args:
        total_B: int64; at least as many as parts, or 0, which gives zeros.
        parts_B: int64.
        key_B: uint64, keys of the rows.

    Returns:
        int64 [B, largest number of parts], zeros behind a row's parts.
    """
    rows, most, columns = len(total_B), max(int(parts_B.max(initial=0)), 1), int(total_B.max(initial=0))
    place = np.arange(max(columns - 1, 0))
    drawn = random.uint64(key_B[:, None], place) >> np.uint64(1)
    drawn = np.where(place < total_B[:, None] - 1, drawn, np.uint64(2**63))
    is_cut = np.zeros((rows, columns), dtype=np.int64)
    order = np.argsort(drawn, axis=1, kind="stable")
    np.put_along_axis(is_cut, order + 1, place < parts_B[:, None] - 1, axis=1)
    part = np.cumsum(is_cut, axis=1) + most * np.arange(rows)[:, None]
    present = np.arange(columns) < total_B[:, None]
    return np.bincount(part[present], minlength=rows * most).reshape(rows, most)
