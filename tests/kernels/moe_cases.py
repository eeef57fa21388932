"""What the kernels of sparse layers are tested on, interpreted and on a GPU."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from reptrain_kernels import counter
from reptrain_kernels.ops.grouped import grouped_mlp, grouped_mm
from reptrain_kernels.ops.permute import Places, combine, dispatch, sort
from reptrain_kernels.ops.router import Routed, route

UNEVEN = (5, 0, 33, 1)


class Grouped(NamedTuple):
    """Sizes of an MLP for groups; the defaults are small and odd, as are the tiles."""

    dtype: torch.dtype = torch.float32
    activation: str = "swiglu"
    counts: tuple[int, ...] = UNEVEN
    width: int = 24
    hidden: int = 40
    rate: float = 0.0
    tiles: tuple[int, int, int] | None = (16, 32, 16)
    """Of every kernel; None: those that a GPU would run."""


GROUPED = {
    "swiglu": Grouped(rate=0.3),
    "geglu": Grouped(activation="geglu", counts=(0, 0, 40)),
    "relu": Grouped(activation="relu", rate=0.4, counts=(40,), width=32, hidden=64),
    "gelu": Grouped(activation="gelu", counts=(1, 16, 15), hidden=16, tiles=(16, 16, 16)),
    "many_groups": Grouped(activation="relu", counts=(1, 0, 2) * 3, width=16, hidden=16),
    "fp16": Grouped(torch.float16, rate=0.3, counts=(5, 0, 17), hidden=24),
    "bf16": Grouped(torch.bfloat16, rate=0.3, counts=(5, 0, 17), hidden=24),
}
# The tiles that a GPU would run, at sizes of several of them.
SLOW_GROUPED = {
    "more_groups": Grouped(activation="relu", counts=(1, 0, 2) * 6, width=16, hidden=16),
    "fp16_uneven": Grouped(torch.float16, rate=0.3),
    "bf16_uneven": Grouped(torch.bfloat16, rate=0.3),
    "wide": Grouped(counts=(3, 10), width=72, hidden=136, tiles=(16, 64, 32)),
    "tiles": Grouped(counts=(70, 0, 300, 130), width=144, hidden=264, rate=0.1, tiles=None),
    "fp16_tiles": Grouped(torch.float16, "geglu", (70, 0, 300, 130), 144, 264, 0.1, None),
    "bf16_tiles": Grouped(torch.bfloat16, "swiglu", (70, 0, 300, 130), 144, 264, 0.1, None),
    "bf16_relu_tiles": Grouped(torch.bfloat16, "relu", (128, 256), 128, 256, 0.1, None),
}


def normal(*shape: int, seed: int, dtype: torch.dtype = torch.float32) -> Tensor:
    """Seeded, rounded to the dtype."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


class GroupedInputs(NamedTuple):
    """The tensors of a case."""

    x_ND: Tensor
    gate_EFD: Tensor | None
    up_EFD: Tensor
    down_EDF: Tensor
    count_E: Tensor
    key_N: Tensor | None
    grad_ND: Tensor


def grouped_inputs(case: Grouped, device: str = "cpu") -> GroupedInputs:
    """Weights as a layer's, so that hidden units are of the size of one."""
    rows, groups, width, hidden = sum(case.counts), len(case.counts), case.width, case.hidden
    weight = normal(3, groups, hidden, width, seed=1) / width**0.5
    gate, up, down = (part.to(case.dtype).to(device) for part in weight)
    gated = case.activation in ("swiglu", "geglu")
    key_N = counter.row_keys(3, 4, torch.arange(rows)).to(device)
    return GroupedInputs(
        normal(rows, width, seed=2, dtype=case.dtype).to(device),
        gate if gated else None,
        up,
        down.mT.contiguous(),
        torch.tensor(case.counts).to(device),
        key_N if case.rate else None,
        normal(rows, width, seed=3, dtype=case.dtype).to(device),
    )


