"""Verification of a store as its size grows."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

from reptrain.bench.made_store import made_store
from reptrain.bench.measure import Measurement, Metric, gate, interleaved, row_of
from reptrain.bench.rows import OURS, Row
from reptrain.store import verify

TIME = Metric("time per million tokens", "s", larger_is_better=False)
SMALLER = "a quarter of the tokens"


def run(*, repetitions: int, quick: bool) -> list[Row]:
    """Measure `store verify` at two sizes.

    Args:
        repetitions: Number of values at each size.
        quick: Whether to use small stores.
    """
    small, large = (10**6, 4 * 10**6) if quick else (8 * 10**6, 32 * 10**6)
    with tempfile.TemporaryDirectory(prefix="reptrain-bench-") as name:
        ways = {}
        for tokens in (small, large):
            folder = Path(name) / f"{tokens}"
            folder.mkdir()
            ways[f"{tokens}"] = _verification(made_store(folder, tokens).path, tokens)
        values = interleaved(ways, repetitions)
    case = f"store verify, {large // 10**6}M tokens"
    ours = values[f"{large}"]
    return [
        row_of("proof", case, OURS, TIME, ours, packages=("numpy", "pyarrow")),
        row_of("proof", case, SMALLER, TIME, values[f"{small}"], ours=ours, packages=("numpy", "pyarrow")),
    ]


def _verification(store: Path, tokens: int) -> Measurement:
    def measure() -> float:
        begin = time.perf_counter()
        report = verify(store)
        seconds = time.perf_counter() - begin
        gate(not report.problems, bench="proof", what=OURS, rule="must find a sealed store whole")
        return seconds / tokens * 1e6

    return measure
