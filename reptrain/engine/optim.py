"""The optimizer that DeepSpeed wraps."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from reptrain.config.schema import OptimizerConfig
from reptrain.model.init import parameter_groups


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """AdamW over two groups: matrices with weight decay, norms without; experts over ranks are apart."""
    return torch.optim.AdamW(
        _experts_apart(parameter_groups(model)),
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        weight_decay=config.weight_decay.first,
        fused=True,
    )


def _experts_apart(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """DeepSpeed partitions the experts that a rank holds over fewer ranks than the other parameters."""
    if not any(hasattr(parameter, "group_name") for group in groups for parameter in group["params"]):
        return groups
    from deepspeed.moe.utils import split_params_into_different_moe_groups_for_optimizer

    named = [group | {"name": str(place)} for place, group in enumerate(groups)]
    return split_params_into_different_moe_groups_for_optimizer(named)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group the same rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate
