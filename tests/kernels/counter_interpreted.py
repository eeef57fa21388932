"""Holds the Triton implementations of dropout and jitter against the torch one, under Triton's interpreter.

Prints "equal" as JSON.
"""

from __future__ import annotations

import torch
from torch._dynamo.testing import CompileCounterWithBackend

from reptrain_kernels import counter, counter_triton, rates

# Odd sizes, sizes of one, sizes beyond one tile, and the four axes of attention weights.
SHAPES = [(1, 1, 1), (3, 5, 7), (2, 17, 129), (1, 33, 260), (2, 3, 9, 9)]


def check(shape: tuple[int, ...], dtype: torch.dtype, rate: float) -> None:
    """Outputs and gradients are equal bit for bit."""
    generator = torch.Generator().manual_seed(sum(shape))
    x = torch.randn(shape, generator=generator, dtype=dtype)
    grad = torch.randn(shape, generator=generator, dtype=dtype)
    key = torch.randint(-(2**63), 2**63 - 1, shape[:-2], generator=generator)
    results = []
    for impl in ("torch", "triton"):
        leaf = x.clone().requires_grad_()
        y = counter.dropout(leaf, key, rate, impl=impl)
        (y * 1).backward(grad)
        results.append((y.detach(), leaf.grad))
    (y_torch, grad_torch), (y_triton, grad_triton) = results
    assert torch.equal(y_torch, y_triton), (shape, dtype, rate)
    assert torch.equal(grad_torch, grad_triton), (shape, dtype, rate)


def check_strided() -> None:
    """A transposed input has the mask of its logical layout."""
    x = torch.randn(2, 11, 6).transpose(1, 2)
    key = counter.row_keys(1, 2, torch.arange(2))
    assert torch.equal(
        counter.dropout(x, key, 0.4, impl="triton"), counter.dropout(x, key, 0.4, impl="torch")
    )


def check_jitter() -> None:
    """Jitter and its gradient are those of torch, up to one rounding; its registrations agree."""
    for shape in SHAPES:
        generator = torch.Generator().manual_seed(sum(shape))
        x = torch.randn(shape, generator=generator, requires_grad=True)
        key = torch.randint(-(2**63), 2**63 - 1, shape[:-2], generator=generator)
        results = []
        for impl in ("torch", "triton"):
            y = counter.jitter(x, key, 0.25, impl=impl)
            results.append((y, *torch.autograd.grad(y.square().sum(), x)))
        torch.testing.assert_close(*results, rtol=2e-7, atol=0)
    torch.library.opcheck(counter_triton.counter_jitter.overload, (x, key, 0.25))


def check_operator() -> None:
    """torch.compile takes the operator whole, and its registrations agree with each other."""
    x, key = torch.randn(2, 5, 9, requires_grad=True), counter.row_keys(7, 3, torch.arange(2))
    torch.library.opcheck(counter_triton.counter_dropout.overload, (x, key, rates.packed(0.3)))

    def model(x: torch.Tensor, rate_2: torch.Tensor) -> torch.Tensor:
        return counter.dropout(x * 2, key, rate_2, impl="triton") + 1

    compilations = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, backend=compilations)
    for rate_2 in map(rates.packed, (0.3, 0.6, 0.9)):
        y, expected = compiled(x, rate_2), model(x, rate_2)
        assert torch.equal(y, expected)
        assert torch.equal(torch.autograd.grad(y.sum(), x)[0], torch.autograd.grad(expected.sum(), x)[0])
    assert compilations.frame_count == 1


if __name__ == "__main__":
    for shape in SHAPES:
        for dtype, rate in ((torch.float32, 0.1), (torch.float32, 0.75), (torch.float16, 0.5)):
            check(shape, dtype, rate)
    check((2, 17, 129), torch.float32, 0.0)
    check_strided()
    check_operator()
    check_jitter()
    print('"equal"')
