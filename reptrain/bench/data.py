"""Benchmarks of reading shuffled windows and of span corruption, compared with other data loaders.

All loaders read the same tokens: ours from the token store, the others from a flat file of the stream, or
from their own formats built from that file. A repetition takes the next windows of a shuffled pass.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from reptrain.batch.loader import Loader
from reptrain.batch.micro_batch import MicroBatch
from reptrain.batch.objectives import UL2, Causal, NoisePlaces, Objective, SpanCorruption
from reptrain.bench.made_store import made_store
from reptrain.bench.measure import Measurement, Metric, Missing, compared, gate, torch_threads
from reptrain.bench.peers import READERS
from reptrain.bench.peers.spans import corrupted
from reptrain.bench.rows import OURS, Row
from reptrain.config.objectives import UL2Config
from reptrain.plan import EpochPlan, MixturePlan, StepPlan, Stream, Subset

TOKENS = Metric("shuffled reading", "tokens/s")
EXAMPLES = Metric("examples", "examples/s")
BATCH_TOKENS = 1 << 15
_STORE_TOKENS, _QUICK_TOKENS = 1 << 27, 1 << 23
_READ_TOKENS = 1 << 23


def run(*, repetitions: int, quick: bool) -> Iterator[Row]:
    """Measure reading at two window lengths, then span corruption and UL2.

    Args:
        repetitions: Number of values of each implementation.
        quick: Whether to measure one window length on a small store.
    """
    with tempfile.TemporaryDirectory(prefix="reptrain-bench-") as name, torch_threads(1):
        folder = Path(name)
        store = made_store(folder, _QUICK_TOKENS if quick else _STORE_TOKENS)
        subset = Subset.open(store)
        flat = _flat_file(folder, subset)
        for window_tokens in (512,) if quick else (512, 2048):
            yield from reading(folder, subset, flat, window_tokens, repetitions)
        yield from corrupting(repetitions)


def reading(folder: Path, subset: Subset, flat: Path, window_tokens: int, repetitions: int) -> list[Row]:
    """Rows of reading shuffled windows into int64 tensors, in batches of `BATCH_TOKENS`."""
    batch_windows = BATCH_TOKENS // window_tokens
    num_windows = subset.unique_tokens // window_tokens
    plan = MixturePlan(
        (EpochPlan(num_windows * window_tokens, window_tokens, num_windows * 1000, "reshuffle", "fixed", 0),)
    )
    steps = StepPlan(batch_windows, plan.total_windows)
    loader = Loader(Stream([subset]), plan, steps, Causal(0), 0, 1, batch_windows)
    _check_reading(loader, flat)
    ours = (batch.micro_batches[0].tokens_BL for batch in loader.iterate())
    ways: dict[str, Measurement | Missing] = {OURS: _tokens_per_second(ours, 4 * _READ_TOKENS)}
    packages: dict[str, tuple[str, ...]] = {OURS: ("reptrain", "torch", "numpy", "pyarrow")}
    for reader in READERS:
        packages[reader.name] = reader.packages
        opened = reader.open(flat, folder / reader.name.replace(" ", "-"), window_tokens, batch_windows)
        if isinstance(opened, Missing):
            ways[reader.name] = opened
            continue
        first, rest = _peek(opened)
        gate(
            _holds_windows(first, flat, window_tokens),
            bench="data",
            what=reader.name,
            rule="must read windows of the same stream",
        )
        ways[reader.name] = _tokens_per_second(rest, _READ_TOKENS)
    case = f"windows of {window_tokens} tokens, {subset.unique_tokens / 1e6:.0f}M tokens"
    return compared("data", case, TOKENS, ways, repetitions, packages=packages, threads=2)


def corrupting(repetitions: int) -> list[Row]:
    """Rows of span corruption of 568 tokens into 512 inputs and 114 targets, and of UL2 with 512 tokens."""
    windows, width = 256, 568
    tokens = np.random.default_rng(0).integers(5, 30000, (windows, width))
    sentinels = tuple(range(32099, 31999, -1))
    spans = SpanCorruption(0.15, 3.0, sentinels, eos_id=1, start_id=0, window_tokens=width)
    ul2 = UL2(UL2Config(name="ul2"), sentinels, (32100, 32101, 32102), 1, 0, 512)
    draw = np.random.default_rng(1)

    def usual() -> None:
        corrupted(tokens, draw, sentinel=32099, eos=1)

    source, target = corrupted(tokens, draw, sentinel=32099, eos=1)
    example = _example(spans, tokens)
    gate(
        (source.shape[1], target.shape[1]) == (512, 114)
        and tuple(example.inputs["source_BS"].shape) == source.shape
        and tuple(example.targets_BT.shape) == target.shape
        and bool((example.inputs["source_BS"][:, -1] == 1).all()),
        bench="data",
        what="span corruption",
        rule="must make 512 inputs and 114 targets of 568 tokens",
    )
    packages = {OURS: ("torch", "numpy"), "batched NumPy": ("numpy",)}
    rows = []
    for name, objective, length in (
        ("span corruption, 568 tokens", spans, 568),
        ("UL2, 512 tokens", ul2, 512),
    ):
        part = tokens[:, :length]
        ways: dict[str, Measurement | Missing] = {
            OURS: _examples_per_second(partial(_example, objective, part), windows),
            "batched NumPy": _examples_per_second(usual, windows),
        }
        notes = {} if objective is spans else {"batched NumPy": "span corruption only"}
        rows += compared("data", name, EXAMPLES, ways, repetitions, packages=packages, notes=notes)
    return rows


def _example(objective: Objective, tokens_BL: npt.NDArray[np.int64]) -> Any:
    rows, width = tokens_BL.shape
    length = np.full(rows, width)
    start = np.arange(rows) * width
    zeros = np.zeros(rows, np.int64)
    noise = objective.noise(NoisePlaces(zeros, zeros, start, length), width=width)
    drawn = {name: torch.from_numpy(values) for name, values in noise.items()}
    tokens, lengths, starts, index = (
        torch.from_numpy(array) for array in (tokens_BL, length, start, np.arange(rows))
    )
    return objective.example(MicroBatch(tokens, lengths, starts, index, drawn))


def _examples_per_second(call: Callable[[], object], windows: int) -> Measurement:
    def measure() -> float:
        calls, begin = 0, time.perf_counter()
        while (seconds := time.perf_counter() - begin) < 0.5:
            call()
            calls += 1
        return calls * windows / seconds

    return measure


def _tokens_per_second(batches: Iterable[torch.Tensor], tokens: int) -> Measurement:
    """Reads the next batches of at least ``tokens`` tokens."""
    remaining = iter(batches)

    def measure() -> float:
        held, begin = 0, time.perf_counter()
        while held < tokens:
            held += next(remaining).numel()
        return held / (time.perf_counter() - begin)

    return measure


def _flat_file(folder: Path, subset: Subset) -> Path:
    path = folder / "flat.bin"
    chunk = 1 << 22
    with path.open("wb") as file:
        for start in range(0, subset.unique_tokens, chunk):
            length = min(chunk, subset.unique_tokens - start)
            file.write(subset.flat(np.asarray([start]), np.asarray([length])).astype(np.uint16).tobytes())
    return path


def _check_reading(loader: Loader, flat: Path) -> None:
    stream = np.memmap(flat, np.uint16, "r")
    for share in (loader.batch(0), loader.batch(5)):
        batch = share.micro_batches[0]
        expected = [stream[s : s + n] for s, n in zip(batch.start_B, batch.length_B, strict=True)]
        same = all(np.array_equal(a, b) for a, b in zip(batch.tokens_BL.numpy(), expected, strict=True))
        gate(same, bench="data", what=OURS, rule="must read the windows of the stream")


def _holds_windows(batch: torch.Tensor, flat: Path, window_tokens: int) -> bool:
    """Whether every row of an int64 batch is a window of the stream (at any window boundary)."""
    tokens = np.asarray(np.memmap(flat, np.uint16, "r"))
    stream = tokens[: len(tokens) // window_tokens * window_tokens].reshape(-1, window_tokens)
    rows = batch.numpy()
    if batch.dtype != torch.int64 or rows.shape[1] != window_tokens:
        return False
    heads = np.ascontiguousarray(stream[:, :8]).view(np.dtype((np.void, 16))).ravel()
    wanted = np.ascontiguousarray(rows[:, :8].astype(np.uint16)).view(np.dtype((np.void, 16))).ravel()
    places = [np.flatnonzero(heads == head) for head in wanted[:4]]
    return all(
        any(np.array_equal(stream[place], row) for place in found)
        for found, row in zip(places, rows[:4], strict=True)
    )


def _peek(batches: Iterable[torch.Tensor]) -> tuple[torch.Tensor, Iterator[torch.Tensor]]:
    remaining = iter(batches)
    first = next(remaining)
    return first, chain(repeat(first, 1), remaining)
