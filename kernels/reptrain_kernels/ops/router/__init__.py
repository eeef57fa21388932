"""Routing: from logits to the experts of each token, their gates, and the sums for the router losses.

Shapes: B rows, T positions, E experts, K experts of a token.

    score = softmax(logit) or sigmoid(logit)
    expert[k] = the experts with the K largest score + bias, the largest first
    gate[k] = score[expert[k]], divided by their sum over k if normalized
    count[b, e] = tokens of row b that chose e
    share[b, e] = sum over the tokens of row b of score[e] / sum over e of score
    square[b] = sum over the tokens of row b of logsumexp(logit)^2

Among experts with equal score plus bias, Triton takes the lowest index first. torch uses `torch.topk`, whose
choice is unspecified.

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
    """Route tokens to experts, as the module's docstring defines it. Padding is routed, but not counted.

    Args:
        logit_BTE: fp32; in torch also float64.
        is_token_BT: bool, False for padding.
        bias_E: fp32, added to the scores to choose the experts, not to weight them; without gradient.
        top_k: K.
        score: The function that turns logits into scores.
        normalize: Whether the gates of a token are divided by their sum.
        impl: "torch" or "triton"; None: by the device (see `choose_implementation`).

    Raises:
        ValueError: If shapes, dtypes or the number of experts are not valid.
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
