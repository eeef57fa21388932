"""Runs Triton kernels without a GPU, in a process of their own: Triton decides at import if it interprets.

A script of checks begins with `prepare` and prints what it found as JSON; a test starts it with `results_of`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


def results_of(script: str, *arguments: str) -> Any:
    """What a script beside this file prints in its last line, interpreted."""
    # In pytest only: the scripts run without it, too.
    from forked import interpreter_server, run_forked

    command = [Path(__file__).with_name(script), *arguments]
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    result = run_forked(command, server=interpreter_server(), environment=environment)
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout.splitlines()[-1])


def prepare() -> None:
    """Correct the interpreter's bf16 and scalars, and poison new memory."""
    mend_bf16()
    mend_scalars()
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


def mend_scalars() -> None:
    """Triton 3.6's interpreter keeps numbers as arrays of one element, which numpy 2.4 refuses as int."""
    from triton.runtime import interpreter

    patch = interpreter._patch_lang_tensor

    def patched(tensor: Any, scope: Any) -> None:
        patch(tensor, scope)
        scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.item()))

    interpreter._patch_lang_tensor = patched


def poison_new_memory() -> None:
    """Fill what torch calls empty with NaN, or with a large number: who reads before writing is found out."""
    import torch

    def poisoned(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def made(*arguments: Any, **keywords: Any) -> torch.Tensor:
            x = make(*arguments, **keywords)
            if x.device.type == "meta":
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


def use_tensor_cores() -> None:
    """Multiply fp32 as `tf32x3` does on tensor cores, not in full fp32 (docs/decisions/tf32x3.md).

    An operand is split into its nearest TF32 number and the rest, of which the units read 11 bits and cut off
    what follows. The product of two rests is left out. Eight products at a time are added to the sum, which
    is cut off to fp32.
    """
    import numpy as np
    import triton.language as tl
    from triton.runtime import interpreter

    dot = interpreter.InterpreterBuilder.create_dot

    def cut(x: Any, half: int = 0) -> Any:
        bits = np.ascontiguousarray(x, dtype=np.float32).view(np.uint32) + np.uint32(half)
        return (bits & np.uint32(0xFFFFE000)).view(np.float32)

    def toward_zero(x: Any) -> Any:
        nearest = x.astype(np.float32)
        return np.where(np.abs(nearest) > np.abs(x), np.nextafter(nearest, np.float32(0)), nearest)

    def split(x: Any) -> tuple[Any, Any]:
        large = cut(x, 0x1000)
        return large.astype(np.float64), cut(x - large).astype(np.float64)

    def create_dot(self: Any, a: Any, b: Any, d: Any, *rest: Any) -> Any:
        if a.dtype.scalar != tl.float32:
            return dot(self, a, b, d, *rest)
        (a_large, a_small), (b_large, b_small) = split(a.data), split(b.data)
        total = np.array(d.data, dtype=np.float32)
        for left, right in ((a_small, b_large), (a_large, b_small), (a_large, b_large)):
            for k in range(0, left.shape[-1], 8):
                total = toward_zero(total + left[..., k : k + 8] @ right[..., k : k + 8, :])
        return interpreter.TensorHandle(total, d.dtype.scalar)

    interpreter.InterpreterBuilder.create_dot = create_dot
