"""Runs Triton kernels without a GPU, in a process of their own: Triton decides at import if it interprets.

A script of checks begins with `prepare` and prints what it found as JSON; a test starts it with `results_of`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


def results_of(script: str, *arguments: str) -> Any:
    """What a script beside this file prints in its last line, interpreted."""
    command = [sys.executable, Path(__file__).with_name(script), *arguments]
    environment = os.environ | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def prepare() -> None:
    """Mend the interpreter's bf16, and poison new memory."""
    mend_bf16()
    poison_new_memory()


def mend_bf16() -> None:
    """Triton 3.7's interpreter keeps bf16 as 16-bit integers: it multiplies those, and its casts cut off.

    Here casts round to nearest even, and products are of the numbers meant.
    """
    import numpy as np
    import triton.language as tl
    from triton.runtime import interpreter

    convert, dot = interpreter._convert_float, interpreter.InterpreterBuilder.create_dot

    def widened(bits: Any) -> Any:
        return (bits.astype(np.uint32) << 16).view(np.float32)

    def rounded(x: Any) -> Any:
        bits = np.ascontiguousarray(x).view(np.uint32)
        nearest = ((bits.astype(np.uint64) + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
        return np.where(np.isnan(x), np.uint16(0x7FC0), nearest)

    def convert_float(x: Any, source: Any, target: Any, rounding: Any) -> Any:
        if (source, target) == (tl.bfloat16, tl.float32):
            return widened(x).view(np.uint32)
        if (source, target) == (tl.float32, tl.bfloat16):
            return rounded(x)
        return convert(x, source, target, rounding)

    def create_dot(self: Any, a: Any, b: Any, *rest: Any) -> Any:
        a, b = (
            interpreter.TensorHandle(widened(x.data), tl.float32) if x.dtype.scalar == tl.bfloat16 else x
            for x in (a, b)
        )
        return dot(self, a, b, *rest)

    interpreter._convert_float = convert_float
    interpreter.InterpreterBuilder.create_dot = create_dot


def poison_new_memory() -> None:
    """Fill what torch calls empty with NaN, or with a large number: who reads before writing is found out."""
    import torch

    def poisoned(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def made(*arguments: Any, **keywords: Any) -> torch.Tensor:
            x = make(*arguments, **keywords)
            if x.device.type != "cpu":
                return x
            return x.fill_(torch.nan if x.is_floating_point() else 123)

        return made

    torch.empty = poisoned(torch.empty)
    torch.empty_like = poisoned(torch.empty_like)
    torch.Tensor.new_empty = poisoned(torch.Tensor.new_empty)


def watch_memory() -> dict[str, list[int]]:
    """Count of each kernel what a GPU may punish: places that a launch writes more than once, and those that
    it reads or writes outside of its tensors, which must be contiguous.
    """
    import numpy as np
    import torch
    from triton.runtime import interpreter

    strays: dict[str, list[int]] = {}
    builder, launch = interpreter.InterpreterBuilder, interpreter.InterpretedFunction.run
    load, store = builder.create_masked_load, builder.create_masked_store
    read: list[Any] = []
    written: list[Any] = []

    def note(noted: list[Any], places: Any, mask: Any) -> None:
        noted.append(np.broadcast_to(places.data, mask.data.shape)[mask.data].ravel())

    def noted_load(self: Any, places: Any, mask: Any, *how: Any) -> Any:
        note(read, places, mask)
        return load(self, places, mask, *how)

    def noted_store(self: Any, places: Any, value: Any, mask: Any, *how: Any) -> Any:
        note(written, places, mask)
        return store(self, places, value, mask, *how)

    def watched(self: Any, *arguments: Any, **keywords: Any) -> None:
        read.clear(), written.clear()
        launch(self, *arguments, **keywords)
        places = np.concatenate(written)
        found = strays.setdefault(self.fn.__name__, [0, 0])
        found[0] += len(places) - len(np.unique(places))
        outside = np.concatenate([places, *read])
        for x in arguments:
            if isinstance(x, torch.Tensor):
                begin = x.data_ptr()
                outside = outside[(outside < begin) | (outside >= begin + x.numel() * x.element_size())]
        found[1] += len(outside)

    builder.create_masked_load, builder.create_masked_store = noted_load, noted_store
    interpreter.InterpretedFunction.run = watched
    return strays
