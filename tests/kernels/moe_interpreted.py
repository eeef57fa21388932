"""Holds the kernels of sparse layers against float64, interpreted: prints {check: {result: error}} as JSON.

Arguments: names of slow cases of grouped products; none for the rest.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import interpreted

interpreted.prepare()

import torch  # noqa: E402
from moe_cases import (  # noqa: E402
    GROUPED,
    PERMUTED,
    ROUTED,
    SLOW_GROUPED,
    SORTED,
    Grouped,
    grouped_inputs,
    grouped_results,
    permuted_results,
    routed_inputs,
    routed_results,
    sorted_results,
    tied_experts,
)
from tolerances import relative_error  # noqa: E402
from torch import Tensor  # noqa: E402

from reptrain_kernels import counter, rates  # noqa: E402
from reptrain_kernels.ops.grouped import ends, grouped_mlp, grouped_mm  # noqa: E402
from reptrain_kernels.ops.grouped import triton as grouped_triton  # noqa: E402
from reptrain_kernels.ops.grouped.tiles import Tiles, grouped_tiles  # noqa: E402
from reptrain_kernels.ops.permute import Places, combine, dispatch  # noqa: E402
from reptrain_kernels.ops.permute import triton as permute_triton  # noqa: E402
from reptrain_kernels.ops.router import route  # noqa: E402
from reptrain_kernels.ops.router import triton as router_triton  # noqa: E402


def use_tiles(tiles: tuple[int, int, int] | None) -> None:
    """Small tiles let a few rows have many; None: those of a GPU."""
    small = None if tiles is None else Tiles(*tiles, 4, 1)
    grouped_triton.grouped_tiles = lambda *which: small or grouped_tiles(*which)


def errors(found: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, Any]:
    """How far results are off; whether they are equal where they are whole numbers."""
    return {
        name: relative_error(found[name], x, x) if x.is_floating_point() else torch.equal(found[name], x)
        for name, x in expected.items()
    }


def grouped(case: Grouped) -> dict[str, Any]:
    use_tiles(case.tiles)
    inputs = grouped_inputs(case)
    found = grouped_results(case, inputs, "triton")
    for group, count in enumerate(case.counts):
        assert count or not any(found[name][group].any() for name in ("up", "down", "product_up"))
    return errors(found, grouped_results(case, inputs, "torch", exact=True))


def dropped_units() -> dict[str, bool]:
    """Matrices that are the identity show the hidden units: those dropped are the counter's, bit for bit."""
    use_tiles((16, 16, 16))
    eye = torch.eye(32).expand(2, -1, -1)
    key_N = counter.row_keys(3, 5, torch.arange(20))
    x_ND = torch.rand(20, 32) + 1
    found = {}
    for rate in (0.25, 0.75):
        how: dict[str, Any] = {"activation": "relu", "key_N": key_N, "rate": rate, "impl": "triton"}
        y_ND = grouped_mlp(x_ND, None, eye, eye, torch.tensor([7, 13]), **how)
        expected_ND = counter.dropout(x_ND[:, None], key_N, rate)[:, 0]
        found[str(rate)] = torch.allclose(y_ND, expected_ND) and torch.equal(y_ND != 0, expected_ND != 0)
    return found


def same(model: Callable[..., Tensor], leaves: tuple[Tensor, ...]) -> dict[str, bool]:
    """Whether a model's gradients are the same bits again, recomputed, and compiled."""

    def recomputed(*leaves: Tensor) -> Tensor:
        return torch.utils.checkpoint.checkpoint(
            model, *leaves, use_reentrant=False, preserve_rng_state=False
        )

    ways = {"eager": model, "again": model, "recomputed": recomputed}
    ways["compiled"] = torch.compile(model, fullgraph=True, backend="aot_eager")
    grads = {}
    for name, way in ways.items():
        y = way(*leaves)
        grads[name] = (y.detach(), *torch.autograd.grad(y.square().sum(), leaves))
    return {
        name: all(torch.equal(a, b) for a, b in zip(found, grads["eager"], strict=True))
        for name, found in grads.items()
    }


def operators() -> dict[str, dict[str, bool]]:
    """The registrations agree; torch.compile takes each whole; recomputation gives the same bits."""
    use_tiles((16, 16, 16))
    case = GROUPED["swiglu"]._replace(counts=(5, 0, 11), width=16, hidden=16)
    x, gate, up, down, count_E, key_N, _ = grouped_inputs(case)
    leaves = tuple(x.requires_grad_() for x in (x, gate, up, down))
    rest = (key_N, rates.packed(0.3), "swiglu")
    torch.library.opcheck(grouped_triton.grouped_mlp.overload, (*leaves, ends(count_E), *rest))
    quick = ("test_schema", "test_autograd_registration", "test_faketensor")
    torch.library.opcheck(
        grouped_triton.grouped_mm.overload, (leaves[0], leaves[2], ends(count_E)), test_utils=quick
    )
    places = Places.of(torch.randperm(16), 1)
    torch.library.opcheck(permute_triton.sort.overload, (torch.tensor([[1, 0], [0, 3]]), 4))
    torch.library.opcheck(permute_triton.dispatch.overload, (leaves[0], places.place_MK), test_utils=quick)
    gates = torch.rand(16, 1, requires_grad=True)
    torch.library.opcheck(permute_triton.combine.overload, (leaves[0], gates, places.place_MK))
    routing = list(routed_inputs(ROUTED["top_2"]._replace(tokens=9, experts=5)))
    routing[0].requires_grad_()
    torch.library.opcheck(router_triton.route.overload, (*routing, 2, "softmax", True))

    def experts(x: Tensor, gate: Tensor, up: Tensor, down: Tensor) -> Tensor:
        dispatched = dispatch(x * 2, places, impl="triton")
        how: dict[str, Any] = {"activation": "swiglu", "key_N": key_N, "rate": 0.3, "impl": "triton"}
        y = combine(grouped_mlp(dispatched, gate, up, down, count_E, **how), gates, places, impl="triton")
        return grouped_mm(y, up, count_E, impl="triton")

    def router(logits: Tensor) -> Tensor:
        how: dict[str, Any] = {"top_k": 2, "score": "sigmoid", "normalize": True, "impl": "triton"}
        found = route(logits * 2, *routing[1:], **how)
        return torch.cat([found.gate_BTK.flatten(), found.share_BE.flatten(), found.square_B])

    return {"experts": same(experts, leaves), "router": same(router, (routing[0],))}


if __name__ == "__main__":
    torch.manual_seed(0)
    strays = interpreted.watch_memory()
    if sys.argv[1:]:
        found: dict[str, Any] = {name: grouped(SLOW_GROUPED[name]) for name in sys.argv[1:]}
    else:
        found = {"dropped_units": dropped_units(), "ties": tied_experts(), "operators": operators()}
        found["grouped"] = {name: grouped(case) for name, case in GROUPED.items()}
        found["sorted"] = {
            name: errors(sorted_results(case, "triton"), sorted_results(case, "torch"))
            for name, case in SORTED.items()
        }
        for kind, cases, results in (
            ("permuted", PERMUTED, permuted_results),
            ("routed", ROUTED, routed_results),
        ):
            found[kind] = {
                name: errors(results(case, "triton"), results(case, "torch", exact=True))
                for name, case in cases.items()
            }
    print(json.dumps(found | {"strays": strays}))
