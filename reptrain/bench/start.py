"""Start-up times: of commands, to the first batch, to the first training step, and to resume."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from reptrain.bench.made_store import DOCUMENT_TOKENS, made_store
from reptrain.bench.measure import Measurement, Metric, Missing, compared, cores, gate, interleaved, row_of
from reptrain.bench.peers.megatron import MEGATRON, megatron_first_batch
from reptrain.bench.rows import OURS, ROOT, Row

SECONDS = Metric("CPU time to completion", "s", larger_is_better=False)
FIRST_BATCH = Metric("time to the first batch", "s", larger_is_better=False)
FIRST_BATCH_MEMORY = Metric("private memory added by the first batch", "MB", larger_is_better=False)
LOCATED = Metric("time to locate a batch's windows", "s", larger_is_better=False)
FIRST_STEP = Metric("time to the first step", "s", larger_is_better=False)
CONFIG = ROOT / "configs" / "tiny" / "decoder.yaml"
_PATIENCE = 300.0

_FIRST_BATCH = """
import resource, sys, time
from pathlib import Path
import torch
from reptrain.batch.loader import Loader
from reptrain.batch.objectives import Causal
from reptrain.plan import EpochPlan, MixturePlan, StepPlan, Stream, Subset
from reptrain.store import open_store

def private():
    pages = Path("/proc/self/statm").read_text().split()
    return (int(pages[1]) - int(pages[2])) * resource.getpagesize() / 1e6

