"""Linear + cross-entropy at the vocabularies of published models: compiled, modeled, timed.

Sizes: N targets, D units, V ids.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from reptrain_kernels.bench.operation import Operation, Ways, Work, element_bytes, installed, own_ways
from reptrain_kernels.implementation import Implementation
from reptrain_kernels.ops.linear_cross_entropy import Targets, coefficient, linear_cross_entropy

# Instructions for a logit, counted in the code for sm_80, of the pass that finds the loss and of the one that
# writes the gradient.
LOSS = {"floats": 5, "integers": 5, "exps": 2}
GRADIENT = {"floats": 6, "integers": 5, "exps": 1}


class LossShape(NamedTuple):
    """The head of a model and the number of its rows."""

    name: str
    D: int
    V: int
    N: int = 8192
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    dtype: torch.dtype = torch.bfloat16


SHAPES = [
    LossShape("T5-Base", 768, 32_128),
    LossShape("T5-Base smoothed, z-loss", 768, 32_128, label_smoothing=0.1, z_loss=1e-4),
    LossShape("T5-Base 512 targets", 768, 32_128, N=512),
    LossShape("T5-Large", 1024, 32_128),
    LossShape("T5-XL", 2048, 32_128),
    LossShape("GPT-2", 768, 50_257),
    LossShape("Llama-7B", 4096, 32_000),
    LossShape("128k ids 2048 units", 2048, 128_256),
    LossShape("128k ids 4k targets", 4096, 128_256, N=4096),
    LossShape("128k ids 8k targets", 4096, 128_256),
    LossShape("128k ids 32k targets", 4096, 128_256, N=32_768),
]


def _tensors(shape: LossShape, device: str) -> tuple[Tensor, Tensor, Targets]:
    x_ND = torch.randn(shape.N, shape.D, dtype=shape.dtype, device=device)
    head_VD = (shape.D**-0.5 * torch.randn(shape.V, shape.D, device=device)).to(shape.dtype)
    target_N = torch.randint(shape.V, (shape.N,), device=device)
    numbers = map(coefficient, (shape.label_smoothing, shape.z_loss))
    return x_ND, head_VD, Targets(target_N, None, *numbers, wants_correct=False)


def _launch(shape: LossShape) -> Callable[[], object]:
    from reptrain_kernels.ops.linear_cross_entropy.triton import launch_linear_cross_entropy, launch_scale

    x_ND, head_VD, targets = _tensors(shape, "meta")
    target_N, *how = targets[:-1]
    factor = torch.empty((), device="meta")
    return lambda: (
        launch_linear_cross_entropy(x_ND, head_VD, target_N, *how, True),
        launch_scale(head_VD, factor, head_VD),
    )


class _Sizes(NamedTuple):
    """Numbers of a shape."""

    logits: int
    product: float
    """Flops of one."""
    x: int
    """Bytes, as the next."""
    head: int


def _sizes(shape: LossShape) -> _Sizes:
    logits, element = shape.N * shape.V, element_bytes(shape.dtype)
    return _Sizes(logits, 2.0 * logits * shape.D, shape.N * shape.D * element, shape.V * shape.D * element)


def _needed(shape: LossShape) -> list[Work]:
    """One product to the loss and two for its gradients; no logits in memory."""
    logits, product, x, head = _sizes(shape)
    return [
        Work("forward", matrix_flops=product, exps=logits, memory_bytes=x + head + 20 * shape.N),
        Work("backward", matrix_flops=2 * product, memory_bytes=2 * (x + head)),
    ]


def _moved(shape: LossShape, capability: int) -> list[list[Work]]:
    """What evaluation runs, and what training runs besides. The gradient of the head is read and written
    again for each chunk after the first. They are multiplied by 1, for which nothing moves.
    """
    from reptrain_kernels.ops.linear_cross_entropy.triton import chunk_rows

    logits, product, x, head = _sizes(shape)
    element = element_bytes(shape.dtype)
    chunks = -(-shape.N // chunk_rows(shape.N, shape.V, element))
    stored = logits * element
    forward = [
        Work("logits", matrix_flops=product, memory_bytes=x + chunks * head + stored),
        Work("loss", memory_bytes=stored + 20 * shape.N, **_times(LOSS, logits)),
    ]
    gradient = Work("gradient", memory_bytes=2 * stored, **_times(GRADIENT, logits))
    of_x = Work("x", matrix_flops=product, memory_bytes=stored + chunks * head + x)
    of_head = Work("head", matrix_flops=product, memory_bytes=stored + x + (2 * chunks - 1) * head)
    return [forward, [gradient, of_x, of_head]]


def _times(instructions: dict[str, int], logits: int) -> dict[str, int]:
    return {unit: number * logits for unit, number in instructions.items()}


def _ways(shape: LossShape, device: str) -> Ways:
    """Ours; the definition, eager and compiled, with all logits; Liger's, in chunks."""
    x_ND, head_VD, targets = _tensors(shape, device)
    leaves = [x_ND.requires_grad_(), head_VD.requires_grad_()]

    def call(impl: Implementation) -> Tensor:
        return linear_cross_entropy(x_ND, head_VD, targets, impl=impl).loss

    calls = own_ways(call)
    liger = installed("liger_kernel.transformers")
    if liger is not None:
        loss = liger.LigerFusedLinearCrossEntropyLoss(
            label_smoothing=shape.label_smoothing, lse_square_scale=shape.z_loss, reduction="sum"
        )
        calls["liger"] = lambda: loss(head_VD, x_ND, targets.target)
    return Ways(leaves, calls)


OPERATION = Operation(
    name="linear_cross_entropy",
    shapes=SHAPES,
    launch=_launch,
    needed=_needed,
    moved=_moved,
    ways=_ways,
    shown=(
        "T5-Base",
        "T5-Base 512 targets",
        "T5-XL",
        "GPT-2",
        "Llama-7B",
        "128k ids 4k targets",
        "128k ids 8k targets",
        "128k ids 32k targets",
    ),
)
