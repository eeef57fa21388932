"""The configuration of optimizers and of the learning rate.

To add an optimizer, write its class and `Tag` here, and its builder in training/optimizers.py.
"""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import Discriminator, Field, Tag, model_validator

from reptrain.config.base import Frozen, Positive
from reptrain.config.scheduled import NONE, Coefficient, Scheduled

_Rate = Annotated[float, Field(gt=0)]
_Decay = Annotated[float, Field(ge=0, lt=1)]


class _Optimizer(Frozen):
    needs_whole_matrices: ClassVar[bool] = False
    """Whether it needs ZeRO stage 0: the other stages partition matrices as flat vectors."""
    supports_mup: ClassVar[bool] = False
    """Whether model.mup_base_width scales its learning rate."""


class AdamWConfig(_Optimizer):
    """AdamW (Loshchilov & Hutter 2019). Norms and T5's position biases have no weight decay."""

    supports_mup: ClassVar[bool] = True

    name: Literal["adamw"] = "adamw"
    """The optimizer."""
    lr: _Rate = 1e-3
    """Peak learning rate."""
    beta1: _Decay = 0.9
    """Decay of the first moment."""
    beta2: _Decay = 0.95
    """Decay of the second moment."""
    eps: Annotated[float, Field(gt=0)] = 1e-8
    """Added to the square root of the second moment."""
    weight_decay: Coefficient = Scheduled(value=0.1)
    """Decoupled weight decay, times the learning rate, on matrices only; may be scheduled."""
    mup_scales_decay: bool = False
    """With model.mup_base_width: whether the weight decay of the layers' matrices shrinks with their learning
    rate as the width grows. False: the decay of a step does not depend on the width."""
    clip_grad_norm: Annotated[float, Field(ge=0)] = 1.0
    """Largest L2 norm of the whole gradient; 0 does not clip."""


class AdafactorConfig(_Optimizer):
    """Adafactor (Shazeer & Stern 2018) with T5X's defaults: factored second moments, and updates relative to
    the size of the weights.

    The learning rate of a step is the smaller of lr and 1 / sqrt(step). T5's recipe is schedule.name constant
    without warm-up. It needs ZeRO stage 0.
    """

    needs_whole_matrices: ClassVar[bool] = True

    name: Literal["adafactor"]
    """The optimizer."""
    lr: _Rate = 0.01
    """Largest relative step."""
    decay_exponent: Annotated[float, Field(ge=0)] = 0.8
    """The decay of the second moment is 1 - step ** -exponent."""
    clip_threshold: Annotated[float, Field(ge=1)] = 1.0
    """Largest root mean square of a matrix's update, before the learning rate."""
    min_dim_to_factor: Positive = 128
    """A matrix with a smaller dimension than this has an unfactored second moment."""
    beta1: _Decay = 0.0
    """Decay of the momentum; 0: no momentum."""
    weight_decay: Coefficient = NONE
    """Decoupled weight decay, times the learning rate, on matrices only."""
    clip_grad_norm: Annotated[float, Field(ge=0)] = 0.0
    """Largest L2 norm of the whole gradient; 0 does not clip."""


class MuonConfig(_Optimizer):
    """DeepSpeed's Muon (Jordan et al. 2024): orthogonalized momentum for the matrices of layers, AdamW for
    embeddings, head, norms and biases. It needs ZeRO stage 0.
    """

    needs_whole_matrices: ClassVar[bool] = True

    name: Literal["muon"]
    """The optimizer."""
    lr: _Rate = 0.02
    """Peak learning rate of the matrices."""
    adjust_lr: Literal["original", "match_rms_adamw"] = "original"
    """Scale of a matrix's orthogonal update. original: sqrt(max(1, rows / columns)) (Jordan et al.).
    match_rms_adamw: 0.2 sqrt(max(rows, columns)), near AdamW's updates (Liu et al. 2025, "Muon is scalable
    for LLM training"), so that AdamW's learning rates and weight decay carry over."""
    momentum: _Decay = 0.95
    """Decay of the momentum."""
    adam_lr: _Rate = 1e-3
    """Peak learning rate of the other parameters."""
    beta1: _Decay = 0.9
    """AdamW's decay of the first moment."""
    beta2: _Decay = 0.95
    """AdamW's decay of the second moment."""
    eps: Annotated[float, Field(gt=0)] = 1e-8
    """AdamW's, added to the square root of the second moment."""
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
"""The optimizer, chosen by its name."""


class ScheduleConfig(Frozen):
    """Learning rate as a function of the tokens consumed; it has no state."""

    name: Literal["constant", "cosine", "linear", "inverse_sqrt", "wsd", "cyclic"] = "cosine"
    """Shape after the warm-up. wsd: constant, then linear decay over the last decay_fraction. cyclic: cosine
    decays from the peak, one per cycle."""
    warmup_fraction: Annotated[float, Field(ge=0, le=1)] = 0.02
    """Share of the run's tokens in the warm-up, linear from 0."""
    final_ratio: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Final learning rate over the peak (cosine, linear, wsd), or the lowest one of each cycle (cyclic)."""
    decay_fraction: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Share of the run's tokens in the decay (wsd only)."""
    cycles: Positive = 1
    """Number of cycles, of equal length (cyclic only)."""
    weight_decay_ratio: Annotated[float, Field(ge=0)] = 1.0
    """Weight decay at the lowest learning rate over that at the peak, linear in the learning rate in between;
    1: constant weight decay. Above 1, the weight decay rises as the learning rate falls. It does not change
    during the warm-up."""

    @model_validator(mode="after")
    def _has_a_lowest_rate(self) -> Self:
        if self.weight_decay_ratio != 1 and self.name in ("constant", "inverse_sqrt"):
            raise ValueError(
                "weight_decay_ratio needs a name with a final_ratio: cosine, linear, wsd or cyclic;"
                f" {self.name} was given"
            )
        if self.weight_decay_ratio != 1 and self.final_ratio == 1:
            raise ValueError(
                "weight_decay_ratio needs a final_ratio below 1, because it follows the learning rate;"
                " 1 was given"
            )
        return self

    @model_validator(mode="after")
    def _cycles_are_cyclic(self) -> Self:
        if self.cycles > 1 and self.name != "cyclic":
            raise ValueError(f"cycles of more than 1 need the name cyclic; {self.name} was given")
        return self
