"""Running the layers of a stack, kept or recomputed in the backward pass."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from reptrain.config.model import Recompute, StackShape
from reptrain.model.cache import Cache
from reptrain.model.dropout import site_keys
from reptrain.model.router import RoutedTokens
from reptrain.model.sparse import LayerRouting, SparseMLP

# Dear to compute: products with weights, and attention in one kernel. What lies between is computed again,
# and so is attention that is spelled out, whose weights are large and quickly made.
_KEPT = (
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


def _keep_products() -> tuple[Any, Any]:
    """Contexts of a recomputed layer in which the outputs of `_KEPT` are kept.

    Source:
        Korthikanti et al., "Reducing activation recomputation in large transformer models", 2022, section 5.
    """

    def policy(context: Any, operation: Any, *args: Any, **named: Any) -> CheckpointPolicy:
        is_kept = operation.name().removesuffix(".default") in _KEPT
        return CheckpointPolicy.MUST_SAVE if is_kept else CheckpointPolicy.PREFER_RECOMPUTE

    return create_selective_checkpoint_contexts(policy)


def run_layers(
    blocks: nn.ModuleList,
    x_BTD: Tensor,
    *arguments: Any,
    key_B: Tensor | None,
    routed: RoutedTokens,
    shape: StackShape,
    first_layer: int,
    recompute: Recompute,
    cache: Cache | None = None,
) -> tuple[Tensor, list[LayerRouting]]:
    """Pass the residual stream through the layers; the stored blocks run in cycles.

    Args:
        blocks: Each maps (x_BTD, keys_PB, routed, *arguments) to the next x_BTD and what its router did.
        x_BTD: The residual stream.
        arguments: The same for every layer.
        key_B: The rows' dropout keys; None drops nothing.
        routed: What sparse layers must know of the positions.
        shape: Of the stack.
        first_layer: Number of the first layer in the whole model.
        cache: Of the positions read before; each layer is given its own.
        recompute: What of a layer's activations is computed again in the backward pass.

    Returns:
        The stream, and what the routers did where ``routed`` has targets.
    """
    routings = []
    # Left out where it is not wanted: torch.compile takes no other default.
    kept_products = {"context_fn": _keep_products} if recompute == "selective" else {}
    for layer in range(shape.num_layers):
        block, keys_PB = blocks[layer % shape.stored], site_keys(key_B, first_layer + layer)
        if recompute != "none":
            # Masks come from keys, so there is no generator state to keep. The reentrant form fails for
            # a block that runs twice under ZeRO 2 and 3.
            x_BTD, routing = checkpoint(
                block,
                x_BTD,
                keys_PB,
                routed,
                *arguments,
                use_reentrant=False,
                preserve_rng_state=False,
                **kept_products,
            )
        else:
            kept = {} if cache is None else {"cache": cache.layers[layer]}
            x_BTD, routing = block(x_BTD, keys_PB, routed, *arguments, **kept)
        if routing is not None:
            routings.append(routing)
    return x_BTD, routings


def sparse_layers(blocks: nn.ModuleList, shape: StackShape) -> list[tuple[str, SparseMLP]]:
    """The sparse MLPs of a stack by the number of their layer, in the order in which they run."""
    mlps = ((layer, blocks[layer % shape.stored].mlp) for layer in range(shape.num_layers))
    return [(str(layer), mlp) for layer, mlp in mlps if isinstance(mlp, SparseMLP)]


def compile_blocks(model: nn.Module) -> None:
    """Compile the layers of a model, each kind once: a layer knows neither its number nor its keys."""
    for module in model.modules():
        if isinstance(module, nn.ModuleList):
            for block in module:
                block.compile()
