"""State and slice hashes: their definition, and that they do not depend on how the weights are partitioned.

That a state has one hash on 1, 2 and 4 ranks at every ZeRO stage is checked whenever a run resumes
(`test_world_change`, `test_expert_parallel`): resuming compares the hash of the loaded
state with the saved one.
"""

from __future__ import annotations

import hashlib
import struct
from typing import Any

import numpy as np
import pytest
import torch

from reptrain.checkpoint import state_hash
from reptrain.checkpoint.state import Piece
from reptrain.checkpoint.state_hash import WeightSlices, counters_hash, pieces_hash

MASK, G = 2**64 - 1, 0x9E3779B97F4A7C15


def mix(x: int) -> int:
    x &= MASK
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB & MASK
    return x ^ (x >> 31)


def element(name: str, index: int, value: int) -> int:
    key = int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
    return mix(key + (index + 1) * G + value)


def bits(values: torch.Tensor) -> list[int]:
    return [int(number) for number in values.numpy().view(np.int32)]


def test_state_hash_is_the_defined_sum_and_has_the_published_value() -> None:
    values = torch.tensor([1.0, -2.5, 0.0])
    defined = sum(element("weight:norm.weight", i, bit) for i, bit in enumerate(bits(values)))
    found = pieces_hash([Piece("norm.weight", 0, {"weight": values})])
    assert found == defined & MASK
    assert f"{found:016x}" == "eee26c23123c8ffe"


def test_state_hash_does_not_depend_on_the_partition(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = torch.Generator().manual_seed(0)
    views = {kind: torch.randn(37, generator=draw) for kind in ("weight", "exp_avg", "exp_avg_sq")}
    whole = pieces_hash([Piece("a", 0, views)])
    for cut in (1, 20, 36):
        parts = [{kind: view[:cut] for kind, view in views.items()}, {k: v[cut:] for k, v in views.items()}]
        found = [pieces_hash([Piece("a", start, part)]) for start, part in zip((0, cut), parts, strict=True)]
        assert sum(found) & MASK == whole
    monkeypatch.setattr(state_hash, "_CPU_CHUNK", 5)
    assert pieces_hash([Piece("a", 0, views)]) == whole
    swapped = views | {"exp_avg": views["exp_avg_sq"], "exp_avg_sq": views["exp_avg"]}
    assert pieces_hash([Piece("a", 0, swapped)]) != whole


def test_counters_are_part_of_the_state_hash() -> None:
    found = counters_hash({"step": 7, "optimizer_steps": 6}, {"router.bias": [3, -2]}, {"cur_scale": 1024.0})
    double = int.from_bytes(struct.pack("<d", 1024.0), "little")
    defined = element("counter:step", 0, 7) + element("counter:optimizer_steps", 0, 6)
    defined += element("buffer:router.bias", 0, 3) + element("buffer:router.bias", 1, -2)
    assert found == (defined + element("scaler:cur_scale", 0, double)) & MASK


def slices(parts: dict[str, list[tuple[int, torch.Tensor]]], names: list[str], numels: list[int]) -> Any:
    return WeightSlices(names, numels, parts, torch.device("cpu"))


def test_slices_are_as_defined_on_any_partition_and_cover_all_weights() -> None:
    draw = torch.Generator().manual_seed(0)
    # More parameters than a slice takes, one of them with more elements than it takes of one.
    sizes = {f"p{number}": 1300 if number == 3 else 5 for number in range(10)}
    weights = {name: torch.randn(size, generator=draw) for name, size in sizes.items()}
    names, numels = list(sizes), list(sizes.values())
    whole = slices({name: [(0, value)] for name, value in weights.items()}, names, numels)
    first = slices({name: [(0, value[: len(value) // 3])] for name, value in weights.items()}, names, numels)
    second = slices(
        {name: [(len(value) // 3, value[len(value) // 3 :])] for name, value in weights.items()},
        names,
        numels,
    )
    seen: set[tuple[str, int]] = set()
    for step in range(6):
        defined = 0
        for number in range(step % 2, 10, 2):
            stride = -(-numels[number] // 512)
            for index in range(step // 2 % stride, numels[number], stride):
                seen.add((names[number], index))
                value = bits(weights[names[number]])[index]
                defined += element(f"weight:{names[number]}", index, value)
        watches = [one.begin(step) for one in (whole, first, second)]
        before, after = watches[0].hashes().tolist()
        assert before == after and before % 2**64 == defined & MASK
        parts = sum(watch.hashes() for watch in watches[1:])
        assert parts.tolist() == [before, after]
    assert len(seen) == sum(numels)


def test_slice_hash_changes_with_one_weight() -> None:
    weight = torch.zeros(4)
    watch = slices({"a": [(0, weight)]}, ["a"], [4]).begin(3)
    weight[2] = 1e-30
    before, after = watch.hashes().tolist()
    assert before != after
