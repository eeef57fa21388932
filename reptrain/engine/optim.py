"""The optimizer that DeepSpeed wraps."""

from __future__ import annotations

import torch
from torch import nn

from reptrain.config.schema import OptimizerConfig
from reptrain.model.init import parameter_groups


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """AdamW over two groups: matrices with weight decay, norms without."""
    return torch.optim.AdamW(
        parameter_groups(model, config.weight_decay),
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=True,
    )


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group the same rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate
