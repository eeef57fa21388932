"""Holds attention in Triton against float64, interpreted: prints {case: {result: error}} as JSON.

Arguments: names of cases, or of the checks below; after --tensor-cores fp32 is multiplied as those do.
"""

from __future__ import annotations

import json
import sys

import interpreted

interpreted.prepare()
if "--tensor-cores" in sys.argv:
    sys.argv.remove("--tensor-cores")
    interpreted.use_tensor_cores()

import torch  # noqa: E402
from attention_cases import CASES, SLOW_CASES, inputs_of, results  # noqa: E402
from tolerances import relative_error  # noqa: E402

from reptrain_kernels import counter, rates  # noqa: E402
from reptrain_kernels.ops.attention import AttentionMask, attention  # noqa: E402
from reptrain_kernels.ops.attention import triton as attention_triton  # noqa: E402
from reptrain_kernels.ops.attention.tiles import Tiles, attention_tiles  # noqa: E402


def use_tiles(tiles: tuple[int, int] | None) -> None:
    """Small tiles let a short sequence have many; None: those of a GPU."""

    def small(which: str, *_: object) -> Tiles:
        queries, keys = reversed(tiles) if which == "key_gradient" else tiles
        return Tiles(queries, keys, 4, 1)

    attention_triton.attention_tiles = attention_tiles if tiles is None else small


def errors(name: str) -> dict[str, float]:
    """Of each result against float64; those of queries that see nothing must be zero."""
    case = (CASES | SLOW_CASES)[name]
    use_tiles(case.tiles)
    inputs = inputs_of(case)
    expected = results(case, inputs, "torch", exact=True)
    found = results(case, inputs, "triton")
    visible = inputs.mask.allowed(case.queries, case.keys, inputs.q_BHTN.device)
    empty_BT = ~visible.any(-1).expand(case.rows, -1)
    assert not found["y"].transpose(1, 2)[empty_BT].any()
    assert not found["q"].transpose(1, 2)[empty_BT].any()
    if name.startswith("cross"):
        assert 0 < empty_BT.sum() < empty_BT.numel()
    return {key: relative_error(found[key], expected[key], inputs.grad_BHTN) for key in expected}


def dropped_weights() -> dict[str, bool]:
    """Values that are unit vectors show the weights: those dropped are the counter's, bit for bit."""
    use_tiles((32, 16))
    q, k = torch.randn(1, 2, 32, 32), torch.randn(1, 2, 32, 32)
    v = torch.eye(32).expand(1, 2, 32, 32)
    key_BH = counter.fold(counter.row_keys(3, 5, torch.arange(1))[:, None], torch.arange(2))
    found = {}
    for rate in (0.25, 0.75):
        y = attention(q, k, v, scale=1.0, key_BH=key_BH, rate=rate, impl="triton")
        keep = counter.random_words(key_BH, 32, 32) >= rates.threshold_and_scale(rate)[0]
        found[str(rate)] = torch.equal(y != 0, keep)
    return found


def operator() -> dict[str, bool]:
    """The registrations agree; torch.compile takes the operator whole; recomputation gives the same bits."""
    use_tiles((16, 16))
    case = CASES["dropout"]._replace(queries=16, keys=16, heads=1, kv_heads=1)
    inputs = inputs_of(case)
    q, k, v = (x.requires_grad_() for x in inputs[:3])
    bias = inputs.bias_HR.requires_grad_()
    rest = (inputs.key_BH, rates.packed(0.3), 0.3, False)
    forward = attention_triton.attention_forward
    torch.library.opcheck(forward.overload, (q, k, v, bias, None, None, None, *rest))

    mask = AttentionMask(bias_HR=bias)

    def model(q: torch.Tensor) -> torch.Tensor:
        return attention(
            q * 2,
            k,
            v,
            scale=0.3,
            mask=mask,
            key_BH=inputs.key_BH,
            rate=0.3,
            impl="triton",
        )

    def recomputed(q: torch.Tensor) -> torch.Tensor:
        return torch.utils.checkpoint.checkpoint(model, q, use_reentrant=False, preserve_rng_state=False)

    grads = {}
    ways = {"eager": model, "recomputed": recomputed, "again": model}
    ways["compiled"] = torch.compile(model, fullgraph=True, backend="aot_eager")
    for name, way in ways.items():
        grads[name] = torch.autograd.grad(way(q).square().sum(), (q, k, v, bias))
    return {
        name: all(torch.equal(a, b) for a, b in zip(grads[name], grads["eager"], strict=True))
        for name in grads
    }


if __name__ == "__main__":
    checks = {"dropped_weights": dropped_weights, "operator": operator}
    torch.manual_seed(0)
    print(json.dumps({name: checks[name]() if name in checks else errors(name) for name in sys.argv[1:]}))
