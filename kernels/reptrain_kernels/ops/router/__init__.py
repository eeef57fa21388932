"""Routing: from the logits of a token for each expert to its experts, their weights, and the sums of losses.

Shapes: B rows, T positions, E experts, K experts of a token.

    score = softmax(logit) or sigmoid(logit)
    expert[k] = the experts with the K largest score + bias, the largest first
    gate[k] = score[expert[k]], divided by their sum over k if normalized
    count[b, e] = tokens of row b that chose e
    share[b, e] = sum over the tokens of row b of score[e] / sum over e of score
    square[b] = sum over the tokens of row b of logsumexp(logit)^2

Of experts with the same score and bias Triton takes the lowest first; torch's choice is `torch.topk`'s, which
on CPU and CUDA is none that it promises.

Source:
    Fedus et al., "Switch transformers", 2021 (balance loss); Zoph et al., "ST-MoE", 2022 (z-loss); Wang et
    al., "Auxiliary-loss-free load balancing strategy for mixture-of-experts", 2024 (selection bias).
"""

from __future__ import annotations

from typing import get_args

import torch
from torch import Tensor

from reptrain_kernels.implementation import Implementation, choose_implementation
from reptrain_kernels.ops.router.reference import Routed, Score, expert_counts, route_reference

__all__ = ["Routed", "Score", "expert_counts", "route"]


def route(
    logit_BTE: Tensor,
    is_token_BT: Tensor,
    bias_E: Tensor,
    *,
    top_k: int,
    score: Score,
    normalize: bool,
    impl: Implementation | None = None,
) -> Routed:
    """See the module's docstring. Padding is routed too, and not counted.

    Args:
        logit_BTE: fp32; in torch also float64.
        is_token_BT: bool: the others pad the rows.
        bias_E: fp32, added where experts are chosen, not where they are weighted. No gradient flows to it.
        top_k: K.
        score: Of the logits.
        normalize: See above.
        impl: "torch" or "triton"; None: by the device (see `choose_implementation`).

    Raises:
        ValueError: If shapes, dtypes or the number of experts do not fit.
    """
    B, T, E = logit_BTE.shape
    if is_token_BT.shape != (B, T) or is_token_BT.dtype != torch.bool or bias_E.shape != (E,):
        raise ValueError(
            f"is_token_BT, bias_E: must be bool of {(B, T)} and of shape {(E,)}, but got"
            f" {is_token_BT.dtype} of {tuple(is_token_BT.shape)} and {tuple(bias_E.shape)}"
        )
    if not 1 <= top_k <= E:
        raise ValueError(f"top_k: must be from 1 to {E}, the experts, but got {top_k}")
    if score not in get_args(Score):
        raise ValueError(f"score: must be one of {get_args(Score)}, but got {score!r}")
    if choose_implementation(logit_BTE.device, impl) == "torch":
        return route_reference(logit_BTE, is_token_BT, bias_E, top_k, score, normalize)
    if logit_BTE.dtype != torch.float32:
        raise ValueError(f"logit_BTE: must be torch.float32 in Triton, but got {logit_BTE.dtype}")
    from reptrain_kernels.ops.router import triton as router_triton

    gate, share, square, expert, count = router_triton.route(
        logit_BTE, is_token_BT, bias_E, top_k, score, normalize
    )
    # What the kernel's programs summed, each over its tokens.
    return Routed(expert, gate, count.sum(1), share.sum(1), square.sum(1))
