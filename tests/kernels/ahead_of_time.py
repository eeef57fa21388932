"""Compilation of Triton kernels for GPUs that this machine does not have."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

_CUOBJDUMP = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"


def local_bytes(
    kernel: Any,
    signature: Mapping[str, str],
    constants: Mapping[str, Any],
    *,
    capability: int,
    folder: Path,
    num_warps: int = 4,
) -> int:
    """Compile ``kernel`` and tell the bytes of local memory that a thread spills to.

    Args:
        kernel: A function under ``triton.jit``.
        signature: Triton type of each argument that is no constant.
        constants: The constexpr arguments.
        capability: 80 for A100, 90 for H100.
        folder: Where the machine code is put for inspection.
        num_warps: As in the launch.
    """
    types = {name: "constexpr" if name in constants else signature[name] for name in kernel.arg_names}
    source = ASTSource(fn=kernel, signature=types, constexprs=dict(constants))
    compiled = triton.compile(
        source, target=GPUTarget("cuda", capability, 32), options={"num_warps": num_warps}
    )
    cubin = folder / "kernel.cubin"
    cubin.write_bytes(compiled.asm["cubin"])
    usage = subprocess.run(
        [_CUOBJDUMP, "-res-usage", cubin], capture_output=True, text=True, check=True
    ).stdout
    found = re.search(rf"Function {kernel.fn.__name__}.*?STACK:(\d+).*?LOCAL:(\d+)", usage, re.DOTALL)
    assert found, usage
    return int(found[1]) + int(found[2])
