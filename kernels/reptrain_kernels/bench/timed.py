"""Times operations on a GPU against other ways of computing them, each first held against the definition.

`reptrain bench kernels` is the command; where torch and triton are all there is,
`PYTHONPATH=kernels python -m reptrain_kernels.bench.timed`. Rows go to kernels/bench/results/gpu.csv, with
device, versions and commit. Rates are of the work that no implementation avoids (see `bench.traffic`), and
shares are of a copy and of a matrix product measured first.

Source:
    The L2 cache is emptied before each call, by triton.testing.do_bench.
"""

from __future__ import annotations

import csv
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
import triton
from torch import Tensor

from reptrain_kernels.bench import goals
from reptrain_kernels.bench.operation import Operation, Ways, Work
from reptrain_kernels.bench.rows import Row

TABLE = Path(__file__).parents[2] / "bench" / "results" / "gpu.csv"
GATE = {torch.float32: 1e-4, torch.float16: 2e-2, torch.bfloat16: 5e-2}
"""How far a way may be from the definition in its own dtype before it is timed: a way that computes something
else is found. How exact ours is, the tests tell."""


class Timing(NamedTuple):
    """Of repeated calls, in microseconds."""

    median_us: float
    p20_us: float
    p80_us: float


class Ceilings(NamedTuple):
    """What the device was seen to do."""

    bytes_per_second: float
    flops_per_second: float


Timer = Callable[[Callable[[], object], list[Tensor]], Timing]


def on_cuda(call: Callable[[], object], leaves: list[Tensor]) -> Timing:
    """With events, after a warm-up, the gradients of ``leaves`` cleared and the cache emptied in between."""
    quantiles = triton.testing.do_bench(call, quantiles=(0.5, 0.2, 0.8), grad_to_none=leaves)
    return Timing(*(1e3 * milliseconds for milliseconds in quantiles))


