"""Operations at the shapes of published models: what is compiled, modelled and timed.

Sizes: B rows, T queries, S keys, H heads, K key-value heads, N width of a head, E end of the bias.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from reptrain_kernels.attention import Mask

# Where T5's buckets end: 32 of them to distance 128, in both directions or in one.
T5_ENDS = {"encoder": 91, "decoder": 113}


class AttentionShape(NamedTuple):
    """One attention of a model."""

    name: str
    H: int
    K: int
    N: int
    B: int = 16
    T: int = 512
    S: int = 512
    E: int = 0
    causal: bool = False
    segments: bool = True
    rate: float = 0.0
    dtype: torch.dtype = torch.bfloat16


def t5(model: str, H: int, rate: float = 0.0, N: int = 64, **changes: object) -> list[AttentionShape]:
    """The three attentions of a T5."""
    what = f"{model}{' dropout' if rate else ''}"
    common = {"H": H, "K": H, "N": N, "rate": rate} | changes
    return [
        AttentionShape(f"{what} encoder", **common, E=T5_ENDS["encoder"]),
        AttentionShape(f"{what} decoder", **common, E=T5_ENDS["decoder"], causal=True),
        AttentionShape(f"{what} cross", **common),
    ]


ATTENTION = [
    *t5("T5-Base", 12),
    *t5("T5-Base", 12, 0.1),
    *t5("T5-Large", 16, 0.1),
    *t5("T5-XL", 32, 0.1),
    *t5("T5-11B (1.0)", 128, 0.1, N=128),
    AttentionShape("Llama-1B", 32, 4, 64, B=4, T=2048, S=2048, causal=True),
    AttentionShape("Llama-1B dropout", 32, 4, 64, B=4, T=2048, S=2048, causal=True, rate=0.1),
    AttentionShape("Llama-7B", 32, 32, 128, B=2, T=2048, S=2048, causal=True),
    AttentionShape("Llama-7B dropout", 32, 32, 128, B=2, T=2048, S=2048, causal=True, rate=0.1),
    AttentionShape("head 256", 8, 8, 256, E=91, rate=0.1),
    AttentionShape("T5-Base fp32", 12, 12, 64, E=91, rate=0.1, dtype=torch.float32),
]


class AttentionTensors(NamedTuple):
    """What `attention` is called with."""

    q_BHTN: Tensor
    k_BKSN: Tensor
    v_BKSN: Tensor
    bias_HR: Tensor | None
    mask: Mask
    key_BH: Tensor | None


def attention_tensors(shape: AttentionShape, device: str) -> AttentionTensors:
    """Random tensors as a model's projections leave them; one document fills each row."""
    on = {"device": device}

    def heads(number: int, positions: int) -> Tensor:
        x_BTHN = torch.randn(shape.B, positions, number, shape.N, dtype=shape.dtype, **on)
        return x_BTHN.transpose(1, 2)

    mask = Mask(causal=shape.causal)
    if shape.segments:
        read_BS = torch.ones(shape.B, shape.S, dtype=torch.int64, **on)
        mask = mask._replace(segments_BT=torch.ones_like(read_BS[:, :1]).expand(-1, shape.T).contiguous())
        mask = mask._replace(segments_BS=read_BS)
    key_BH = torch.ones(shape.B, shape.H, dtype=torch.int64, **on) if shape.rate else None
    bias_HR = torch.randn(shape.H, 2 * shape.E + 1, **on) if shape.E else None
    return AttentionTensors(
        heads(shape.H, shape.T), heads(shape.K, shape.S), heads(shape.K, shape.S), bias_HR, mask, key_BH
    )


def attention_launch(shape: AttentionShape) -> Callable[[], object]:
    """A call that would launch the forward and the backward kernels, on tensors without memory."""
    from reptrain_kernels.attention_triton import launch_backward, launch_forward

    q, k, v, bias, mask, key = attention_tensors(shape, "meta")
    rest = (bias, mask.segments_BT, mask.segments_BS, None, key, 1.0, shape.causal, 0, 1.0)
    lse = q.new_empty(q.shape[:3], dtype=torch.float32)
    return lambda: (launch_forward(q, k, v, *rest), launch_backward(q, q, k, v, q, lse, *rest))
