"""What a rank holds of weights and optimizer, by name: the same words for any ZeRO stage and number of ranks.

A piece is a stretch of one flattened parameter: its fp32 master weight and the optimizer's moments there.
Pieces are views: a checkpoint is written from them and read into them, whoever cut them. Where a rank holds
some of the experts alone, its parameter is a stretch of theirs all (`whole_shape`, `whole_start`).

ZeRO 1 over two ranks, parameters a (6 elements) and b (4)    ->  rank 0: a[0:5]; rank 1: a[5:6], b[0:4]
ZeRO 3 over two ranks                                         ->  rank 0: a[0:3], b[0:2]; rank 1: the rest
ZeRO 1 over two ranks, each with half of the experts b        ->  rank 0: a[0:3], b[0:2]; rank 1: the rest
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

WEIGHT = "weight"
MOMENTS = ("exp_avg", "exp_avg_sq")
# What fp16's dynamic loss scaling counts from step to step.
_SCALER_COUNTS = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


class Piece(NamedTuple):
    """A stretch of a parameter that this rank holds."""

    name: str
    """Of the parameter."""
    start: int
    """First element within the flattened parameter."""
    views: dict[str, Tensor]
    """By kind (`WEIGHT`, and what the optimizer keeps) the live fp32 values: one for each element, or, of an
    optimizer that needs whole parameters, of another length."""

    @property
    def numel(self) -> int:
        """Its elements."""
        return self.views[WEIGHT].numel()


def shapes(engine: Any) -> dict[str, list[int]]:
    """Every parameter's name and whole shape; a shared one has its first name."""
    named = engine.module.named_parameters()
    return {name: list(_whole_shape(parameter)) for name, parameter in named}


def _whole_shape(parameter: Tensor) -> torch.Size:
    partitioned = getattr(parameter, "ds_shape", parameter.shape)
    return getattr(parameter, "whole_shape", partitioned)


def expert_parallel_size(engine: Any) -> int:
    """Over how many ranks the experts are spread."""
    sizes = (
        _whole_shape(p)[0] // p.shape[0] for p in engine.module.parameters() if hasattr(p, "whole_shape")
    )
    return next(sizes, 1)


def pieces(engine: Any) -> list[Piece]:
    """All that this rank holds. Moments that no step has made yet are zeros, as the first step makes them.

    Args:
        engine: DeepSpeed's engine around the model.
    """
    by_stage = {0: _whole_parameters, 1: _flat_partitions, 2: _flat_partitions, 3: _parameter_partitions}
    return list(by_stage[engine.zero_optimization_stage()](engine))


def own_pieces(engine: Any, *, rank: int, world_size: int) -> list[Piece]:
    """The pieces that this rank writes: over all ranks each element once."""
    held = pieces(engine)
    # Without ZeRO every rank holds everything: the ranks take turns.
    return held[rank::world_size] if engine.zero_optimization_stage() == 0 else held


def _states(optimizer: torch.optim.Optimizer, flat: Tensor) -> dict[str, Tensor]:
    state = optimizer.state[flat]
    if not state:
        state["step"] = torch.zeros((), dtype=torch.float32, device=flat.device)
        state |= {kind: torch.zeros_like(flat) for kind in MOMENTS}
    return state


def _cut(optimizer: torch.optim.Optimizer, flat: Tensor, first: int, numel: int) -> dict[str, Tensor]:
    state = _states(optimizer, flat)
    values = {WEIGHT: flat, **{kind: state[kind] for kind in MOMENTS}}
    return {kind: value.detach().view(-1)[first : first + numel] for kind, value in values.items()}


def _whole_parameters(engine: Any) -> Iterator[Piece]:
    optimizer = _torch_optimizer(engine)
    muon = {p for group in optimizer.param_groups if group.get("use_muon") for p in group["params"]}
    for name, parameter in engine.module.named_parameters():
        state = optimizer.state[parameter]
        if not state:
            state |= _fresh_state(optimizer, parameter, use_muon=parameter in muon)
        kept = {kind: value for kind, value in state.items() if kind != "step"}
        views = {kind: value.detach().view(-1) for kind, value in ({WEIGHT: parameter} | kept).items()}
        yield Piece(name, 0, views)


