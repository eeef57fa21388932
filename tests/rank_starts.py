"""Starts ranks on this machine without a launcher: its two processes would load DeepSpeed first, in turn."""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from forked import Forked

from reptrain.config import RunConfig
from reptrain.config.load import dump_yaml

LIMIT_S = 1800
"""For all cases of a start, which take up to two minutes on two quiet cores."""


def write_config(out: Path, config: RunConfig) -> None:
    """The settings that all cases below ``out`` begin from."""
    (out / "config.yaml").write_text(dump_yaml(config.model_dump(mode="json")))


def begin_ranks(
    ranks: int, arguments: Sequence[str], out: Path, *, started_ranks: Sequence[int] | None = None
) -> list[Forked]:
    """Start Python with the arguments once for each rank, or for those named of so many ranks.

    What rank R writes goes to ``out/rank-R.txt``.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    environment = {
        **{**os.environ, "WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port},
        **{"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": "1"},
    }
    started = []
    for rank in range(ranks) if started_ranks is None else started_ranks:
        with (out / f"rank-{rank}.txt").open("wb") as file:
            own = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            started.append(Forked(arguments, environment=environment | own, stdout=file, stderr=file))
    return started


def said_by_ranks(out: Path) -> str:
    """What the ranks wrote."""
    return "\n".join(path.read_text(errors="replace")[-3000:] for path in sorted(out.glob("rank-*.txt")))


def start_ranks(
    ranks: int,
    out: Path,
    cases: dict[str, dict[str, Any]],
    *,
    fails: bool = False,
    script: str = "rank_matrix.py",
) -> str:
    """Carry out cases (see the script) on so many ranks, all in one start; returns what they wrote."""
    (out / "cases.json").write_text(json.dumps(cases))
    path = str(Path(__file__).with_name(script))
    started = begin_ranks(ranks, [path, str(out), str(out / "cases.json")], out)
    deadline = time.monotonic() + LIMIT_S
    while any(process.poll() is None for process in started) and time.monotonic() < deadline:
        # One that failed ends the others, as a launcher does.
        if any(process.poll() for process in started):
            break
        time.sleep(0.1)
    failed = any(process.poll() != 0 for process in started)
    for process in started:
        process.kill()
        process.wait()
    assert failed == fails, said_by_ranks(out)
    return said_by_ranks(out)
