"""Compiles the kernels that an operation would launch, without a GPU, and reads registers and spills.

An operation's own launching code runs on tensors of the device "meta" while each launch is written down and
not made. So what is compiled is what would run: same tiles, same hints of alignment, same constants.
"""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend
from triton.runtime.jit import JITFunction, create_function_from_signature

from reptrain_kernels.implementation import assume

_CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


class Chip(NamedTuple):
    """Limits of a multiprocessor and of a block (CUDA programming guide, table of compute capabilities)."""

    name: str
    shared_bytes_per_block: int
    shared_bytes: int
    registers: int = 65536
    warps: int = 64
    blocks: int = 32


CHIPS = {
    80: Chip("A100", 163 * 1024, 164 * 1024),
    90: Chip("H100", 227 * 1024, 228 * 1024),
    100: Chip("B200", 227 * 1024, 228 * 1024),
}


class Launch(NamedTuple):
    """A kernel and the arguments of a launch."""

    kernel: JITFunction
    grid: tuple[int, ...]
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]


class Resources(NamedTuple):
    """What one compiled kernel takes of a multiprocessor."""

    registers: int
    """Of a thread."""
    spill_bytes: int
    """Local memory of a thread."""
    shared_bytes: int
    """Of a block."""
    blocks: int
    """At once on a multiprocessor."""
    warps: int
    """At once on a multiprocessor."""
    matrix: str
    """The matrix instruction: tcgen05, wgmma, mma, or none."""


def launches(call: Callable[[], Any], *, capability: int) -> list[Launch]:
    """What ``call`` would launch on a GPU of the capability."""
    found: list[Launch] = []

    def note(kernel: JITFunction, *arguments: Any, grid: Any, warmup: bool, **keywords: Any) -> None:
        found.append(Launch(kernel, grid, arguments, keywords))

    with _replaced(JITFunction, "run", note), assume(impl="triton", capability=capability):
        call()
    return found


@contextmanager
def _replaced(holder: Any, name: str, value: Any) -> Iterator[None]:
    kept = getattr(holder, name)
    setattr(holder, name, value)
    try:
        yield
    finally:
        setattr(holder, name, kept)


def compile_launch(
    launch: Launch, *, capability: int, known: dict[str, Resources] | None = None
) -> Resources:
    """Compile the kernel of a launch, and read its registers, spills and shared memory.

    Args:
        launch: Of `launches`.
        capability: For which chip.
        known: What is the same to the compiler is compiled once and kept here.
    """
    target = GPUTarget("cuda", capability, 32)
    backend = make_backend(target)
    kernel = launch.kernel
    binder = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialization, options = binder(*launch.arguments, **launch.keywords)
    options, signature, constants, hints = kernel._pack_args(
        backend, launch.keywords, bound, specialization, options
    )
    source = ASTSource(kernel, signature, constants, hints)
    key = f"{source.hash()} {options.hash()} {capability}"
    if known is not None and key in known:
        return known[key]
    compiled = triton.compile(source, target=target, options=options.__dict__)
    num_warps = compiled.metadata.num_warps
    registers, spill_bytes = _usage(compiled.asm["cubin"], kernel.fn.__name__)
    shared_bytes = compiled.metadata.shared
    blocks = resident_blocks(CHIPS[capability], registers, shared_bytes, num_warps)
    matrix = matrix_instruction(compiled.asm["ptx"])
    resources = Resources(registers, spill_bytes, shared_bytes, blocks, blocks * num_warps, matrix)
    if known is not None:
        known[key] = resources
    return resources


def _usage(cubin: bytes, name: str) -> tuple[int, int]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        command = [_CUOBJDUMP, "-res-usage", path]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    found = re.search(rf"Function {name}.*?REG:(\d+).*?STACK:(\d+).*?LOCAL:(\d+)", usage, re.DOTALL)
    assert found, usage
    return int(found[1]), int(found[2]) + int(found[3])


def resident_blocks(chip: Chip, registers: int, shared_bytes: int, num_warps: int) -> int:
    """Blocks that fit on a multiprocessor at once, 0 where not one does.

    Registers go to a warp in units of 256; each block costs 1 KiB of shared memory besides its own.
    """
    if shared_bytes > chip.shared_bytes_per_block:
        return 0
    registers_of_warp = -(-registers * 32 // 256) * 256
    return min(
        chip.blocks,
        chip.warps // num_warps,
        chip.registers // registers_of_warp // num_warps,
        chip.shared_bytes // (shared_bytes + 1024),
    )


def matrix_instruction(ptx: str) -> str:
    """The matrix instruction in the code."""
    for name, text in (("tcgen05", "tcgen05.mma"), ("wgmma", "wgmma.mma_async"), ("mma", "mma.sync")):
        if text in ptx:
            return name
    return "none"