def grouped_results(
    case: Grouped, inputs: GroupedInputs, impl: str, *, exact: bool = False
) -> dict[str, Tensor]:
    """The output and every gradient of the MLP, and of one product alone; ``exact`` in float64."""
    given = [x for x in inputs[:4] if x is not None]
    leaves = [(x.double() if exact else x).detach().requires_grad_() for x in given]
    x_ND, *gates, up_EFD, down_EDF = leaves
    y_ND = grouped_mlp(
        x_ND, gates[0] if gates else None, up_EFD, down_EDF, inputs.count_E, activation=case.activation,
        key_N=inputs.key_N, rate=case.rate, impl=impl,
    )  # fmt: skip
    grads = torch.autograd.grad(y_ND, leaves, inputs.grad_ND.to(y_ND.dtype))
    names = ["x", *(["gate"] if gates else []), "up", "down"]
    found = {"y": y_ND.detach()} | dict(zip(names, grads, strict=True))
    product_NF = grouped_mm(x_ND, up_EFD, inputs.count_E, impl=impl)
    # A gradient with a row stride of 0, as a sum produces it.
    grad_NF = inputs.grad_ND[:, :1].to(y_ND.dtype).expand_as(product_NF)
    dx, dweight = torch.autograd.grad(product_NF, (x_ND, up_EFD), grad_NF)
    return found | {"product": product_NF.detach(), "product_x": dx, "product_up": dweight}


KINDS = dict.fromkeys(("y", "product", "dispatched", "combined", "gates", "share", "square"), "output")
KINDS |= dict.fromkeys(("gate", "up", "down", "product_up"), "summed")
"""Of results, where they are no gradients of rows."""


class Permuted(NamedTuple):
    """Sizes of a permutation."""

    dtype: torch.dtype = torch.float32
    tokens: int = 13
    top_k: int = 2
    width: int = 40


PERMUTED = {
    "top_1": Permuted(top_k=1),
    "top_2": Permuted(),
    "top_3_wide": Permuted(tokens=5, top_k=3, width=4100),
    "one_token": Permuted(tokens=1, top_k=4, width=1),
    "fp16": Permuted(torch.float16),
    "bf16": Permuted(torch.bfloat16, top_k=3),
}


def permuted_results(
    case: Permuted, impl: str, *, exact: bool = False, device: str = "cpu"
) -> dict[str, Tensor]:
    """Tokens dispatched and combined, with every gradient; ``exact`` in float64."""
    rows = case.tokens * case.top_k
    order_N = torch.randperm(rows, generator=torch.Generator().manual_seed(0))
    places = Places.of(order_N.to(device), case.top_k)
    given = [
        normal(case.tokens, case.width, seed=1, dtype=case.dtype),
        normal(rows, case.width, seed=2, dtype=case.dtype),
        normal(case.tokens, case.top_k, seed=3),
    ]
    x_MD, y_ND, gate_MK = ((x.double() if exact else x).detach().to(device).requires_grad_() for x in given)
    dispatched_ND = dispatch(x_MD, places, impl=impl)
    combined_MD = combine(y_ND, gate_MK, places, impl=impl)
    outputs = (dispatched_ND, combined_MD)
    grads = [normal(*x.shape, seed=seed, dtype=case.dtype).to(x) for seed, x in enumerate(outputs, start=4)]
    found = torch.autograd.grad(outputs, (x_MD, y_ND, gate_MK), grads)
    names = ("dispatched", "combined", "x_back", "y_back", "gate_back")
    return dict(zip(names, (dispatched_ND.detach(), combined_MD.detach(), *found), strict=True))


class Sorted(NamedTuple):
    """Sizes of a choice of experts."""

    experts: int
    tokens: int
    top_k: int = 2
    used: int | None = None
    """Experts from 0 on that are chosen; None: all."""


