"""Two runs with one thread each at the same time, and one run with two threads."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from reptrain.bench.measure import Measurement, Missing
from reptrain.bench.rows import OURS
from reptrain.config import RunConfig

ONE, ALONE = "one run of two threads", "one run of one thread"
_SECONDS = 2.0


def main() -> None:
    """Train in a process of its own. Each line of the input asks for the steps per second of two seconds."""
    from reptrain.bench.step import trainer_steps

    config = RunConfig.model_validate_json(sys.argv[1])
    steps = trainer_steps(config)
    for _ in range(3):
        next(steps)
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for _ in sys.stdin:
        begin, count = time.perf_counter(), 0
        while (seconds := time.perf_counter() - begin) < _SECONDS:
            next(steps)
            count += 1
        sys.stdout.write(f"{count / seconds}\n")
        sys.stdout.flush()


@contextmanager
def two_runs(config: RunConfig, step_tokens: int) -> Iterator[dict[str, Measurement | Missing]]:
    """Measurements in tokens per second: of two processes together, and of one with two threads or one.

    Args:
        config: The run.
        step_tokens: Tokens of a step.
    """
    processes = [_start(config, threads) for threads in (1, 1, 2)]
    try:
        for process in processes:
            _answer(process)
        yield {
            OURS: lambda: _steps_per_second(processes[:2]) * step_tokens,
            ONE: lambda: _steps_per_second(processes[2:]) * step_tokens,
            ALONE: lambda: _steps_per_second(processes[:1]) * step_tokens,
        }
    finally:
        for process in processes:
            process.communicate()


def _start(config: RunConfig, threads: int) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-c",
        "from reptrain.bench.two_runs import main; main()",
        config.model_dump_json(),
    ]
    return subprocess.Popen(
        command,
        env={**os.environ, "OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def _steps_per_second(processes: Sequence[subprocess.Popen[str]]) -> float:
    """Of processes that train at the same time, together."""
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    return sum(float(_answer(process)) for process in processes)


def _answer(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise RuntimeError(f"a run of the benchmark ended with exit code {process.wait()}")
    return line.strip()
