"""Compare the MegaBlocks backend with the loop backend in Triton's interpreter, without CUDA.

A script: whether Triton interprets is decided when it is imported. Stand-ins in plain torch take the place of
the parts that are compiled for CUDA; the copies to the experts and back are MegaBlocks' own Triton kernels.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import torch
import triton
from torch import Tensor

from reptrain.config.model import MoEConfig
from reptrain.model.dropout import Dropout, DropoutContext, Site, layer_keys
from reptrain.model.megablocks import require_megablocks
from reptrain.model.router import RoutedTokens
from reptrain.model.sparse import SparseMLP


class OneConfig:
    """Replaces Triton's autotuner, which needs a GPU for its timings."""

    def __init__(self, kernel: Any, chosen: dict[str, int]) -> None:
        self.kernel, self.chosen = kernel, chosen

    def __getitem__(self, grid: Any) -> Any:
        return lambda *args, **named: self.kernel[grid](*args, **self.chosen, **named)


def sort(x_N: Tensor, end_bit: int, sorted_N: Tensor, index_N: Tensor) -> None:
    assert x_N.max() < 2**end_bit
    for into, actual in zip((sorted_N, index_N), x_N.sort(stable=True), strict=True):
        into.copy_(actual)


def gmm(x_NI: Tensor, weight_E: Tensor, count_E: Tensor, trans_b: bool) -> Tensor:
    assert trans_b and count_E.dtype == torch.int64 and count_E.device.type == "cpu"
    parts = x_NI.split(count_E.tolist())
    return torch.cat([part @ weight.T for part, weight in zip(parts, weight_E, strict=True)])


def stand_in() -> None:
    """Replace the compiled parts by plain torch."""
    compiled, grouped = ModuleType("megablocks_ops"), ModuleType("grouped_gemm")
    compiled.sort = sort
    compiled.histogram = lambda x_N, num_bins: torch.bincount(x_N, minlength=num_bins).int()
    compiled.inclusive_cumsum = lambda x, dim, out: out.copy_(x.cumsum(dim))
    grouped.backend, grouped.ops = None, ModuleType("grouped_gemm.ops")
    grouped.ops.gmm = gmm
    sys.modules |= {"megablocks_ops": compiled, "grouped_gemm": grouped}
    triton.autotune = lambda configs, key: lambda kernel: OneConfig(kernel, configs[0].kwargs)


def outcome(backend: str, top_k: int, dtype: torch.dtype, activation: str) -> list[Tensor]:
    """Output, router losses and all gradients of a sparse layer."""
    torch.manual_seed(0)
    config = MoEConfig(num_experts=5, top_k=top_k, backend=backend, shared_d_ff=8)
    shared = Dropout(0.3, Site.MLP_HIDDEN)
    layer = SparseMLP(16, 24, activation=activation, config=config, dropout=0.3, shared_dropout=shared)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    layer.to(dtype)
    x_BTD = torch.randn(3, 7, 16).to(dtype).requires_grad_()
    (keys,) = layer_keys(DropoutContext(seed=1, step=2, row_B=torch.arange(3)).key_B, 3, 1, 1)
    is_token_BT = torch.arange(7) < torch.tensor([7, 4, 0])[:, None]
    y_BTD, routing = layer(x_BTD, keys, RoutedTokens(is_token_BT, is_token_BT.sum(1)))
    loss = (y_BTD.float() * torch.arange(16)).square().sum() + routing.loss_nats
    wanted = [x_BTD, *layer.parameters()]
    return [y_BTD, routing.loss_nats, *torch.autograd.grad(loss, wanted)]


def main() -> None:
    """Check every case; any error fails the test."""
    stand_in()
    require_megablocks()
    for activation in ("swiglu", "relu"):
        for top_k in (1, 2):
            for dtype, rtol in ((torch.float32, 1e-5), (torch.float16, 1e-2)):
                actual, expected = (outcome(b, top_k, dtype, activation) for b in ("megablocks", "loop"))
                for one, other in zip(actual, expected, strict=True):
                    torch.testing.assert_close(one, other, rtol=rtol, atol=rtol * other.abs().max().item())
    print("equal")


if __name__ == "__main__":
    main()