SORTED = {
    "some_unused": Sorted(16, 300, used=5),
    "one_has_all": Sorted(3, 260, 1, used=1),
    "many_experts": Sorted(129, 40, 3),
    "one_token": Sorted(2, 1),
}


def sorted_results(case: Sorted, impl: str, *, device: str = "cpu") -> dict[str, Tensor]:
    """Places, their inverse, and counts."""
    generator = torch.Generator().manual_seed(case.experts)
    used = case.used or case.experts
    expert_MK = torch.randint(used, (case.tokens, case.top_k), generator=generator).to(device)
    places, count_E = sort(expert_MK, case.experts, impl=impl)
    return {"order": places.order_N, "place": places.place_MK, "count": count_E}


class RoutedCase(NamedTuple):
    """Sizes and kinds of routing."""

    experts: int = 16
    top_k: int = 2
    score: str = "softmax"
    normalize: bool = True
    rows: int = 3
    tokens: int = 70


ROUTED = {
    "top_1": RoutedCase(top_k=1, normalize=False),
    "top_2": RoutedCase(),
    "five_experts": RoutedCase(experts=5, top_k=3, normalize=False, tokens=211),
    "sigmoid": RoutedCase(score="sigmoid", experts=12),
    "sigmoid_raw": RoutedCase(score="sigmoid", top_k=1, normalize=False),
    "all_chosen": RoutedCase(experts=3, top_k=3, tokens=1),
    "many_experts": RoutedCase(experts=129, top_k=6, rows=1, tokens=9),
}


def routed_inputs(case: RoutedCase, device: str = "cpu") -> tuple[Tensor, Tensor, Tensor]:
    """Logits, tokens and biases; a row of padding alone where there are three."""
    logit_BTE = 2 * normal(case.rows, case.tokens, case.experts, seed=case.experts)
    is_token_BT = normal(case.rows, case.tokens, seed=1) > -0.5
    is_token_BT[2:] = False
    return logit_BTE.to(device), is_token_BT.to(device), normal(case.experts, seed=2).to(device) / 5


def routed_results(
    case: RoutedCase, impl: str, *, exact: bool = False, device: str = "cpu"
) -> dict[str, Tensor]:
    """What was chosen, the gates and sums, and the logits' gradient; ``exact`` in float64."""
    logit_BTE, is_token_BT, bias_E = routed_inputs(case, device)
    logit_BTE = (logit_BTE.double() if exact else logit_BTE).requires_grad_()
    how: dict[str, Any] = {"top_k": case.top_k, "score": case.score, "normalize": case.normalize}
    routed: Routed = route(logit_BTE, is_token_BT, bias_E.to(logit_BTE.dtype), **how, impl=impl)
    outputs = (routed.gate_BTK, routed.share_BE, routed.square_B)
    grads = [normal(*x.shape, seed=7).to(x) for x in outputs]
    (grad_BTE,) = torch.autograd.grad(outputs, logit_BTE, grads)
    found = {"experts": routed.expert_BTK, "count": routed.count_BE}
    names = ("gates", "share", "square")
    return found | dict(zip(names, (x.detach() for x in outputs), strict=True)) | {"logits_back": grad_BTE}


def tied_experts(device: str = "cpu") -> list[list[int]]:
    """What Triton chooses of equal scores, in part equal, and not numbers at all."""
    logit_BTE = torch.zeros(1, 3, 5, device=device)
    logit_BTE[0, 1, 3:] = 1
    logit_BTE[0, 2] = torch.nan
    is_token_BT = torch.ones(1, 3, dtype=torch.bool, device=device)
    how: dict[str, Any] = {"top_k": 3, "score": "softmax", "normalize": True, "impl": "triton"}
    return route(logit_BTE, is_token_BT, torch.zeros(5, device=device), **how).expert_BTK[0].tolist()


LOWEST_FIRST = [[0, 1, 2], [3, 4, 0], [0, 1, 2]]