def ceilings(timer: Timer, device: str, *, copied: int = 2**30, width: int = 8192) -> Ceilings:
    """A copy of ``copied`` bytes, read and written, and a product of two bf16 matrices of ``width``."""
    source = torch.randint(0, 255, (copied,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    a, b = (torch.randn(width, width, device=device, dtype=torch.bfloat16) for _ in range(2))
    copy_us = timer(lambda: target.copy_(source), []).median_us
    product_us = timer(lambda: a @ b, []).median_us
    return Ceilings(2e6 * copied / copy_us, 2e6 * width**3 / product_us)


def differences(ways: Ways, way: str, expected: list[Tensor]) -> float:
    """The largest relative error of output and gradients against ``expected``; NaN for NaN."""
    found = results(ways, way)
    return max(
        ((x.float() - y.float()).norm() / y.float().norm().clamp(min=1e-9)).item()
        for x, y in zip(found, expected, strict=True)
    )


def results(ways: Ways, way: str) -> list[Tensor]:
    """The outputs and the gradients of fixed upstream gradients."""
    outputs = outputs_of(ways.calls[way]())
    grads = torch.autograd.grad(outputs, list(ways.leaves), upstream(outputs), materialize_grads=True)
    return [*(y.detach() for y in outputs), *grads]


def outputs_of(found: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """What a call gives, always as several."""
    return (found,) if isinstance(found, Tensor) else tuple(found)


def upstream(outputs: Iterable[Tensor]) -> list[Tensor]:
    """A seeded gradient of each output."""
    grads = []
    for number, y in enumerate(outputs):
        generator = torch.Generator(y.device).manual_seed(1 + number)
        grads.append(torch.randn(y.shape, generator=generator, device=y.device).to(y.dtype))
    return grads


def peak_mib(call: Callable[[], object], device: str) -> str:
    """Of one call; nothing where the device does not tell."""
    if not device.startswith("cuda"):
        return ""
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    return f"{(torch.cuda.max_memory_allocated() - before) / 2**20:.0f}"


def rows_of(operation: Operation, shape: Any, device: str, timer: Timer, top: Ceilings) -> Iterator[Row]:
    """Forward, and forward with backward, of every implementation; a failure is a row with its reason."""
    try:
        ways = operation.ways(shape, device)
        expected = results(ways, "torch")
    except Exception as error:
        yield _row((operation.name, shape.name, "torch"), "both", said=_said(error), device=device)
        return
    forward, backward = operation.needed(shape)
    both = Work("both", *(a + b for a, b in zip(forward[1:], backward[1:], strict=True)))
    for way, call in ways.calls.items():
        about = (operation.name, shape.name, way)
        try:
            error = differences(ways, way, expected) if way not in ways.yardsticks else 0.0
            if not error <= GATE[shape.dtype]:
                yield _row(about, "both", said=f"differs from the definition by {error:.1e}", device=device)
                continue
            leaves = list(ways.leaves)
            grads = upstream(expected[: -len(leaves)])

            def step(call: Callable[[], Any] = call, grads: list[Tensor] = grads) -> None:
                torch.autograd.backward(outputs_of(call()), grads)

            with torch.no_grad():
                yield _row(
                    about, "forward", timer(call, []), forward, top, peak_mib(call, device), device=device
                )
            yield _row(about, "both", timer(step, leaves), both, top, peak_mib(step, device), device=device)
        # Whatever a compiler or another package raises, the others are still to be timed.
        except Exception as error:
            yield _row(about, "both", said=_said(error), device=device)


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"[:200]


def _row(
    about: tuple[str, str, str],
    what: str,
    timing: Timing | None = None,
    work: Work | None = None,
    top: Ceilings | None = None,
    peak: str = "",
    *,
    said: str = "",
    device: str,
) -> Row:
    figures = ("",) * 8
    if timing is not None and work is not None and top is not None:
        per_second = 1e6 / timing.median_us
        bytes_rate, flops = work.memory_bytes * per_second, work.matrix_flops * per_second
        figures = (
            *(f"{x:.1f}" for x in timing),
            f"{bytes_rate / 1e9:.0f}",
            f"{flops / 1e12:.1f}",
            f"{bytes_rate / top.bytes_per_second:.3f}",
            f"{flops / top.flops_per_second:.3f}",
            peak,
        )
    return Row(*_environment(device), *about, what, *figures, said)


@cache
def _environment(device: str) -> tuple[str, str, str, str, str]:
    name = torch.cuda.get_device_name(device) if device.startswith("cuda") else device
    return f"{datetime.now(UTC):%Y-%m-%d}", name, torch.__version__, triton.__version__, _commit()


def _commit() -> str:
    """The short commit of this tree; "unknown" outside git, or where git is not installed."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    try:
        found = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True)
    except OSError:
        return "unknown"
    return found.stdout.strip() or "unknown"


def timed(
    operations: Iterable[Operation],
    device: str,
    *,
    timer: Timer = on_cuda,
    minutes: float = 7.0,
    all_shapes: bool = False,
    top: Ceilings | None = None,
) -> Iterator[Row]:
    """Yield rows one by one. No shape is begun after ``minutes``; a row names each shape that is left out."""
    end = time.monotonic() + 60 * minutes
    top = top or ceilings(timer, device)
    for operation in operations:
        for shape in operation.shapes:
            if not all_shapes and shape.name not in operation.shown:
                continue
            if time.monotonic() > end:
                yield _row((operation.name, shape.name, ""), "", said="not begun: out of time", device=device)
                continue
            # Else each call would compile for sizes of its own after eight of them.
            torch.compiler.reset()
            yield from rows_of(operation, shape, device, timer, top)


def append(rows: Iterable[Row], path: Path = TABLE) -> list[Row]:
    """Append each row to the table at once, so that a killed benchmark keeps its rows; returns them."""
    written = []
    path.parent.mkdir(parents=True, exist_ok=True)
    is_new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        if is_new:
            writer.writerow(Row._fields)
        for row in rows:
            writer.writerow(row)
            file.flush()
            sys.stdout.write(text(row))
            sys.stdout.flush()
            written.append(row)
    return written


def text(row: Row) -> str:
    """A row as text."""
    line = "{:22} {:28} {:16} {:8} {:>10} us {:>6} GB/s {:>7} TFLOP/s {:>6} {:>6} {}\n"
    figures = (row.median_us, row.gigabytes_per_second, row.teraflops, row.share_of_copy, row.share_of_matmul)
    return line.format(row.operation, row.shape, row.way, row.what, *figures, row.said)


def bench(
    operations: Iterable[Operation], *, minutes: float = 7.0, all_shapes: bool = False, path: Path = TABLE
) -> bool:
    """Time on this machine's GPU, tell which goals are met; False where a way of ours failed or differs."""
    found = append(timed(operations, "cuda", minutes=minutes, all_shapes=all_shapes), path)
    sys.stdout.write(goals.text(goals.verdicts(found)))
    return not any(row.way == "triton" and row.said for row in found)


if __name__ == "__main__":
    from reptrain_kernels.bench.operations import OPERATIONS

    if not torch.cuda.is_available():
        sys.exit("error: torch sees no CUDA device")
    sys.exit(not bench(OPERATIONS.values()))
