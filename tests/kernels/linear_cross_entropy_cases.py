"""What linear + cross-entropy is tested on, interpreted and on a GPU: settings, seeded inputs, references."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from reptrain_kernels.ops.linear_cross_entropy import IGNORE, Targets, coefficient, linear_cross_entropy

# Of the kernels' module while interpreted: rows in up to three chunks, each of whole fours.
BLOCKS = {"CHUNK_BYTES": 1, "MAX_CHUNKS": 3, "_ROWS_OF_TILE": 4}


class Case(NamedTuple):
    """Sizes and features."""

    ids: int
    width: int = 24
    rows: int = 11
    ignored: tuple[int, ...] = (2, 7)
    weighted: bool = False
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    dtype: torch.dtype = torch.float32

    @property
    def narrowest(self) -> torch.dtype:
        """The dtype that bounds how exact a result may be."""
        return self.dtype


ALL: dict[str, Any] = {"weighted": True, "label_smoothing": 0.1, "z_loss": 1e-2}

CASES = {
    "plain": Case(100),
    "all": Case(130, **ALL),
    "smoothed": Case(4097, rows=5, label_smoothing=0.3),
    "z_loss": Case(64, z_loss=1e-2),
    # Whole fours: with other numbers of rows torch's product of fp32 on a CPU sums 50 thousand terms in turn.
    "t5": Case(32_128, rows=8, weighted=True),
    "gpt2": Case(50_257, rows=8, ignored=(1,), **ALL),
    "one_row": Case(77, rows=1, ignored=()),
    "one_id": Case(1, width=1, z_loss=1e-2),
    "none_scored": Case(50, rows=5, ignored=(0, 1, 2, 3, 4), **ALL),
    "no_rows": Case(50, rows=0, ignored=()),
    "fp16": Case(500, dtype=torch.float16, **ALL),
    "bf16": Case(500, dtype=torch.bfloat16, **ALL),
    "bf16_gpt2": Case(50_257, rows=3, ignored=(), dtype=torch.bfloat16),
}

SLOW_CASES = {
    "llama3": Case(128_256, width=64, rows=20, dtype=torch.bfloat16, **ALL),
    "t5_rows": Case(32_128, width=64, rows=300, dtype=torch.bfloat16, **ALL),
}

KINDS = {"nats": "output", "loss": "output", "head": "summed"}
"""Of results that are no gradients of inputs, or that are summed over rows."""


class Inputs(NamedTuple):
    """The tensors of a case."""

    x: Tensor
    head: Tensor
    targets: Targets
    upstream: Tensor


def inputs_of(case: Case, device: str = "cpu") -> Inputs:
    """Seeded; the states are every other column of a tensor, so that they are not contiguous."""
    generator = torch.Generator().manual_seed(case.ids)

    def random(*size: int) -> Tensor:
        return torch.randn(*size, generator=generator)

    x = random(1, case.rows, case.width, 2).to(case.dtype).to(device)[..., 0]
    head = (2 * case.width**-0.5 * random(case.ids, case.width)).to(case.dtype).to(device)
    target = torch.randint(case.ids, (1, case.rows), generator=generator)
    target[:, [row for row in case.ignored if row < case.rows]] = IGNORE
    weight = random(1, case.rows).exp().to(device) if case.weighted else None
    numbers = map(coefficient, (case.label_smoothing, case.z_loss))
    return Inputs(x, head, Targets(target.to(device), weight, *numbers), torch.tensor(0.7, device=device))


def leaves_of(inputs: Inputs) -> list[Tensor]:
    """The inputs that have gradients."""
    return [inputs.x, inputs.head]


def call(case: Case, inputs: Inputs, leaves: list[Tensor], impl: Any) -> list[Tensor]:
    """The outputs of the case that have gradients."""
    return [linear_cross_entropy(*leaves, inputs.targets, impl=impl).loss]


def results(case: Case, inputs: Inputs, impl: Any, *, exact: bool = False) -> dict[str, Tensor]:
    """The outputs and every gradient, by name; ``exact`` in float64."""
    leaves = [(x.double() if exact else x).detach().requires_grad_() for x in leaves_of(inputs)]
    found = linear_cross_entropy(*leaves, inputs.targets, impl=impl)
    grads = torch.autograd.grad(found.loss, leaves, inputs.upstream.to(found.loss.dtype))
    return {"nats": found.nats, "loss": found.loss.detach(), "x": grads[0], "head": grads[1]}


OPERATOR_CASE = "all"


def operators(case: Case, inputs: Inputs, leaves: list[Tensor]) -> list[tuple[Any, tuple[Any, ...]]]:
    """The registered operators and what to check each with."""
    from reptrain_kernels.ops.linear_cross_entropy.triton import linear_cross_entropy_forward, scale

    target, *how = inputs.targets[:-1]
    return [
        (linear_cross_entropy_forward, (*leaves, target, *how, True)),
        (linear_cross_entropy_forward, (inputs.x, inputs.head, target, None, None, None, False)),
        (scale, (inputs.head, inputs.upstream)),
    ]


def correct() -> dict[str, bool]:
    """Whether targets are found correct as torch finds them, the first of equal ones; without gradients too,
    where nats must have the same bits."""
    head = torch.eye(6)[:, :4].contiguous()
    x = torch.tensor(
        [[0.0, 1, 0, 0], [0, 1, 0, 1], [0, 1, 0, 1], [0, 0, 0, 0], [0, 0, 0, 0], [-1, -1, -1, -1]]
    )
    targets = Targets(torch.tensor([1, 1, 3, 0, 5, 4]))
    found, expected = (linear_cross_entropy(x, head, targets, impl=impl) for impl in ("triton", "torch"))
    x.requires_grad_()
    again = linear_cross_entropy(x, head, targets, impl="triton")
    return {
        "as_torch": torch.equal(found.is_correct, expected.is_correct),
        "as_meant": found.is_correct.tolist() == [True, True, False, True, False, True],
        "with_gradient": torch.equal(again.is_correct, found.is_correct),
        "nats": torch.equal(again.nats, found.nats),
    }


def not_finite() -> dict[str, bool]:
    """Whether what is no number stays one: a NaN among the logits, and a target that is no id."""
    head, x = torch.ones(5, 3), torch.ones(2, 3)
    x[0, 0] = torch.nan
    of_nan = linear_cross_entropy(x, head, Targets(torch.tensor([1, 1])), impl="triton")
    beyond = linear_cross_entropy(x[1:], head, Targets(torch.tensor([5])), impl="triton")
    return {
        "nan": of_nan.nats.isnan().tolist() == [True, False] and not of_nan.is_correct[0].item(),
        "beyond": beyond.nats.isnan().item(),
    }


def backward() -> dict[str, bool]:
    """Whether a factor of 1 leaves gradients as they are, and a retained graph is refused a second time."""
    case = CASES["all"]
    inputs = inputs_of(case)
    leaves = [x.detach().requires_grad_() for x in leaves_of(inputs)]

    def grads(factor: float, **how: Any) -> tuple[Tensor, ...]:
        loss = linear_cross_entropy(*leaves, inputs.targets, impl="triton").loss
        return loss, torch.autograd.grad(loss, leaves, torch.tensor(factor), **how)

    _, by_one = grads(1.0)
    loss, by_two = grads(2.0, retain_graph=True)
    try:
        torch.autograd.grad(loss, leaves)
        refused = False
    except RuntimeError as error:
        refused = "modified by an inplace operation" in str(error)
    return {
        "factor": all(torch.equal(2 * a, b) for a, b in zip(by_one, by_two, strict=True)),
        "twice": refused,
    }
