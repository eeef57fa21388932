"""Targets of a micro-batch in training, with the weight of each in the step's loss."""

from __future__ import annotations

import torch

from reptrain.batch.objectives import Example
from reptrain.training.regularize import Settings
from reptrain_kernels.ops.linear_cross_entropy import Targets, coefficient


def targets_of(example: Example, settings: Settings) -> Targets:
    """Build the targets of an example with the objective's weights, label smoothing and z-loss.

    Args:
        example: The example of the micro-batch.
        settings: Values of the regularizers in the step.
    """
    weight_BT = example.weight_BT
    if weight_BT is None:
        weight_BT = torch.ones_like(example.targets_BT, dtype=torch.float32)
    return Targets(
        example.targets_BT,
        weight_BT,
        label_smoothing=coefficient(settings.label_smoothing),
        z_loss=coefficient(settings.z_loss),
        wants_correct=False,
    )
