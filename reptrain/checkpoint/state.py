"""The weights and optimizer state that a rank holds, in one form for every ZeRO stage and number of ranks.

A piece is a contiguous range of one flattened parameter: its fp32 master weights and the optimizer's moments.
Pieces are views: a checkpoint is written from them and read into them, however the parameter is partitioned.
With expert parallelism a rank's expert parameter is a range of the whole one (`whole_shape`, `whole_start`).

ZeRO 1 over two ranks, parameters a (6 elements) and b (4)    ->  rank 0: a[0:5]; rank 1: a[5:6], b[0:4]
ZeRO 3 over two ranks                                         ->  rank 0: a[0:3], b[0:2]; rank 1: the rest
ZeRO 1 over two ranks, each with half of the experts b        ->  rank 0: a[0:3], b[0:2]; rank 1: the rest
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn

from reptrain.distributed.engine import Engine
from reptrain.model.init import whole_shape

WEIGHT = "weight"
MOMENTS = ("exp_avg", "exp_avg_sq")
# State of fp16's dynamic loss scaling.
_SCALER_COUNTS = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


class Piece(NamedTuple):
    """A contiguous range of a parameter that this rank holds."""

    name: str
    """Name of the parameter."""
    start: int
    """First element within the flattened parameter."""
    views: dict[str, Tensor]
    """The live fp32 values by kind (`WEIGHT` and the optimizer's moments): one for each element, or another
    number where the optimizer needs whole parameters."""

    @property
    def numel(self) -> int:
        """Number of elements."""
        return int(self.views[WEIGHT].numel())


def shapes(engine: Engine) -> dict[str, list[int]]:
    """Name and whole shape of every parameter; a shared parameter appears once, under its first name."""
    named = engine.module.named_parameters()
    return {name: list(_whole_shape(parameter)) for name, parameter in named}


def _whole_shape(parameter: Tensor) -> torch.Size:
    shape: torch.Size = getattr(parameter, "whole_shape", whole_shape(parameter))
    return shape


def expert_parallel_size(engine: Engine) -> int:
    """Number of ranks that the experts are spread over."""
    for parameter in engine.module.parameters():
        if hasattr(parameter, "whole_shape"):
            return int(_whole_shape(parameter)[0] // parameter.shape[0])
    return 1


def pieces(engine: Engine) -> list[Piece]:
    """All pieces that this rank holds. Before the first step the moments are zeros.

    Args:
        engine: The engine around the model.
    """
    by_stage = {0: _whole_parameters, 1: _flat_partitions, 2: _flat_partitions, 3: _parameter_partitions}
    return list(by_stage[engine.zero_optimization_stage()](engine))


def own_pieces(engine: Engine, *, rank: int, world_size: int) -> list[Piece]:
    """The pieces that this rank writes. Over all ranks, each element is written once."""
    held = pieces(engine)
    # Without ZeRO every rank holds all pieces: they are dealt out in turn.
    return held[rank::world_size] if engine.zero_optimization_stage() == 0 else held


def _states(optimizer: torch.optim.Optimizer, flat: Tensor) -> dict[str, Tensor]:
    state: dict[str, Tensor] = optimizer.state[flat]
    if not state:
        state["step"] = torch.zeros((), dtype=torch.float32, device=flat.device)
        state |= {kind: torch.zeros_like(flat) for kind in MOMENTS}
    return state


def _cut(optimizer: torch.optim.Optimizer, flat: Tensor, first: int, numel: int) -> dict[str, Tensor]:
    state = _states(optimizer, flat)
    values = {WEIGHT: flat, **{kind: state[kind] for kind in MOMENTS}}
    return {kind: value.detach().view(-1)[first : first + numel] for kind, value in values.items()}


def _whole_parameters(engine: Engine) -> Iterator[Piece]:
    optimizer = _torch_optimizer(engine)
    muon = {p for group in optimizer.param_groups if group.get("use_muon") for p in group["params"]}
    for name, parameter in engine.module.named_parameters():
        state = optimizer.state[parameter]
        if not state:
            state |= _initial_state(optimizer, parameter, use_muon=parameter in muon)
        kept = {kind: value for kind, value in state.items() if kind != "step"}
        views = {kind: value.detach().view(-1) for kind, value in ({WEIGHT: parameter} | kept).items()}
        yield Piece(name, 0, views)


def _initial_state(
    optimizer: torch.optim.Optimizer, parameter: Tensor, *, use_muon: bool
) -> dict[str, Tensor]:
    """Optimizer state of a whole parameter before the first step."""
    zeros = torch.zeros_like(parameter, requires_grad=False)
    if use_muon:
        return {"momentum_buffer": zeros}
    # One of our optimizers, whose state has shapes of its own.
    if hasattr(optimizer, "fresh_state"):
        fresh: dict[str, Tensor] = optimizer.fresh_state(parameter)
        return fresh
    step = {"step": torch.zeros((), dtype=torch.float32)}
    return step | {kind: zeros.clone() for kind in MOMENTS}


def _flat_partitions(engine: Engine) -> Iterator[Piece]:
    zero = engine.optimizer
    names = {parameter: name for name, parameter in engine.module.named_parameters()}
    if hasattr(zero, "bf16_groups"):
        # Stage 1 in bf16 uses another optimizer class.
        groups, partitions = zero.bf16_groups, zero.fp32_groups_flat_partition
    else:
        groups, partitions = zero.bit16_groups, zero.single_partition_of_fp32_groups
    for group, flat in zip(groups, partitions, strict=True):
        for parameter in group:
            mapping = parameter._hp_mapping
            if mapping is not None:
                fragment = mapping.get_hp_fragment_address()
                views = _cut(zero.optimizer, flat, fragment.start, fragment.numel)
                start = getattr(parameter, "whole_start", 0) + mapping.lp_fragment_address.start
                yield Piece(names[parameter], start, views)


def _parameter_partitions(engine: Engine) -> Iterator[Piece]:
    zero = engine.optimizer
    for name, parameter in engine.module.named_parameters():
        group, first, padded = zero.grad_position[zero.get_param_id(parameter)]
        start = padded * zero._get_param_partition_rank(parameter)
        numel = min(padded, parameter.ds_numel - start)
        # The last ranks may hold padding only.
        if numel > 0:
            flat = zero.fp32_partitioned_groups_flat[group]
            yield Piece(name, start, _cut(zero.optimizer, flat, first, numel))


def _torch_optimizer(engine: Engine) -> torch.optim.Optimizer:
    wrapped = engine.optimizer
    return wrapped if isinstance(wrapped, torch.optim.Optimizer) else wrapped.optimizer


def update_count(engine: Engine) -> Tensor | None:
    """Number of steps that changed the weights, as the optimizer holds it; None if it does not count them."""
    states = _torch_optimizer(engine).state.values()
    return next((state["step"] for state in states if "step" in state), None)


def optimizer_steps(engine: Engine) -> int:
    """Number of steps that changed the weights."""
    states = _torch_optimizer(engine).state.values()
    counts = {int(state["step"].item()) for state in states if "step" in state}
    return counts.pop() if counts else 0


def set_optimizer_steps(engine: Engine, steps: int) -> None:
    """Set the number of steps that changed the weights. Call it after the moments are loaded."""
    for state in _torch_optimizer(engine).state.values():
        if "step" in state:
            state["step"].fill_(steps)


def loss_scaling(engine: Engine) -> dict[str, float]:
    """State of fp16's loss scaling; empty in other precisions."""
    if not engine.fp16_enabled():
        return {}
    scaler = engine.optimizer.loss_scaler
    return {name: getattr(scaler, name) for name in _SCALER_COUNTS if hasattr(scaler, name)}


def set_loss_scaling(engine: Engine, counts: dict[str, float]) -> None:
    """Restore the state that `loss_scaling` returned."""
    for name, value in counts.items():
        setattr(engine.optimizer.loss_scaler, name, value)


def expert_bias(model: nn.Module) -> dict[str, list[int]]:
    """Updates of the routers' expert bias, by buffer name; the same on every rank."""
    return {name: buffer.tolist() for name, buffer in model.named_buffers()}


def set_expert_bias(model: nn.Module, updates: dict[str, list[int]]) -> None:
    """Restore the updates that `expert_bias` returned. Without any, the bias stays at zero."""
    if updates:
        for name, buffer in model.named_buffers():
            # Older checkpoints have another name for the buffer of the same router.
            old_name = f"{name.rpartition('.')[0]}.votes_E"
            buffer.copy_(torch.tensor(updates[name] if name in updates else updates[old_name]))


def spread_weights(engine: Engine) -> None:
    """Copy changed master weights to the parameters that the forward pass uses. Every rank calls it."""
    zero, stage = engine.optimizer, engine.zero_optimization_stage()
    if stage in (1, 2):
        zero.update_lp_params()
    if stage == 3:
        zero._partition_all_parameters()
        for group in range(len(zero.fp32_partitioned_groups_flat)):
            zero._reassign_or_swap_out_partitioned_parameters(group)
        # Every rank keeps small parameters whole.
        persistent = zero.persistent_parameters
        if persistent:
            persistent[0].partition(persistent)
            persistent[0].all_gather(persistent)
