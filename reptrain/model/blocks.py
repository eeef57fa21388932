"""Run the layers of a stack, with or without activation checkpointing.

Shapes: B rows, T positions, D width of the residual stream.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from reptrain.config.model import Recompute, StackShape
from reptrain.model.cache import Cache
from reptrain.model.dropout import LayerKeys
from reptrain.model.router import RoutedTokens
from reptrain.model.sparse import LayerRouting, SparseMLP

# Expensive to compute: matrix products with weights, and fused attention. Everything else is recomputed, also
# unfused attention, whose weights are large and cheap to compute.
_SAVED_OPS = (
    "aten::mm",
    "aten::addmm",
    "aten::_scaled_dot_product_flash_attention",
    "aten::_scaled_dot_product_efficient_attention",
    "aten::_scaled_dot_product_cudnn_attention",
    "aten::_scaled_dot_product_flash_attention_for_cpu",
    "reptrain::grouped_mm",
    "reptrain_kernels::grouped_mm",
    "reptrain_kernels::grouped_mlp",
    "reptrain_kernels::attention_forward",
)


def _save_products() -> tuple[Any, Any]:
    """Contexts of a checkpointed layer that save the outputs of `_SAVED_OPS`.

    Source:
        Korthikanti et al., "Reducing activation recomputation in large transformer models", 2022, section 5.
    """

    def policy(context: Any, operation: Any, *args: Any, **named: Any) -> CheckpointPolicy:
        is_saved = operation.name().removesuffix(".default") in _SAVED_OPS
        return CheckpointPolicy.MUST_SAVE if is_saved else CheckpointPolicy.PREFER_RECOMPUTE

    return create_selective_checkpoint_contexts(policy)


def run_layers(
    blocks: nn.ModuleList,
    x_BTD: Tensor,
    *arguments: Any,
    keys: Sequence[LayerKeys | None],
    routed: RoutedTokens,
    shape: StackShape,
    recompute: Recompute,
    cache: Cache | None = None,
) -> tuple[Tensor, list[LayerRouting]]:
    """Pass the residual stream through the layers of a stack. Shared blocks run in cycles.

    Args:
        blocks: The stored layers; each maps (x_BTD, keys, routed, *arguments) to x_BTD and its routing.
        x_BTD: The residual stream.
        arguments: Further inputs, the same for every layer.
        keys: Dropout keys of each layer; None: no dropout.
        routed: Inputs of the sparse layers.
        shape: Shape of the stack.
        recompute: Which activations the backward pass recomputes.
        cache: The cache of previous positions; each layer gets its own part.

    Returns:
        x_BTD, and the routing of each sparse layer if ``routed`` has targets.
    """
    routings = []
    # torch.compile accepts no explicit default of context_fn, so it is left out.
    contexts: dict[str, Any] = {"context_fn": _save_products} if recompute == "selective" else {}
    for layer in range(shape.num_layers):
        block = blocks[layer % shape.stored]
        if recompute != "none":
            # Dropout masks come from keys, so there is no RNG state to preserve. The reentrant form fails
            # under ZeRO 2 and 3 if a block runs twice.
            x_BTD, routing = checkpoint(
                block,
                x_BTD,
                keys[layer],
                routed,
                *arguments,
                use_reentrant=False,
                preserve_rng_state=False,
                **contexts,
            )
        else:
            cached = {} if cache is None else {"cache": cache.layers[layer]}
            x_BTD, routing = block(x_BTD, keys[layer], routed, *arguments, **cached)
        if routing is not None:
            routings.append(routing)
    return x_BTD, routings


def sparse_layers(blocks: nn.ModuleList, shape: StackShape) -> list[tuple[str, SparseMLP]]:
    """Layer index and MLP of each sparse layer of a stack, in execution order; shared MLPs repeat."""
    mlps = ((layer, blocks[layer % shape.stored].mlp) for layer in range(shape.num_layers))
    return [(str(layer), mlp) for layer, mlp in mlps if isinstance(mlp, SparseMLP)]


def compile_blocks(model: nn.Module) -> None:
    """Compile each block of a model with torch.compile."""
    for module in model.modules():
        if isinstance(module, nn.ModuleList):
            for block in module:
                block.compile()
