"""The configuration of the optimizer and of the learning rate."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from reptrain.config.base import Frozen, Positive
from reptrain.config.scheduled import NONE, Coefficient, Scheduled

_Rate = Annotated[float, Field(gt=0)]
_Decay = Annotated[float, Field(ge=0, lt=1)]


class AdamWConfig(Frozen):
    """AdamW (Loshchilov & Hutter 2019). Norms and T5's position biases take no weight decay."""

    name: Literal["adamw"] = "adamw"
    """The optimizer."""
    lr: _Rate = 1e-3
    """Peak learning rate."""
    beta1: _Decay = 0.9
    """Decay of the first moment."""
    beta2: _Decay = 0.95
    """Decay of the second moment."""
    eps: Annotated[float, Field(gt=0)] = 1e-8
    """Added to the root of the second moment."""
    weight_decay: Coefficient = Scheduled(value=0.1)
    """Decoupled weight decay, times the learning rate, on matrices only; it may change in the course of the
    run."""
    mup_scales_decay: bool = False
    """Under model.mup_base_width: let the decay of the layers' matrices fall with their learning rate as the
    width grows. False: what a step decays does not depend on the width."""
    clip_grad_norm: Annotated[float, Field(ge=0)] = 1.0
    """Largest L2 norm of the whole gradient; 0 does not clip."""


class AdafactorConfig(Frozen):
    """Adafactor (Shazeer & Stern 2018) with T5X's defaults: second moments by rows and columns, updates in
    units of the weights' size.

    The rate of a step is the smaller of lr and 1 / sqrt(step): with schedule.name constant and no warm-up
    that is T5's recipe. It needs ZeRO stage 0.
    """

    name: Literal["adafactor"]
    """The optimizer."""
    lr: _Rate = 0.01
    """Largest relative step."""
    decay_exponent: Annotated[float, Field(ge=0)] = 0.8
    """The second moment keeps 1 - step ** -exponent of itself."""
    clip_threshold: Annotated[float, Field(ge=1)] = 1.0
    """Largest root mean square of a matrix's update before the rate."""
    min_dim_to_factor: Positive = 128
    """A matrix with a side shorter than this keeps its second moment whole."""
    beta1: _Decay = 0.0
    """Decay of the momentum of the updates; 0 keeps none."""
    weight_decay: Coefficient = NONE
    """Decoupled weight decay, times the learning rate, on matrices only."""
    clip_grad_norm: Annotated[float, Field(ge=0)] = 0.0
    """Largest L2 norm of the whole gradient; 0 does not clip."""


class MuonConfig(Frozen):
    """Muon (Jordan et al. 2024), DeepSpeed's: momentum made orthogonal, for the layers' matrices; AdamW for
    embeddings, head, norms and biases. It needs ZeRO stage 0.
    """

    name: Literal["muon"]
    """The optimizer."""
    lr: _Rate = 0.02
    """Peak learning rate of the matrices."""
    adjust_lr: Literal["original", "match_rms_adamw"] = "original"
    """The size of a matrix's orthogonal update: sqrt(max(1, rows / columns)) (Jordan et al.), or
    0.2 sqrt(max(rows, columns)), about that of AdamW's updates (Liu et al. 2025, "Muon is scalable for LLM
    training"), for rates and decay as AdamW takes them."""
    momentum: _Decay = 0.95
    """What the momentum keeps of itself at each step."""
    adam_lr: _Rate = 1e-3
    """Peak learning rate of the rest."""
    beta1: _Decay = 0.9
    """AdamW's decay of the first moment."""
    beta2: _Decay = 0.95
    """AdamW's decay of the second moment."""
    eps: Annotated[float, Field(gt=0)] = 1e-8
    """AdamW's, added to the root of the second moment."""
    weight_decay: Coefficient = Scheduled(value=0.1)
    """Decoupled weight decay, times the learning rate, on matrices only."""
    clip_grad_norm: Annotated[float, Field(ge=0)] = 1.0
    """Largest L2 norm of the whole gradient; 0 does not clip."""


def _optimizer_name(value: Any) -> str:
    name = value.get("name") if isinstance(value, dict) else getattr(value, "name", None)
    return "adamw" if name is None else str(name)


OptimizerConfig = Annotated[
    Annotated[AdamWConfig, Tag("adamw")]
    | Annotated[AdafactorConfig, Tag("adafactor")]
    | Annotated[MuonConfig, Tag("muon")],
    Discriminator(_optimizer_name),
]
"""What changes the weights, told by its name."""


class ScheduleConfig(Frozen):
    """Learning rate as a function of the tokens consumed, so that it needs no state."""

    name: Literal["constant", "cosine", "linear", "inverse_sqrt", "wsd"] = "cosine"
    """Shape after the warm-up. wsd: constant, then linear decay over the last decay_fraction."""
    warmup_fraction: Annotated[float, Field(ge=0, le=1)] = 0.02
    """Share of the run's tokens over which the rate rises linearly from 0."""
    final_ratio: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Rate at the end over peak rate (cosine, linear, wsd)."""
    decay_fraction: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Share of the run's tokens in the decay (wsd only)."""
