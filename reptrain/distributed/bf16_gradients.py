"""Fewer passes over the gradients in DeepSpeed's optimizer for bf16 at ZeRO stage 1.

The optimizer (`BF16_Optimizer`) sums bf16 gradients in fp32 buffers. This module replaces four of its steps.
The results are the same bit for bit, except that on CUDA the gradient norm is a sum in another order.

| step, bytes per parameter | DeepSpeed | this module |
|---|---|---|
| add the gradients of the first micro-batch to the buffers | 18: convert, then add to zeros | 6: copy |
| of each later micro-batch | 26: zero the bf16 gradients, accumulate in them, convert, add | 10: add |
| reduce over one rank | 16: copy into a bucket and back | 0 |
| zero the buffers, twice | 8 | 0 |

The rest is 46 bytes: norm 4, clipping 8 (only if the norm is above the threshold), AdamW 28, copying the
weights to bf16 6.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from reptrain.distributed.engine import Engine


def save_gradient_passes(engine: Engine, *, world_size: int, on_gpu: bool) -> None:
    """Replace steps of a new engine's optimizer, if that is DeepSpeed's for bf16 at ZeRO stage 1.

    Args:
        engine: No gradient has been computed yet.
        world_size: Number of ranks.
        on_gpu: Whether the model is on a GPU.
    """
    # No other optimizer of DeepSpeed has this attribute.
    if not hasattr(engine.optimizer, "fp32_groups_actual_gradients_flat"):
        return
    _Gradients(engine.optimizer, flat_norm=on_gpu)
    if world_size == 1:
        engine.enable_backward_allreduce = False


class _Gradients:
    """Replaces methods of a `BF16_Optimizer`.

    Args:
        optimizer: The optimizer.
        flat_norm: Whether the gradient norm is computed from one tensor for each parameter group, instead of
            one for each parameter.
    """

    def __init__(self, optimizer: Any, *, flat_norm: bool) -> None:
        self.optimizer = optimizer
        self.flat_norm = flat_norm and not optimizer.has_moe_layers
        self.list_gradients = optimizer.get_grads_for_norm
        self.forget()
        optimizer.update_hp_grads = self.accumulate
        optimizer.clear_hp_grads = self.forget
        optimizer.get_grads_for_norm = self.tensors_for_norm

    def forget(self) -> None:
        """Begin a step. The buffers are overwritten by its first micro-batch."""
        self.is_first = True
        optimizer = self.optimizer
        optimizer.fp32_groups_has_gradients = [[False] * len(group) for group in optimizer.bf16_groups]

    @torch.no_grad()
    def accumulate(self, clear_lp_grads: bool = False) -> None:
        """Add the bf16 gradients of a micro-batch to the buffers, and drop them."""
        optimizer = self.optimizer
        for number, group in enumerate(optimizer.bf16_groups):
            has_gradient = optimizer.fp32_groups_has_gradients[number]
            sums: list[Tensor] = []
            gradients: list[Tensor] = []
            for index, (parameter, buffer) in enumerate(
                zip(group, optimizer.fp32_groups_gradients[number], strict=True)
            ):
                if parameter.grad is not None:
                    sums.append(buffer)
                    gradients.append(parameter.grad.view(-1))
                    has_gradient[index], parameter._hp_grad = True, buffer
                    parameter.grad = None
                elif self.is_first:
                    buffer.zero_()
            if sums and self.is_first:
                torch._foreach_copy_(sums, gradients)
            elif sums:
                torch._foreach_add_(sums, gradients)
        self.is_first = False

    def tensors_for_norm(self, for_clipping: bool = False) -> Any:
        """What `BF16_Optimizer.get_grads_for_norm` returns, in few tensors."""
        optimizer = self.optimizer
        if for_clipping:
            return optimizer.fp32_groups_actual_gradients_flat
        return (optimizer.fp32_groups_actual_gradients_flat, {}) if self.flat_norm else self.list_gradients()
