"""What joining the stream and RMSNorm are tested on: settings, seeded inputs, references in float64."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from reptrain_kernels import counter
from reptrain_kernels.ops.norm import Drops, join, join_and_norm, rms_norm

EPS = 1e-3


class Case(NamedTuple):
    """Sizes and features; the sizes are no multiples of a block's."""

    what: Literal["norm", "join", "both"] = "both"
    units: float = 0.0
    path: float = 0.0
    dtype: torch.dtype = torch.float32
    branch_dtype: torch.dtype | None = None
    """None: ``dtype``."""
    weight_dtype: torch.dtype | None = None
    rows: int = 2
    positions: int = 3
    width: int = 75

    @property
    def narrowest(self) -> torch.dtype:
        """The dtype that bounds how exact a result may be."""
        return self.branch_dtype or self.dtype


CASES = {
    "norm": Case("norm"),
    "norm_one": Case("norm", rows=1, positions=1, width=1),
    "norm_bf16_fp32_weight": Case("norm", dtype=torch.bfloat16, weight_dtype=torch.float32),
    "join_dropout": Case("join", units=0.3, width=530),
    "join_path_bf16": Case("join", path=0.4, dtype=torch.bfloat16),
    "both_units": Case(units=0.3, width=300),
    "both_units_path": Case(units=0.2, path=0.4),
    "both_fp16": Case(units=0.2, path=0.4, dtype=torch.float16),
    "both_bf16": Case(units=0.2, path=0.4, dtype=torch.bfloat16),
    "both_bf16_branch": Case(units=0.2, branch_dtype=torch.bfloat16),
    # Many lines to each block of the gradient, the last block short.
    "many_lines": Case(units=0.2, rows=2, positions=10, width=16),
}

# Their features are those of the cases above, one at a time.
SLOW_CASES = {
    "norm_bf16": Case("norm", dtype=torch.bfloat16),
    "both": Case(),
    "both_path": Case(path=0.4),
    "both_bf16_branch_whole": Case(branch_dtype=torch.bfloat16),
    "t5_base": Case(units=0.1, path=0.1, dtype=torch.bfloat16, positions=500, width=768),
    "wide": Case(units=0.1, rows=1, positions=33, width=8192),
    "wide_odd": Case(units=0.1, dtype=torch.bfloat16, rows=1, positions=33, width=5121),
}

BLOCKS = {"MAX_GRADIENT_BLOCKS": 3}
"""Of `norm_triton` under the interpreter, so that a few lines make blocks of several."""

KINDS = {"stream": "output", "normed": "output", "weight": "summed"}
"""Of results that are no gradients of inputs."""


class Inputs(NamedTuple):
    """The tensors of a case."""

    x: Tensor
    branch: Tensor
    weight: Tensor
    drops: Drops
    upstream: Tensor
    upstream_of_stream: Tensor


def inputs_of(case: Case, device: str = "cpu") -> Inputs:
    """Seeded; the stream and what comes back are halves of larger tensors, so that neither is contiguous."""
    generator = torch.Generator().manual_seed(case.width)

    def random(*shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype or case.dtype).to(device)

    size = (case.rows, case.positions, case.width)
    wide = (*size[:2], 2 * case.width)
    # At a rate of 0.4 the first row's path is dropped and the second's is kept.
    key_B = counter.row_keys(3, 8, torch.arange(case.rows, device=device))
    keys = [counter.fold(key_B, site) for site in (4, 12)]
    return Inputs(
        random(*wide).chunk(2, dim=-1)[0],
        random(*size, dtype=case.branch_dtype),
        1 + random(case.width, dtype=case.weight_dtype) / 4,
        Drops(keys[0] if case.units else None, case.units, keys[1] if case.path else None, case.path),
        random(*wide).chunk(2, dim=-1)[1],
        random(*size),
    )


def leaves_of(inputs: Inputs) -> list[Tensor]:
    """The inputs that have gradients."""
    return list(inputs[:3])


