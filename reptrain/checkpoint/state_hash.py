"""Hashes of the weights: of the whole state at a checkpoint, and of a rotating slice after every step.

docs/format.md defines them. Both are sums over elements that are numbered within whole parameters, so they do
not depend on the number of ranks, the ZeRO stage or the spread of the experts.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reptrain.checkpoint import state
from reptrain.checkpoint.state import WEIGHT, Piece
from reptrain.distributed.engine import Engine
from reptrain.random import GAMMA, mix
from reptrain_kernels.counter import mix64_

_GAMMA = GAMMA - 2**64
# Elements hashed at a time. On a CPU the temporaries fit in a core's cache: 1.5 GB/s on one core. On a device
# a chunk costs one wait.
_CPU_CHUNK, _DEVICE_CHUNK = 1 << 15, 1 << 24
_SLICE_PARAMETERS, _SLICE_ELEMENTS = 8, 512


@lru_cache(maxsize=1 << 16)
def name_key(text: str) -> int:
    """The key of a name, signed."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little", signed=True)


def _wrapped(value: int) -> int:
    """The signed 64-bit integer of the same bits."""
    return (value + 2**63) % 2**64 - 2**63


def _bits(values: Tensor) -> Tensor:
    """Bits of fp32 values, as signed integers, int64."""
    return values.float().view(torch.int32).long()


def values_hash(key: int, values: Tensor, first: int = 0) -> int:
    """Sum of the hashes of consecutive elements, modulo 2**64.

    Args:
        key: Key of the tensor's name.
        values: fp32, or int64 whose values are hashed instead of bits; any shape.
        first: Index of the first of them.
    """
    flat = values.detach().reshape(-1)
    signed = flat if flat.dtype == torch.int64 else flat.float().view(torch.int32)
    if flat.device.type == "cpu":
        return _sum_on_cpu(key, signed.numpy(), first)
    total = 0
    for start in range(0, flat.numel(), _DEVICE_CHUNK):
        part = signed[start : start + _DEVICE_CHUNK]
        word = torch.arange(first + start + 1, first + start + 1 + part.numel(), device=part.device)
        total += int(mix64_(word.mul_(_GAMMA).add_(key).add_(part.long())).sum())
    return total % 2**64


def _sum_on_cpu(key: int, signed_N: NDArray[np.signedinteger[Any]], first: int) -> int:
    """`values_hash` of integers. NumPy shifts unsigned words, which takes fewer passes than torch."""
    offset_N = np.arange(1, min(_CPU_CHUNK, signed_N.size) + 1, dtype=np.uint64) * np.uint64(GAMMA)
    total = 0
    for start in range(0, signed_N.size, _CPU_CHUNK):
        part_N = signed_N[start : start + _CPU_CHUNK]
        word_N = offset_N[: part_N.size] + np.uint64((key + (first + start) * GAMMA) % 2**64)
        word_N += part_N.astype(np.int64).view(np.uint64)
        total += int(mix(word_N).sum())
    return total % 2**64


def pieces_hash(held: Iterable[Piece], tick: Callable[[], None] = lambda: None) -> int:
    """This rank's part of a state hash: all kinds of its own pieces.

    Args:
        held: The pieces.
        tick: Called after each tensor, as a sign of progress.
    """
    total = 0
    for piece in held:
        for kind, view in piece.views.items():
            total += values_hash(name_key(f"{kind}:{piece.name}"), view, piece.start)
            tick()
    return total % 2**64


def counters_hash(
    counters: Mapping[str, int], expert_bias: Mapping[str, Sequence[int]], loss_scaling: Mapping[str, float]
) -> int:
    """The part of the counters in a state hash.

    Args:
        counters: Completed steps, updates and averaged steps, by name.
        expert_bias: Updates of the routers' expert bias, by buffer name.
        loss_scaling: State of fp16's loss scaling.
    """
    named = {f"counter:{name}": [value] for name, value in counters.items()}
    named |= {f"buffer:{name}": list(values) for name, values in expert_bias.items()}
    for name, value in loss_scaling.items():
        named[f"scaler:{name}"] = [int.from_bytes(struct.pack("<d", value), "little", signed=True)]
    tensors = {name: torch.tensor(values, dtype=torch.int64) for name, values in named.items()}
    return sum(values_hash(name_key(name), values) for name, values in tensors.items()) % 2**64


class _Strided(NamedTuple):
    """Evenly spaced elements of a piece."""

    values: Tensor
    """A view of the live weights."""
    first: int
    """Index of the first of them in the whole parameter."""
    stride: int
    key: int


@dataclass(frozen=True)
class WeightSlices:
    """The slices of the weights that the steps hash in turn, as far as this rank holds them.

    Args:
        names: All parameters, in the model's order.
        numels: Their numbers of elements.
        held: This rank's weights; over all ranks, each element once.
    """

    names: Sequence[str]
    numels: Sequence[int]
    held: Mapping[str, Sequence[tuple[int, Tensor]]]
    device: torch.device
    """Where the hashes are returned."""

    @classmethod
    def of(cls, engine: Engine, *, rank: int, world_size: int, device: torch.device) -> WeightSlices:
        """The slices of a model under DeepSpeed."""
        shapes = state.shapes(engine)
        held: dict[str, list[tuple[int, Tensor]]] = {}
        for piece in state.own_pieces(engine, rank=rank, world_size=world_size):
            held.setdefault(piece.name, []).append((piece.start, piece.views[WEIGHT]))
        numels = [int(torch.Size(shape).numel()) for shape in shapes.values()]
        return cls(list(shapes), numels, held, device)

    def _strided(self, step: int) -> Iterator[_Strided]:
        groups = -(-len(self.names) // _SLICE_PARAMETERS)
        for number in range(step % groups, len(self.names), groups):
            name, stride = self.names[number], -(-self.numels[number] // _SLICE_ELEMENTS)
            offset = step // groups % stride
            for start, values in self.held.get(name, ()):
                skipped = (offset - start) % stride
                if skipped < values.numel():
                    key = name_key(f"{WEIGHT}:{name}")
                    yield _Strided(values[skipped::stride], start + skipped, stride, key)

    def begin(self, step: int) -> SliceWatch:
        """Copy the slice of a step. Call it before the update."""
        parts = list(self._strided(step))
        return SliceWatch(parts, _copied(parts), self.device)


@dataclass(frozen=True)
class SliceWatch:
    """The slice of a step, with its values before the update."""

    _parts: Sequence[_Strided]
    _before: Tensor
    _device: torch.device

    def hashes(self) -> Tensor:
        """This rank's part of the slice hashes before and after the update: int64 [2]."""
        if not self._parts:
            return torch.zeros(2, dtype=torch.int64, device=self._device)
        device = self._before.device
        base = [
            torch.arange(part.values.numel()).mul_(_wrapped(part.stride * GAMMA))
            + _wrapped((part.first + 1) * GAMMA + part.key)
            for part in self._parts
        ]
        values_2N = _bits(torch.stack([self._before, _copied(self._parts)]))
        word_2N = values_2N.add_(torch.cat(base).to(device, non_blocking=True))
        return mix64_(word_2N).sum(1).to(self._device)


def _copied(parts: Sequence[_Strided]) -> Tensor:
    values = [part.values for part in parts]
    return torch.cat(values) if values else torch.zeros(0)
