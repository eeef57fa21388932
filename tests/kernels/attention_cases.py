"""What attention is tested on, interpreted and on a GPU: settings, seeded inputs, float64 references."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from reptrain_kernels.ops.attention import AttentionMask, attention


class Case(NamedTuple):
    """Sizes and features; the defaults are small and odd."""

    dtype: torch.dtype = torch.float32
    rows: int = 1
    heads: int = 2
    kv_heads: int = 2
    queries: int = 63
    keys: int = 63
    width: int = 32
    scale: float = 0.3
    end: int = 9
    """E of the bias; 0: none."""
    causal: bool = False
    segments: bool = False
    prefix: bool = False
    rate: float = 0.0
    tiles: tuple[int, int] | None = (32, 16)
    """Of every kernel; None: those that a GPU would run."""

    @property
    def is_cross(self) -> bool:
        """Whether keys and queries are different sequences, recognized by their lengths."""
        return self.queries != self.keys


CASES = {
    "bias": Case(end=5, rows=2),
    "no_bias": Case(end=0, queries=20, keys=20, width=24),
    "causal_bias": Case(causal=True, queries=70, keys=70, heads=1, kv_heads=1),
    "causal_grouped": Case(causal=True, end=0, heads=4, queries=48, keys=48, width=64),
    "segments": Case(segments=True, rows=2, heads=1, kv_heads=1),
    "prefix": Case(segments=True, causal=True, prefix=True, rows=2, heads=1, kv_heads=1),
    "cross_dropout": Case(segments=True, end=0, queries=27, keys=40, rate=0.4, heads=1, kv_heads=1),
    "dropout": Case(rate=0.3, queries=33, keys=33),
    "one_position": Case(queries=1, keys=1, causal=True),
    "wide_256": Case(width=256, queries=20, keys=20, end=3, scale=0.1),
    "fp16": Case(torch.float16, causal=True, segments=True, rate=0.3, heads=1, kv_heads=1),
    # Of a single row the bias's gradient may be so small a difference of large sums that the definition in
    # bf16, too, is off by up to 8e-3.
    "bf16": Case(torch.bfloat16, causal=True, segments=True, rate=0.3, rows=4, heads=1, kv_heads=1),
}

# More of the same, and the tiles that a GPU would run at lengths of many of them.
SLOW_CASES = {
    "causal_segments": Case(segments=True, causal=True, end=0, rows=2, heads=1, kv_heads=1),
    "wide_128": Case(width=128, queries=20, keys=20, scale=0.1),
    "cross": Case(segments=True, end=0, queries=40, keys=27, rows=2, heads=1, kv_heads=1),
    "t5_500": Case(rows=1, queries=500, keys=500, width=64, scale=1.0, end=91, segments=True, tiles=None),
    "t5_causal_500": Case(
        rows=1, queries=500, keys=500, width=64, scale=1.0, end=113, causal=True, rate=0.1, tiles=None
    ),
    "bf16_500": Case(
        torch.bfloat16, rows=1, queries=500, keys=500, width=64, scale=0.2, end=91, rate=0.1, tiles=None
    ),
    "grouped_128": Case(
        torch.float16, 1, 4, 1, 300, 300, width=128, end=0, causal=True, segments=True, tiles=None
    ),
    "wide_256_300": Case(torch.bfloat16, 1, 1, 1, queries=300, keys=300, width=256, end=40, tiles=None),
    "prefix_300": Case(rows=1, queries=300, keys=300, causal=True, prefix=True, end=0, tiles=None),
}


class Inputs(NamedTuple):
    """The tensors of a case."""

    q_BHTN: Tensor
    k_BKSN: Tensor
    v_BKSN: Tensor
    bias_HR: Tensor | None
    mask: AttentionMask
    key_BH: Tensor | None
    grad_BHTN: Tensor


def segments_of(num_rows: int, num_positions: int, *, shift: int = 0) -> Tensor:
    """Documents of uneven lengths, numbered from 1, then padding: int64 [rows, positions]."""
    lengths = [7, 13, 1, 22]
    row = [number for number, length in enumerate(lengths, 1) for _ in range(length)]
    row = (row[shift:] + [0] * num_positions)[:num_positions]
    return torch.tensor([row, row[::-1]] * num_rows)[:num_rows]


def inputs_of(case: Case, device: str = "cpu") -> Inputs:
    """Seeded; q, k and v have the memory layout of projections."""
    generator = torch.Generator().manual_seed(case.queries + case.width)

    def heads(number: int, positions: int) -> Tensor:
        shape = (case.rows, positions, number, case.width)
        return torch.randn(shape, generator=generator).to(case.dtype).transpose(1, 2).to(device)

    mask = AttentionMask(causal=case.causal)
    if case.segments:
        mask = mask._replace(segments_BT=segments_of(case.rows, case.queries).to(device))
        if case.is_cross:
            # Shifted, so that some queries' segments have no key at all.
            keys = segments_of(case.rows, case.keys, shift=10) + 1
            mask = mask._replace(segments_BS=keys.to(device))
    if case.prefix:
        prefix = torch.randint(0, case.keys // 2, (case.rows, case.queries), generator=generator)
        mask = mask._replace(prefix_BT=prefix.to(device))
    bias = torch.randn(case.heads, 2 * case.end + 1, generator=generator).to(device) if case.end else None
    key = torch.randint(-(2**63), 2**63 - 1, (case.rows, case.heads), generator=generator).to(device)
    return Inputs(
        heads(case.heads, case.queries),
        heads(case.kv_heads, case.keys),
        heads(case.kv_heads, case.keys),
        bias,
        mask,
        key if case.rate else None,
        heads(case.heads, case.queries),
    )


def results(case: Case, inputs: Inputs, impl: str, *, exact: bool = False) -> dict[str, Tensor]:
    """The output and every gradient, by name; ``exact`` in float64."""
    given = [*inputs[:3], *([] if inputs.bias_HR is None else [inputs.bias_HR])]
    leaves = [(x.double() if exact else x).detach().requires_grad_() for x in given]
    y_BHTN = attention(
        *leaves[:3],
        scale=case.scale,
        mask=inputs.mask._replace(bias_HR=None if inputs.bias_HR is None else leaves[3]),
        key_BH=inputs.key_BH,
        rate=case.rate,
        impl=impl,
    )
    grads = torch.autograd.grad(y_BHTN, leaves, inputs.grad_BHTN.to(y_BHTN.dtype))
    return {"y": y_BHTN.detach()} | dict(zip(("q", "k", "v", "bias"), grads, strict=False))
