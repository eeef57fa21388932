"""The optimizer that DeepSpeed wraps."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from reptrain.config.optimizers import AdafactorConfig, AdamWConfig, MuonConfig, OptimizerConfig
from reptrain.model.init import parameter_groups
from reptrain.training.adafactor import Adafactor


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """Build the optimizer over `optimizer_groups`.

    Args:
        model: The model to train.
        config: The optimizer's settings.
    """
    groups, decay = optimizer_groups(model, config), config.weight_decay.first
    for group in groups:
        group["weight_decay"] = decay * group.get("decay_ratio", 1.0) if group["decays"] else 0.0
    return _BUILDERS[type(config)](groups, config)


def _adamw(groups: list[dict[str, Any]], config: AdamWConfig) -> torch.optim.Optimizer:
    return torch.optim.AdamW(
        _experts_apart(groups),
        lr=config.lr,
        betas=(config.beta1, config.beta2),
        eps=config.eps,
        fused=True,
    )


def _adafactor(groups: list[dict[str, Any]], config: AdafactorConfig) -> torch.optim.Optimizer:
    return Adafactor(
        groups,
        lr=config.lr,
        decay_exponent=config.decay_exponent,
        clip_threshold=config.clip_threshold,
        min_dim_to_factor=config.min_dim_to_factor,
        beta1=config.beta1,
    )


def optimizer_groups(model: nn.Module, config: OptimizerConfig) -> list[dict[str, Any]]:
    """Parameter groups with the same learning rate, weight decay and update rule.

    Args:
        model: Any model; it may be on the device "meta".
        config: The optimizer's settings.

    Returns:
        Groups with `decays`; if different from 1, `lr_ratio` (the group's learning rate over `config.lr`)
        and `decay_ratio` (its weight decay over the configured one); for Muon `use_muon`.
    """
    groups = parameter_groups(model)
    if isinstance(config, AdamWConfig) and not config.mup_scales_decay:
        # The learning rate multiplies the decay, so the width ratio in the rate would weaken the decay.
        return [
            group | ({"decay_ratio": 1 / group["lr_ratio"]} if "lr_ratio" in group else {})
            for group in groups
        ]
    return _muon_groups(model, groups, config) if isinstance(config, MuonConfig) else groups


def is_for_muon(name: str, parameter: nn.Parameter) -> bool:
    """Whether a parameter is a matrix of a layer, or such matrices of many experts."""
    # The table of position biases is a lookup table, not a matrix of a product.
    return ".blocks." in f".{name}" and parameter.ndim > 1 and "relative_bias" not in name


def _muon_groups(model: nn.Module, groups: list[dict[str, Any]], config: MuonConfig) -> list[dict[str, Any]]:
    """Muon for the matrices of the layers, AdamW for the rest."""
    matrices = {p for name, p in model.named_parameters() if is_for_muon(name, p)}
    split = []
    for group in groups:
        by_scale: dict[float, list[nn.Parameter]] = {}
        for parameter in group["params"]:
            if parameter in matrices:
                by_scale.setdefault(_muon_scale(parameter, config), []).append(parameter)
        for scale, params in by_scale.items():
            ratios = {} if scale == 1 else {"lr_ratio": scale, "decay_ratio": 1 / scale}
            split.append(group | {"params": params, "use_muon": True} | ratios)
        rest = [parameter for parameter in group["params"] if parameter not in matrices]
        if rest:
            split.append(group | {"params": rest, "use_muon": False, "lr_ratio": config.adam_lr / config.lr})
    return split


def _muon_scale(parameter: nn.Parameter, config: MuonConfig) -> float:
    """Factor on the learning rate of a matrix that gives its update the configured size."""
    if config.adjust_lr == "original":
        # DeepSpeed's own scaling.
        return 1.0
    rows, columns = parameter.shape[-2:]
    return float(0.2 * max(rows, columns) ** 0.5 / max(1.0, rows / columns) ** 0.5)


def _muon(groups: list[dict[str, Any]], config: MuonConfig) -> torch.optim.Optimizer:
    # Imported here: it compiles.
    from deepspeed.runtime.zero.muon.muon_optimizer import MuonWithAuxAdam

    for group in groups:
        group["lr"] = config.lr * group.get("lr_ratio", 1.0)
        if group["use_muon"]:
            group["momentum"] = config.momentum
            for parameter in group["params"]:
                # Three dimensions: the matrices of many experts.
                parameter.is_expert_group = parameter.ndim > 2
    betas = (config.beta1, config.beta2)
    return MuonWithAuxAdam(groups, torch.optim.AdamW, {"betas": betas, "eps": config.eps})


_BUILDERS: dict[type[Any], Callable[[list[dict[str, Any]], Any], torch.optim.Optimizer]] = {
    AdamWConfig: _adamw,
    AdafactorConfig: _adafactor,
    MuonConfig: _muon,
}


def _experts_apart(groups: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """DeepSpeed partitions the experts that a rank holds over fewer ranks than the other parameters."""
    if not any(hasattr(parameter, "group_name") for group in groups for parameter in group["params"]):
        return groups
    from deepspeed.moe.utils import split_params_into_different_moe_groups_for_optimizer

    named = [group | {"name": str(place)} for place, group in enumerate(groups)]
    split: list[dict[str, Any]] = split_params_into_different_moe_groups_for_optimizer(named)
    return split


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set every group's learning rate: ``rate`` times the group's fixed ratio."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("lr_ratio", 1.0)