def _fresh_state(optimizer: torch.optim.Optimizer, parameter: Tensor, *, use_muon: bool) -> dict[str, Tensor]:
    """What an optimizer keeps of a whole parameter before its first step."""
    zeros = torch.zeros_like(parameter, requires_grad=False)
    if use_muon:
        return {"momentum_buffer": zeros}
    # An optimizer of ours, whose state has a shape of its own.
    if hasattr(optimizer, "fresh_state"):
        return optimizer.fresh_state(parameter)
    step = {"step": torch.zeros((), dtype=torch.float32)}
    return step | {kind: zeros.clone() for kind in MOMENTS}


def _flat_partitions(engine: Any) -> Iterator[Piece]:
    zero = engine.optimizer
    names = {parameter: name for name, parameter in engine.module.named_parameters()}
    if hasattr(zero, "bf16_groups"):
        # Stage 1 in bf16 has an optimizer class of its own.
        groups, partitions = zero.bf16_groups, zero.fp32_groups_flat_partition
    else:
        groups, partitions = zero.bit16_groups, zero.single_partition_of_fp32_groups
    for group, flat in zip(groups, partitions, strict=True):
        for parameter in group:
            mapping = parameter._hp_mapping
            if mapping is not None:
                here, there = mapping.get_hp_fragment_address(), mapping.lp_fragment_address
                views = _cut(zero.optimizer, flat, here.start, here.numel)
                yield Piece(names[parameter], getattr(parameter, "whole_start", 0) + there.start, views)


def _parameter_partitions(engine: Any) -> Iterator[Piece]:
    zero = engine.optimizer
    for name, parameter in engine.module.named_parameters():
        group, first, padded = zero.grad_position[zero.get_param_id(parameter)]
        start = padded * zero._get_param_partition_rank(parameter)
        numel = min(padded, parameter.ds_numel - start)
        # The last ranks may hold nothing but padding.
        if numel > 0:
            flat = zero.fp32_partitioned_groups_flat[group]
            yield Piece(name, start, _cut(zero.optimizer, flat, first, numel))


def _torch_optimizer(engine: Any) -> torch.optim.Optimizer:
    wrapped = engine.optimizer
    return wrapped if isinstance(wrapped, torch.optim.Optimizer) else wrapped.optimizer


def optimizer_steps(engine: Any) -> int:
    """How often the optimizer changed the weights."""
    states = _torch_optimizer(engine).state.values()
    counts = {int(state["step"].item()) for state in states if "step" in state}
    return counts.pop() if counts else 0


def set_optimizer_steps(engine: Any, steps: int) -> None:
    """Say how often the optimizer changed the weights, once its moments are there."""
    for state in _torch_optimizer(engine).state.values():
        if "step" in state:
            state["step"].fill_(steps)


def loss_scaling(engine: Any) -> dict[str, float]:
    """What fp16's loss scaling counts; empty in other precisions."""
    if not engine.fp16_enabled():
        return {}
    scaler = engine.optimizer.loss_scaler
    return {name: getattr(scaler, name) for name in _SCALER_COUNTS if hasattr(scaler, name)}


def set_loss_scaling(engine: Any, counts: dict[str, float]) -> None:
    """Put back what `loss_scaling` told."""
    for name, value in counts.items():
        setattr(engine.optimizer.loss_scaler, name, value)


def votes(engine: Any) -> dict[str, list[int]]:
    """The whole numbers that routers keep beside their weights, by name; the same on every rank."""
    return {name: buffer.tolist() for name, buffer in engine.module.named_buffers()}


def set_votes(engine: Any, counts: dict[str, list[int]]) -> None:
    """Put back what `votes` told."""
    for name, buffer in engine.module.named_buffers():
        buffer.copy_(torch.tensor(counts[name]))


def spread_weights(engine: Any) -> None:
    """Give the forward pass the master weights after pieces were changed. Every rank calls it."""
    zero, stage = engine.optimizer, engine.zero_optimization_stage()
    if stage in (1, 2):
        zero.update_lp_params()
    if stage == 3:
        zero._partition_all_parameters()
        for group in range(len(zero.fp32_partitioned_groups_flat)):
            zero._reassign_or_swap_out_partitioned_parameters(group)
        # Small parameters stay whole on every rank.
        kept = zero.persistent_parameters
        if kept:
            kept[0].partition(kept)
            kept[0].all_gather(kept)
