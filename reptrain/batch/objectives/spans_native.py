"""`spans.draw_spans` and `spans.hide_spans` in C, for NumPy arrays and CPU tensors.

Shapes: B rows of a micro-batch, L raw tokens of a window, S positions of the inputs, T positions of the
targets.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from reptrain.batch.objectives.rows import Rows, ids_on
from reptrain.random import Int64s, UInt64s
from reptrain_kernels import native

_SOURCE = Path(__file__).with_name("spans.c")


def draw_spans(
    length_B: Int64s,
    noise_B: Int64s,
    spans_B: Int64s,
    kept_key_B: UInt64s,
    hidden_key_B: UInt64s,
    *,
    width: int,
) -> npt.NDArray[np.bool_] | None:
    """See `spans.draw_spans`; None if the caller has to use NumPy.

    Args:
        length_B: int64, tokens of each window, at most ``width``.
        noise_B: int64, number of tokens to hide in each window.
        spans_B: int64, number of spans that they form.
        kept_key_B: uint64, key of the lengths of the kept spans.
        hidden_key_B: uint64, key of the lengths of the hidden spans.
        width: Number of columns of the result.
    """
    library = _library()
    if library is None:
        return None
    numbers = [np.ascontiguousarray(values, np.int64) for values in (length_B, noise_B, spans_B)]
    keys = [np.ascontiguousarray(values, np.uint64) for values in (kept_key_B, hidden_key_B)]
    is_noise_BL = np.empty((len(length_B), width), dtype=np.bool_)
    pointers = [values.ctypes.data for values in (*numbers, *keys, is_noise_BL)]
    return None if library.draw_spans(*pointers, len(length_B), width) else is_noise_BL


def hide_spans(
    tokens_BL: Tensor,
    is_noise_BL: Tensor,
    length_B: Tensor,
    *,
    sentinel_ids: tuple[int, ...],
    eos_id: int,
    document_eos_id: int | None,
    input_width: int,
    target_width: int,
) -> Rows | None:
    """See `spans.hide_spans`; None if the caller has to use torch."""
    library = _library()
    tensors = (tokens_BL, is_noise_BL, length_B)
    if library is None or any(type(x) is not Tensor or x.device.type != "cpu" for x in tensors):
        return None
    if (tokens_BL.dtype, is_noise_BL.dtype, length_B.dtype) != (torch.int64, torch.bool, torch.int64):
        return None
    tokens_BL, is_noise_BL, length_B = (x.contiguous() for x in tensors)
    sentinel_K = ids_on(tokens_BL.device, sentinel_ids)
    rows, width = tokens_BL.shape
    source_BS, source_segments_BS = (torch.empty(rows, input_width, dtype=torch.int64) for _ in range(2))
    targets_BT, segments_BT = (torch.empty(rows, target_width, dtype=torch.int64) for _ in range(2))
    is_raw_BT = torch.empty(rows, target_width, dtype=torch.bool)
    made = Rows(source_BS, source_segments_BS, targets_BT, segments_BT, is_raw_BT)
    failed = library.hide_spans(
        *(x.data_ptr() for x in (tokens_BL, is_noise_BL, length_B, sentinel_K)),
        *(len(sentinel_ids), eos_id, -1 if document_eos_id is None else document_eos_id),
        *(rows, width, input_width, target_width),
        *(x.data_ptr() for x in made),
    )
    return None if failed else made


@cache
def _library() -> ctypes.CDLL | None:
    """The compiled library; None without a compiler."""
    library: ctypes.CDLL | None = native.load(_SOURCE)
    if library is not None:
        pointer, number = ctypes.c_void_p, ctypes.c_int64
        library.draw_spans.argtypes = [*[pointer] * 6, number, number]
        library.hide_spans.argtypes = [*[pointer] * 4, *[number] * 7, *[pointer] * 5]
    return library
