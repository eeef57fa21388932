"""A rank of a fine-tuning that dies or hangs: the other ends in time and names it."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rank_starts import begin_ranks, said_by_ranks
from small_tasks import MakeTask
from time_limits import START_S

TIMEOUT_S = 30
SETTINGS = (
    "limits.select_examples=5", "limits.target_tokens=6", "limits.input_tokens=24", "epochs=1000",
    "train.batch_windows=4", "train.device=cpu", "evaluate.every_fraction=1",
    f"train.rank_timeout_seconds={TIMEOUT_S}",
)  # fmt: skip


@pytest.mark.ranks
@pytest.mark.timeout(2 * START_S + 8 * TIMEOUT_S)
@pytest.mark.parametrize("how", [signal.SIGKILL, pytest.param(signal.SIGSTOP, marks=pytest.mark.slow)])
def test_lost_rank_is_named_in_time(
    how: signal.Signals, trained: Callable[[str], Path], make_task: MakeTask, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = ["-m", "reptrain", "finetune", str(trained("causal")), str(make_task()), "--out", str(out)]
    ranks = begin_ranks(2, [*command, *SETTINGS], tmp_path)
    try:
        metrics, deadline = out / "seed-0" / "metrics.jsonl", time.monotonic() + START_S
        while not metrics.exists() or metrics.read_bytes().count(b"\n") < 5:
            assert time.monotonic() < deadline and all(r.poll() is None for r in ranks), said_by_ranks(
                tmp_path
            )
            time.sleep(0.05)
        ranks[1].send_signal(how)
        assert ranks[0].wait(timeout=4 * TIMEOUT_S) == 2
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    assert "rank 1: must make progress within" in (tmp_path / "rank-0.txt").read_text()
    events = [json.loads(line) for line in (out / "seed-0" / "events.jsonl").read_text().splitlines()]
    assert events[-1]["event"] == "failed" and events[-1]["detail"].startswith("rank 1: must make progress")
    assert events[-1]["step"] >= 5
