"""What a micro-batch asks of the model in training: targets, and how each counts in the step's loss."""

from __future__ import annotations

import torch

from reptrain.batch.objectives import Example
from reptrain.training.regularize import Settings
from reptrain_kernels.ops.linear_cross_entropy import Targets, coefficient


def targets_of(example: Example, settings: Settings, *, factor: float) -> Targets:
    """The targets of an example, each with its weight times ``factor``, and what the regularizers add.

    Args:
        example: Of the micro-batch.
        settings: Label smoothing and z-loss of the step.
        factor: What the sum of the weighted nats is multiplied by before its gradient is taken.
    """
    if example.weight_BT is None:
        weight_BT = torch.full_like(example.targets_BT, factor, dtype=torch.float32)
    else:
        weight_BT = example.weight_BT * factor
    return Targets(
        example.targets_BT,
        weight_BT,
        label_smoothing=coefficient(settings.label_smoothing),
        z_loss=coefficient(settings.z_loss),
        wants_correct=False,
    )