def call(case: Case, inputs: Inputs, leaves: list[Tensor], impl: str) -> list[Tensor]:
    """The outputs of the case; the stream is one of them also where it is an input."""
    x, branch, weight = leaves
    if case.what == "norm":
        return [x, rms_norm(x, weight, EPS, impl=impl)]
    if case.what == "join":
        return [join(x, branch, inputs.drops, impl=impl)]
    return list(join_and_norm(x, branch, weight, EPS, inputs.drops, impl=impl))


def of_positions(impl: str) -> bool:
    """Whether some of the positions are joined and normalized as in the whole stream, bit for bit."""
    case = CASES["both_units_path"]
    inputs, position_P = inputs_of(case), torch.tensor([1, 2])
    key_B = inputs.drops.unit_key_B
    assert key_B is not None and inputs.drops.path_key_B is not None
    of_part = inputs.drops._replace(unit_key_B=counter.position_keys(key_B, position_P))
    leaves = [inputs.x[:, position_P], inputs.branch[:, position_P], inputs.weight]
    pairs = [
        (part, whole[:, position_P])
        for asked in (case, case._replace(what="join"))
        for part, whole in zip(
            call(asked, inputs._replace(drops=of_part), leaves, impl),
            call(asked, inputs, leaves_of(inputs), impl),
            strict=True,
        )
    ]
    return len(pairs) == 3 and all(torch.equal(*pair) for pair in pairs)


def results(case: Case, inputs: Inputs, impl: str, *, exact: bool = False) -> dict[str, Tensor]:
    """The outputs and every gradient, by name; ``exact`` in float64."""
    leaves = [(x.double() if exact else x).detach().requires_grad_() for x in leaves_of(inputs)]
    outputs = call(case, inputs, leaves, impl)
    upstream = [inputs.upstream_of_stream, inputs.upstream][: len(outputs)]
    given = [grad.to(y.dtype) for y, grad in zip(outputs, upstream, strict=True)]
    grads = torch.autograd.grad(outputs, leaves, given, allow_unused=True)
    named = dict(zip(("stream", "normed"), (y.detach() for y in outputs), strict=False))
    named |= zip(("x", "branch", "weight"), grads, strict=True)
    return {name: x for name, x in named.items() if x is not None}


OPERATOR_CASE = "both_units_path"


def operators(case: Case, inputs: Inputs, leaves: list[Tensor]) -> list[tuple[Any, tuple[Any, ...]]]:
    """The registered operators and what to check each with."""
    from reptrain_kernels.ops.norm.triton import join_forward, norm_backward, norm_forward

    x, branch, weight = leaves
    units = counter.key_and_rate(inputs.drops.unit_key_B, inputs.drops.unit_rate)
    drops = (*units, *counter.key_and_rate(inputs.drops.path_key_B, inputs.drops.path_rate))
    rstd = torch.ones(x.shape[:-1])
    of_backward = (inputs.upstream, inputs.upstream, x.detach(), weight.detach(), rstd)
    return [
        (norm_forward, (x, branch, weight, *drops, EPS)),
        (norm_forward, (x, None, weight, None, None, None, None, EPS)),
        (norm_forward, (x, branch, weight, None, None, None, None, EPS)),
        (norm_backward, (*of_backward, torch.float32, *drops)),
        (norm_backward, (None, *of_backward[1:], None, None, None, None, None)),
        (join_forward, (x, branch, *drops, torch.float32)),
    ]


def masks() -> dict[str, bool]:
    """Whether each result that is no norm has the definition's bits, rounding and masks alike."""
    found = {}
    for name in ("both_bf16", "both_fp16", "both_units_path", "join_path_bf16", "both_bf16_branch"):
        case = CASES[name]._replace(rows=9)
        inputs = inputs_of(case)
        expected, actual = (results(case, inputs, impl)["stream"] for impl in ("torch", "triton"))
        found[name] = torch.equal(expected, actual) and len(actual[:, 0].unique(dim=0)) == 9
    for name in ("join_dropout", "join_path_bf16"):
        inputs = inputs_of(CASES[name])
        expected, actual = (results(CASES[name], inputs, impl)["branch"] for impl in ("torch", "triton"))
        found[f"{name} gradient"] = torch.equal(expected, actual)
    found["some positions"] = of_positions("triton")
    return found
