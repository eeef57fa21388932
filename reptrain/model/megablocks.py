"""The MegaBlocks backend: its dispatch and its grouped matrix product.

The package is optional: `make megablocks` installs it, and needs a CUDA compiler.

Shapes: B rows of a micro-batch, T positions, D width of the residual stream, E experts, K experts per token,
N = B T K assignments of a token to an expert, I input columns, O output columns.

Source:
    Gale et al., "MegaBlocks: Efficient sparse training with mixture-of-experts", 2022.
"""

from __future__ import annotations

import importlib

from torch import Tensor

from reptrain.errors import ConfigError
from reptrain.model.dispatch import Dispatch

# In the order of their dependencies; the first two are compiled for CUDA.
_MODULES = ("megablocks_ops", "grouped_gemm", "stk", "megablocks")


def require_megablocks() -> None:
    """Check that MegaBlocks and its compiled parts can be imported.

    Raises:
        ConfigError: If a part is missing or does not load.
    """
    for name in _MODULES:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise ConfigError(
                "model.moe.backend",
                got=f"megablocks, and {name} does not load: {error}",
                rule="needs MegaBlocks with its compiled parts megablocks_ops and grouped_gemm",
                remedy="Run `make megablocks` on a machine with a GPU, or set model.moe.backend=grouped.",
            ) from error


class MegaBlocksDispatch(Dispatch):
    """`Dispatch` by MegaBlocks' radix sort and copy kernels.

    Args:
        expert_BTK: int64, experts of each token.
        num_experts: E.
    """

    def __init__(self, expert_BTK: Tensor, num_experts: int) -> None:
        from megablocks import ops

        expert_N = expert_BTK.flatten().int()
        self.top_k = expert_BTK.shape[-1]
        self.bin_N, self.index_N = ops.sort(expert_N, max((num_experts - 1).bit_length(), 1))
        self.order_N = self.index_N.long()
        histogram_E = ops.histogram(expert_N, num_experts)
        self.end_E = ops.inclusive_cumsum(histogram_E, 0).view(-1)
        self.count_E = histogram_E.long()

    def dispatch(self, x_BTD: Tensor) -> Tensor:
        """Copy each token to its K assignments, x_ND, sorted by expert."""
        from megablocks import ops

        return ops.gather(x_BTD.flatten(0, 1), self.index_N, self.bin_N, self.end_E, self.top_k)

    def combine(self, y_ND: Tensor, gate_BTK: Tensor) -> Tensor:
        """Sum the outputs of each token's experts, weighted by the gates: y_BTD."""
        from megablocks import ops

        gate_N = gate_BTK.flatten()
        y_MD = ops.scatter(y_ND, self.index_N, self.bin_N, gate_N, self.end_E, self.top_k)
        return y_MD.view(*gate_BTK.shape[:2], -1)


def megablocks_mm(x_NI: Tensor, weight_EOI: Tensor, count_E: Tensor) -> Tensor:
    """Multiply each expert's rows by the transpose of its matrix: y_NO. Copies the counts to the host."""
    from megablocks import grouped_gemm_util

    return grouped_gemm_util.ops.gmm(x_NI, weight_EOI, count_E.cpu(), trans_b=True)
