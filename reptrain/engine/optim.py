"""The optimizer that DeepSpeed wraps."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from reptrain.config.optimizers import AdafactorConfig, AdamWConfig, MuonConfig, OptimizerConfig
from reptrain.model.init import parameter_groups


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """The optimizer over groups of parameters: what decays apart from what does not.

    Args:
        model: Whose parameters are trained.
        config: Which optimizer.
    """
    groups = parameter_groups(model)
    decay = config.weight_decay.first
    if isinstance(config, AdamWConfig):
        return torch.optim.AdamW(
            _experts_apart(groups),
            lr=config.lr,
            betas=(config.beta1, config.beta2),
            eps=config.eps,
            weight_decay=decay,
            fused=True,
        )
    if isinstance(config, AdafactorConfig):
        return torch.optim.Adafactor(
            groups,
            lr=config.lr,
            beta2_decay=-config.decay_exponent,
            # torch floors the second moment at the square of the first. Of T5's 1e-30 that is 0 in fp32, and
            # the row of a token that no step has seen would become 0 / 0.
            eps=(1e-18, 1e-3),
            d=config.clip_threshold,
            weight_decay=decay,
        )
    return _muon(model, groups, config)


def is_for_muon(name: str, parameter: nn.Parameter) -> bool:
    """Whether a parameter is a matrix of a layer, or such matrices of many experts."""
    # A layer's table of position biases is looked up: no product has it as a matrix.
    return ".blocks." in f".{name}" and parameter.ndim > 1 and "relative_bias" not in name


def _muon(model: nn.Module, groups: list[dict[str, Any]], config: MuonConfig) -> torch.optim.Optimizer:
    """Muon for the matrices of the layers, AdamW for the rest."""
    # Imported here: it compiles.
    from deepspeed.runtime.zero.muon.muon_optimizer import MuonWithAuxAdam

    decay = config.weight_decay.first
    matrices = {p for name, p in model.named_parameters() if is_for_muon(name, p)}
    halves: list[dict[str, Any]] = []
    for group in groups:
        for use_muon in (True, False):
            params = [p for p in group["params"] if (p in matrices) == use_muon]
            if params:
                half = {"weight_decay": decay} | group | {"params": params, "use_muon": use_muon}
                halves.append(half | ({"momentum": config.momentum} if use_muon else {}))
    for parameter in matrices:
        # Three dimensions: the matrices of many experts.
        parameter.is_expert_group = parameter.ndim > 2
    for half in halves:
        half["lr"] = config.lr if half["use_muon"] else config.adam_lr
        half["lr_ratio"] = half["lr"] / config.lr
    betas = (config.beta1, config.beta2)
    return MuonWithAuxAdam(halves, torch.optim.AdamW, {"betas": betas, "eps": config.eps})


def _experts_apart(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """DeepSpeed partitions the experts that a rank holds over fewer ranks than the other parameters."""
    if not any(hasattr(parameter, "group_name") for group in groups for parameter in group["params"]):
        return groups
    from deepspeed.moe.utils import split_params_into_different_moe_groups_for_optimizer

    named = [group | {"name": str(place)} for place, group in enumerate(groups)]
    return split_params_into_different_moe_groups_for_optimizer(named)


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every group its rate: ``rate``, or that in a fixed ratio."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("lr_ratio", 1.0)
