"""The definition of `route` in plain torch."""

from __future__ import annotations

from typing import Literal, NamedTuple

from torch import Tensor

Score = Literal["softmax", "sigmoid"]


class Routed(NamedTuple):
    """Where tokens go, and the sums over each row that losses and figures are made of."""

    expert_BTK: Tensor
    """int64."""
    gate_BTK: Tensor
    """The dtype of the logits."""
    count_BE: Tensor
    """int64."""
    share_BE: Tensor
    """The dtype of the logits."""
    square_B: Tensor
    """The dtype of the logits."""


def route_reference(
    logit_BTE: Tensor, is_token_BT: Tensor, bias_E: Tensor, top_k: int, score: Score, normalize: bool
) -> Routed:
    """The definition."""
    score_BTE = logit_BTE.softmax(-1) if score == "softmax" else logit_BTE.sigmoid()
    expert_BTK = (score_BTE + bias_E).topk(top_k, dim=-1).indices
    gate_BTK = score_BTE.gather(-1, expert_BTK)
    if normalize:
        gate_BTK = gate_BTK / gate_BTK.sum(-1, keepdim=True)
    count_BE = expert_counts(expert_BTK, is_token_BT[..., None], logit_BTE.shape[-1])
    share_BTE = score_BTE if score == "softmax" else score_BTE / score_BTE.sum(-1, keepdim=True)
    square_BT = logit_BTE.logsumexp(-1).square()
    return Routed(
        expert_BTK,
        gate_BTK,
        count_BE,
        (share_BTE * is_token_BT[..., None]).sum(1),
        (square_BT * is_token_BT).sum(1),
    )


def expert_counts(expert_BTK: Tensor, counted_BTK: Tensor, num_experts: int) -> Tensor:
    """How often each row chose each expert, int64 [B, E]."""
    weight_BN = counted_BTK.expand_as(expert_BTK).long().flatten(1)
    zeros_BE = weight_BN.new_zeros(len(weight_BN), num_experts)
    return zeros_BE.scatter_add(1, expert_BTK.flatten(1), weight_BN)
