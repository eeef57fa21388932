"""What the bench knows of an operation, and the work that a kernel does.

Sources:
    NVIDIA A100 and H100 white papers, and the CUDA programming guide's table of arithmetic throughput: units
    of a multiprocessor, boost clocks, memory rates.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor


class Rates(NamedTuple):
    """Of a chip, each per second."""

    name: str
    matrix_flops: float
    floats: float
    integers: float
    exps: float
    shared_bytes: float
    memory_bytes: float


def _rates(name: str, num_sms: int, clock: float, matrix: int, floats: int, memory_bytes: float) -> Rates:
    """The rates of a GPU, from the work of a multiprocessor per clock.

    Both chips have the same rates of integers, exp2 and shared memory per clock.
    """
    clocks = num_sms * clock
    return Rates(name, clocks * matrix, clocks * floats, clocks * 64, clocks * 16, clocks * 128, memory_bytes)


RATES = {
    80: _rates("A100-80GB", 108, 1.41e9, 2048, 64, 2.039e12),
    90: _rates("H100-SXM", 132, 1.83e9, 4096, 128, 3.35e12),
}

DROPOUT_INTEGERS = 12
"""Integer instructions for the word of one unit (see `counter`): an xor, a product, three shifts, three xors
and two products; then compare and select."""


class Work(NamedTuple):
    """Of one kernel, or of one pass; the fields are those of `Rates`."""

    what: str
    matrix_flops: float = 0
    floats: float = 0
    integers: float = 0
    exps: float = 0
    shared_bytes: float = 0
    memory_bytes: float = 0

    def seconds(self, rates: Rates) -> tuple[float, str]:
        """Of the busiest unit, and which that is."""
        return max((getattr(self, unit) / getattr(rates, unit), unit) for unit in Rates._fields[1:])


class Shape(Protocol):
    """Sizes at which an operation is compiled, modeled and timed; each operation has its own fields."""

    @property
    def name(self) -> str:
        """As tables show it."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the tensors."""


class Ways(NamedTuple):
    """An operation at one shape, ready to be timed."""

    leaves: Sequence[Tensor]
    """Inputs that want a gradient."""
    calls: dict[str, Callable[[], Tensor | tuple[Tensor, ...]]]
    """Each computes the output or outputs from the leaves: "triton" ours, "torch" its definition, others by
    name (see `compiled_way` and `installed`). A way that is not installed is left out."""
    yardsticks: frozenset[str] = frozenset()
    """Names of calls that compute less, or something else: a lower bound of the time."""


class Operation(NamedTuple):
    """What joins the tables of `bench.compiled` and `bench.traffic` and the timing of `bench.timed`."""

    name: str
    shapes: Sequence[Shape]
    launch: Callable[[Any], Callable[[], object]]
    """Of a shape: a call that would launch its forward and backward kernels, on tensors of device "meta"."""
    needed: Callable[[Any], list[Work]]
    """The work that no implementation avoids, of the forward and of the backward pass."""
    moved: Callable[[Any, int], list[list[Work]]]
    """Of a shape and a capability: the kernels of each pass, counted from their loads, stores and
    instructions at the tiles that would run."""
    ways: Callable[[Any, str], Ways]
    """The calls to time for a shape on a device. Tensors are random."""
    shown: Iterable[str]
    """Names of the shapes in the tables of docs/kernel-tables.md."""
    matrix_kernels: frozenset[str] = frozenset()
    """Names of the kernels that multiply matrices, which must use the chip's matrix units."""
    on_blackwell: frozenset[str] = frozenset()
    """Names of the shapes that are compiled for B200 too: ptxas takes it ten times as long."""


def element_bytes(dtype: torch.dtype) -> int:
    """Of one number."""
    return torch.empty(0, dtype=dtype).element_size()


def compiled_way(call: Callable[[], Any]) -> Callable[[], Any]:
    """What torch.compile makes of a call, for its shapes alone."""
    return torch.compile(call, dynamic=False)


def own_ways(call: Callable[[Any], Any]) -> dict[str, Callable[[], Any]]:
    """Of a call that takes its ``impl``: ours, and its definition, eager and compiled."""
    return {
        "triton": lambda: call("triton"),
        "torch": lambda: call("torch"),
        "torch.compile": compiled_way(lambda: call("torch")),
    }


def installed(module: str) -> Any:
    """A module of another package, or None where that is not installed."""
    try:
        return importlib.import_module(module)
    except ImportError:
        return None
