"""Targets of a micro-batch in training, with the weight of each in the step's loss."""

from __future__ import annotations

import torch

from reptrain.batch.objectives import Example
from reptrain.training.regularize import Settings
from reptrain_kernels.ops.linear_cross_entropy import Targets, coefficient


def targets_of(example: Example, settings: Settings, *, factor: float) -> Targets:
    """Build the targets of an example, weighted by ``factor``, with label smoothing and z-loss.

    Args:
        example: The example of the micro-batch.
        settings: Values of the regularizers in the step.
        factor: Multiplies the sum of the weighted nats before the gradient is computed.
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
