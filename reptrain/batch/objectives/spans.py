"""Draw the spans of a window, and replace them by sentinels or masks.

On a CPU with a C compiler, `spans_native` does most of it, with the same results.

Shapes: B rows of a micro-batch, L raw tokens of a window, S positions of the inputs, T positions of the
targets, K spans of a window.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from reptrain import random
from reptrain.batch.micro_batch import MicroBatch
from reptrain.batch.objectives import spans_native
from reptrain.batch.objectives.example import Int64s, NoisePlaces, document_segments
from reptrain.batch.objectives.rows import Rows, ids_on, scatter
from reptrain.config.spans import SpanCounts
from reptrain_kernels.ops.linear_cross_entropy import IGNORE


def draw_spans(
    places: NoisePlaces, noise_B: Int64s, spans_B: Int64s, *, noise_seed: int, frozen: bool, width: int
) -> npt.NDArray[np.bool_]:
    """Draw which tokens are hidden, as a function of (seeds, epoch, window) and the counts.

    Kept and hidden spans alternate: a window begins with a kept one and ends with a hidden one. All such
    divisions are equally likely.

    Args:
        places: The windows.
        noise_B: int64, number of tokens to hide in each window.
        spans_B: int64, number of spans that they form.
        noise_seed: Seed of the objective's noise.
        frozen: Whether a window gets the same spans in every epoch.
        width: Number of columns of the result.

    Returns:
        bool [B, width].
    """
    kept_key_B, hidden_key_B = (
        places.key(noise_seed, purpose, frozen=frozen) for purpose in ("spans kept", "spans hidden")
    )
    drawn = spans_native.draw_spans(places.length_N, noise_B, spans_B, kept_key_B, hidden_key_B, width=width)
    if drawn is not None:
        return drawn
    kept_BK = _composition(places.length_N - noise_B, spans_B, kept_key_B)
    hidden_BK = _composition(noise_B, spans_B, hidden_key_B)
    # Kept and hidden runs alternate. The last run fills the row; its index is even, so it is not hidden.
    runs = np.stack([kept_BK, hidden_BK], axis=2).reshape(len(noise_B), -1)
    runs = np.concatenate([runs, (width - places.length_N)[:, None]], axis=1)
    is_hidden = np.arange(runs.shape[1]) % 2 == 1
    return np.repeat(np.tile(is_hidden, len(runs)), runs.ravel()).reshape(len(runs), width)


def draw_hidden(
    places: NoisePlaces,
    count: Callable[[int], SpanCounts],
    *,
    noise_seed: int,
    frozen: bool,
    width: int,
) -> npt.NDArray[np.bool_]:
    """`draw_spans` with the numbers of tokens and spans that ``count`` gives for each window's length."""
    lengths, index_B = np.unique(places.length_N, return_inverse=True)
    counts = np.array([count(int(n))[:2] if n else (0, 0) for n in lengths], dtype=np.int64)
    noise_B, spans_B = counts[index_B].T
    return draw_spans(places, noise_B, spans_B, noise_seed=noise_seed, frozen=frozen, width=width)