before, begin = private(), time.perf_counter()
subset = Subset.open(open_store(Path(sys.argv[1])))
windows = -(-subset.unique_tokens // 512)
plan = MixturePlan((EpochPlan(subset.unique_tokens, 512, windows * 64, "reshuffle", "fixed", 0),))
loader = Loader(Stream([subset]), plan, StepPlan(64, plan.total_windows), Causal(0), 0, 1, 64)
next(loader.iterate())
print(time.perf_counter() - begin, private() - before)
"""


def run(*, repetitions: int, quick: bool) -> Iterator[Row]:
    """Measure commands, the first batch, the first step and a resumed run.

    Args:
        repetitions: Number of values of each; at most 3 of a training run.
        quick: Whether to measure one size of data, and no training run.
    """
    with tempfile.TemporaryDirectory(prefix="reptrain-bench-") as name:
        folder = Path(name)
        (folder / "small").mkdir()
        store = made_store(folder / "small", 10**6).path
        yield from commands(store, folder, repetitions)
        yield from located(repetitions)
        for tokens in (10**7,) if quick else (10**7, 10**8):
            (folder / f"{tokens}").mkdir()
            yield from first_batch(made_store(folder / f"{tokens}", tokens).path, tokens, repetitions)
        if not quick:
            yield from training(store, folder, min(repetitions, 3))


def commands(store: Path, folder: Path, repetitions: int) -> list[Row]:
    """Rows of the CPU time of commands that need no torch."""
    (folder / "runs").mkdir()
    called = {
        "reptrain --help": ["--help"],
        "reptrain store show": ["store", "show", str(store)],
        "reptrain config show": ["config", "show", str(CONFIG)],
        "reptrain sizes": ["sizes", str(CONFIG), "--vocab-size", "2048"],
        "reptrain runs": ["runs", str(folder / "runs")],
    }
    ways = {name: _command(arguments) for name, arguments in called.items()}
    values = interleaved(ways, repetitions)
    return [row_of("start", name, OURS, SECONDS, values[name], packages=("pydantic",)) for name in called]


def located(repetitions: int) -> list[Row]:
    """Rows of planning the first batch at growing sizes, up to 10**12 tokens, without any data."""
    rows = []
    for tokens in (10**7, 10**9, 10**12):

        def measure(tokens: int = tokens) -> float:
            import numpy as np

            from reptrain.plan import EpochPlan

            begin = time.perf_counter()
            plan = EpochPlan(tokens, 512, -(-tokens // 512) * 64, "reshuffle", "fixed", 0)
            plan.locate(np.arange(1 << 14))
            return time.perf_counter() - begin

        case = f"plan of {tokens:.0e} tokens, 64 epochs"
        rows += compared("start", case, LOCATED, {OURS: measure}, repetitions, packages={OURS: ("numpy",)})
    return rows


def first_batch(store: Path, tokens: int, repetitions: int) -> list[Row]:
    """Rows of the first batch of a run of 64 epochs, after the imports."""
    megatron = megatron_first_batch(
        store.parent, tokens, document_tokens=DOCUMENT_TOKENS, window_tokens=512, epochs=64, batch_windows=64
    )
    found, theirs = [], []
    for _ in range(repetitions + 1):
        done = subprocess.run(
            [sys.executable, "-c", _FIRST_BATCH, str(store)], capture_output=True, text=True, check=True
        )
        found.append([float(part) for part in done.stdout.split()])
        if not isinstance(megatron, Missing):
            theirs.append(megatron())
    seconds, megabytes = zip(*found[1:], strict=True)
    note = megatron.reason if isinstance(megatron, Missing) else "writes an index of all epochs"
    case = f"{tokens:.0e} tokens, 64 epochs"
    return [
        row_of("start", case, OURS, FIRST_BATCH, seconds, packages=("torch", "numpy", "pyarrow")),
        row_of(
            *("start", case, MEGATRON, FIRST_BATCH, theirs[1:]),
            ours=seconds,
            note=note,
            packages=("megatron-core", "torch", "numpy"),
        ),
        row_of("start", case, OURS, FIRST_BATCH_MEMORY, megabytes, packages=("torch", "numpy", "pyarrow")),
    ]


def training(store: Path, folder: Path, repetitions: int) -> list[Row]:
    """Rows of the first step of a run, cold and resumed: from the command to the next line of the ledger."""
    cold, resumed = [], []
    for number in range(repetitions):
        out = folder / f"run-{number}"
        command = [
            *(sys.executable, "-m", "reptrain", "train", str(CONFIG), "--out", str(out)),
            *(f"data.store={store}", "data.unique_tokens=400000", "train.total_tokens=64epochs"),
            *("train.device=cpu", "train.compile=false", "evaluate.max_windows=8"),
        ]
        cold.append(_first_step(command, out / "ledger.jsonl"))
        resumed.append(_first_step(command, out / "ledger.jsonl"))
    case = "reptrain train on a CPU, eager"
    packages = ("torch", "deepspeed")
    return [
        row_of("start", case, OURS, FIRST_STEP, cold, packages=packages, threads=cores()),
        row_of("start", f"{case}, resumed", OURS, FIRST_STEP, resumed, packages=packages, threads=cores()),
        row_of("start", f"{case}, resumed", "cold start", FIRST_STEP, cold, ours=resumed, packages=packages),
    ]


def _command(arguments: list[str]) -> Measurement:
    def measure() -> float:
        before = _children_seconds()
        done = subprocess.run(
            [sys.executable, "-m", "reptrain", *arguments], capture_output=True, text=True, check=False
        )
        seconds = _children_seconds() - before
        rule = f"`reptrain {' '.join(arguments[:2])}` must succeed"
        gate(done.returncode == 0, bench="start", what=OURS, rule=rule)
        return seconds

    return measure


def _children_seconds() -> float:
    """CPU time of the processes that have ended; it depends less on other programs than wall time."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _first_step(command: list[str], ledger: Path) -> float:
    """Seconds until a run adds a line to its ledger. Then the run is preempted, which saves a checkpoint."""
    begin = time.perf_counter()
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        old = ledger.stat().st_size if ledger.exists() else 0
        while not ledger.exists() or ledger.stat().st_size <= old:
            waited = time.perf_counter() - begin
            alive = process.poll() is None and waited < _PATIENCE
            gate(alive, bench="start", what=OURS, rule="must reach its first step")
            time.sleep(0.02)
        seconds = time.perf_counter() - begin
        process.send_signal(signal.SIGTERM)
        code = process.wait(timeout=_PATIENCE)
        gate(code in (0, 3), bench="start", what=OURS, rule="must save a checkpoint when it is preempted")
    finally:
        if process.poll() is None:
            process.kill()
    return seconds
