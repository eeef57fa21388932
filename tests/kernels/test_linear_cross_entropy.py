"""Linear + cross-entropy: the reference in plain torch (`test_linewise` tests the kernels)."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from interpreted import results_of

from reptrain_kernels.ops.linear_cross_entropy import (
    IGNORE,
    Targets,
    coefficient,
    cross_entropy,
    linear_cross_entropy,
)


@pytest.mark.slow
def test_loss_of_128_thousand_ids_needs_a_quarter_of_the_memory_of_all_logits() -> None:
    ours, plain = (results_of("loss_memory.py", impl) for impl in ("triton", "torch"))
    assert 0 < ours <= 0.25 * plain


def test_loss_follows_its_written_formula() -> None:
    z = [[0.5, -1.0, 2.0], [0.0, 3.0, -2.0]]
    target, weight, e, c = [2, 0], [1.5, 0.25], 0.2, 0.01
    nats, loss = [], 0.0
    for row, t, w in zip(z, target, weight, strict=True):
        lse = math.log(sum(map(math.exp, row)))
        nats.append(lse - row[t])
        loss += w * (nats[-1] + e * (row[t] - sum(row) / 3) + c * lse**2)
    targets = Targets(torch.tensor(target), torch.tensor(weight), coefficient(e), coefficient(c))
    found = linear_cross_entropy(torch.tensor(z, dtype=torch.float64), torch.eye(3).double(), targets)
    torch.testing.assert_close(found.nats, torch.tensor(nats, dtype=torch.float64))
    assert found.loss.item() == pytest.approx(loss)
    assert found.is_correct.tolist() == [True, False]


def test_loss_of_a_smoothed_target_is_the_cross_entropy_with_it() -> None:
    logits = torch.randn(2, 4, 9, dtype=torch.float64)
    target = torch.randint(9, (2, 4))
    target[1, 2] = IGNORE
    expected = torch.nn.functional.cross_entropy(
        logits.flatten(0, 1), target.flatten(), label_smoothing=0.2, reduction="sum", ignore_index=IGNORE
    )
    found = cross_entropy(logits, Targets(target, label_smoothing=coefficient(0.2)))
    torch.testing.assert_close(found.loss, expected)


def test_loss_passes_gradcheck() -> None:
    leaves = [torch.randn(*size, dtype=torch.float64, requires_grad=True) for size in ((5, 3), (7, 3))]
    target = torch.tensor([1, IGNORE, 6, 0, 2])
    targets = Targets(target, torch.rand(5, dtype=torch.float64), coefficient(0.1), coefficient(0.01))
    assert torch.autograd.gradcheck(lambda *x: linear_cross_entropy(*x, targets).loss, leaves)


def test_ignored_targets_lose_nothing() -> None:
    x, head = torch.randn(4, 3, requires_grad=True), torch.randn(5, 3)
    found = linear_cross_entropy(
        x, head, Targets(torch.tensor([1, IGNORE, 2, IGNORE]), z_loss=coefficient(0.1))
    )
    found.loss.backward()
    assert found.nats[1::2].tolist() == [0, 0]
    assert not found.is_correct[1::2].any()
    assert x.grad is not None
    assert torch.equal(x.grad[1::2], torch.zeros(2, 3))
    assert linear_cross_entropy(x, head, Targets(torch.full((4,), IGNORE))).loss.item() == 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"head_VD": torch.ones(5, 4)}, r"head_VD: must be torch.float32, \[ids, 3\], but got .*\(5, 4\)"),
        ({"head_VD": torch.ones(5, 3).half()}, "but got torch.float16"),
        ({"target": torch.ones(3).long()}, r"target: must be int64 of shape \(2,\)"),
        ({"target": torch.ones(2).int()}, "but got torch.int32"),
        ({"weight": torch.ones(3)}, r"weight: must have shape \(2,\), but got \(3,\)"),
        ({"z_loss": torch.ones(2)}, r"z_loss: must be a number on the host, but got shape \(2,\)"),
        ({"label_smoothing": torch.ones((), device="meta")}, "label_smoothing: .* on meta"),
    ],
)
def test_loss_refuses_arguments_that_do_not_fit(change: dict[str, Any], message: str) -> None:
    head = change.pop("head_VD", torch.ones(5, 3))
    targets = Targets(torch.ones(2).long())._replace(**change)
    with pytest.raises(ValueError, match=message):
        linear_cross_entropy(torch.ones(2, 3), head, targets)