def _composition(total_B: Int64s, parts_B: Int64s, key_B: random.UInt64s) -> Int64s:
    """Draw ``total`` as an ordered sum of ``parts`` positive integers; all sums are equally likely.

    Each draw selects parts - 1 of the total - 1 boundaries between two tokens.

    Args:
        total_B: int64, at least ``parts_B``, or 0, which gives zeros.
        parts_B: int64.
        key_B: uint64, key of each row.

    Returns:
        int64 [B, largest number of parts], zeros after a row's parts.
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


def hide_spans(
    batch: MicroBatch,
    *,
    sentinel_ids: tuple[int, ...],
    eos_id: int,
    document_eos_id: int | None,
    input_width: int,
    target_width: int,
) -> Rows:
    """Inputs: the window with each hidden span replaced by a sentinel. Targets: each sentinel and its span.

    Args:
        batch: The micro-batch, with the noise `is_noise_BL`.
        sentinel_ids: Ids of the sentinels, in the order of use.
        eos_id: Id of the token that ends inputs and targets.
        document_eos_id: Id of the token that ends a document; None lets attention cross documents.
        input_width: S.
        target_width: T.
    """
    tokens_BL, is_noise_BL = batch.tokens_BL, batch.noise["is_noise_BL"]
    hidden = spans_native.hide_spans(
        tokens_BL,
        is_noise_BL,
        batch.length_B,
        sentinel_ids=sentinel_ids,
        eos_id=eos_id,
        document_eos_id=document_eos_id,
        input_width=input_width,
        target_width=target_width,
    )
    if hidden is not None:
        return hidden
    segments_BL = document_segments(tokens_BL, batch.length_B, eos_id=document_eos_id)
    begins_BL = is_noise_BL & ~is_noise_BL.roll(1, dims=1)
    begins_BL[:, 0] = is_noise_BL[:, 0]
    span_BL = begins_BL.long().cumsum(1) - 1
    sentinel_K = ids_on(tokens_BL.device, sentinel_ids)
    sentinel_BL = sentinel_K[span_BL.clamp(min=0)]

    kept_BL = (segments_BL > 0) & (~is_noise_BL | begins_BL)
    source_place_BL = torch.where(kept_BL, kept_BL.long().cumsum(1) - 1, -1)
    target_place_BL = torch.where(is_noise_BL, is_noise_BL.long().cumsum(1) + span_BL, -1)
    sentinel_place_BL = torch.where(begins_BL, target_place_BL - 1, -1)

    source_BS, source_segments_BS = _with_eos(
        [(source_place_BL, torch.where(begins_BL, sentinel_BL, tokens_BL))],
        segments_BL, batch.length_B, eos_id=eos_id, width=input_width, fill=0,
    )  # fmt: skip
    targets_BT, segments_BT = _with_eos(
        [(sentinel_place_BL, sentinel_BL), (target_place_BL, tokens_BL)],
        segments_BL, batch.length_B, eos_id=eos_id, width=target_width, fill=IGNORE,
    )  # fmt: skip
    is_raw_BT = scatter(target_place_BL, is_noise_BL, target_width, fill=False)
    return Rows(source_BS, source_segments_BS, targets_BT, segments_BT, is_raw_BT)


def mask_spans(
    batch: MicroBatch, *, mask_id: int, eos_id: int, document_eos_id: int | None, width: int
) -> Rows:
    """Inputs: the window with hidden tokens masked. Targets: the window.

    Args:
        batch: The micro-batch, with the noise `is_noise_BL`.
        mask_id: Id that replaces a hidden token.
        eos_id: Id of the token that ends inputs and targets.
        document_eos_id: Id of the token that ends a document; None lets attention cross documents.
        width: S and T, one more than L.
    """
    tokens_BL, is_noise_BL = batch.tokens_BL, batch.noise["is_noise_BL"]
    segments_BL = document_segments(tokens_BL, batch.length_B, eos_id=document_eos_id)
    column_L = torch.arange(tokens_BL.shape[1], device=tokens_BL.device)
    place_BL = torch.where(segments_BL > 0, column_L, -1)
    masked_BL = tokens_BL.masked_fill(is_noise_BL, mask_id)
    source_BS, source_segments_BS = _with_eos(
        [(place_BL, masked_BL)], segments_BL, batch.length_B, eos_id=eos_id, width=width, fill=0
    )
    targets_BT, segments_BT = _with_eos(
        [(place_BL, tokens_BL)], segments_BL, batch.length_B, eos_id=eos_id, width=width, fill=IGNORE
    )
    is_raw_BT = scatter(place_BL, segments_BL > 0, width, fill=False)
    return Rows(source_BS, source_segments_BS, targets_BT, segments_BT, is_raw_BT)


def _with_eos(
    parts: list[tuple[Tensor, Tensor]],
    segments_BL: Tensor,
    length_B: Tensor,
    *,
    eos_id: int,
    width: int,
    fill: int,
) -> tuple[Tensor, Tensor]:
    """Rows of values and of their segments, with EOS after the last value.

    Args:
        parts: Columns and values of the raw tokens, [B, L] each; a column of -1 drops the value.
        segments_BL: Segments of the raw tokens.
        length_B: Number of tokens in each row; an empty row gets no EOS.
        eos_id: Id of EOS.
        width: Number of columns of the result.
        fill: Value of the columns after EOS.
    """
    end_B1 = torch.cat([place for place, _ in parts], dim=1).amax(1, keepdim=True) + 1
    end_B1 = torch.where(length_B[:, None] > 0, end_B1, -1)
    place = torch.cat([*(place for place, _ in parts), end_B1], dim=1)
    values = torch.cat([*(value for _, value in parts), torch.full_like(end_B1, eos_id)], dim=1)
    last_B1 = segments_BL.amax(1, keepdim=True)
    segments = torch.cat([*(segments_BL for _ in parts), last_B1], dim=1)
    return scatter(place, values, width, fill=fill), scatter(place, segments, width, fill=0)
