"""Running a stack of blocks, kept or recomputed in the backward pass."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint


def run_blocks(blocks: nn.ModuleList, x_BTD: Tensor, *arguments: Any, recompute: bool) -> Tensor:
    """Pass the residual stream through the blocks.

    Args:
        blocks: Each maps (x_BTD, *arguments) to the next x_BTD.
        x_BTD: The residual stream.
        arguments: The same for every block.
        recompute: Keep each block's input alone and compute the rest again in the backward pass.
    """
    for block in blocks:
        if recompute:
            # Masks come from keys, so there is no generator state to keep.
            x_BTD = checkpoint(block, x_BTD, *arguments, use_reentrant=False, preserve_rng_state=False)
        else:
            x_BTD = block(x_BTD, *arguments)
    return x_BTD
