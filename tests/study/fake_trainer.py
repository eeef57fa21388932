"""Stands in for ``reptrain train CONFIG --out RUN``: what it does depends on the configured seed."""

from __future__ import annotations

import math
import os
import signal
import sys
import time
from pathlib import Path

from run_folders import LOSSES, write_run

from reptrain.config import load_run_config

FAILS, WAITS, LIES, CRASHES, STUMBLES = 13, 17, 19, 23, 29
"""Seeds: wrong input; waits for a signal; ends well without a run; crashes; crashes after the end."""


def main() -> int:
    path, option, run = sys.argv[1:]
    assert option == "--out"
    return train(path, run)


def train(path: str, run: str) -> int:
    config = load_run_config(Path(path))
    with Path(run).parent.parent.joinpath("started.txt").open("a") as file:
        file.write(f"{config.name}\n")
    if config.seed == FAILS:
        print("train.lr: must be nice, but got this.", file=sys.stderr)
        return 2
    if config.seed == WAITS:
        stopped: list[int] = []
        signal.signal(signal.SIGTERM, lambda number, frame: stopped.append(number))
        write_run(config, Path(run), state="running")
        while not stopped:
            time.sleep(0.02)
        write_run(config, Path(run), state="preempted")
        return 3
    if config.seed == CRASHES:
        os.abort()
    losses = dict(LOSSES)
    if str(config.name).startswith("tune."):
        # The best rate is 2e-3.
        losses["select"] = [8.0, 6.0 + abs(math.log(config.optimizer.lr / 2e-3)), 9.0]
    write_run(config, Path(run), state="running" if config.seed == LIES else "done", losses=losses)
    return 1 if config.seed == STUMBLES else 0


if __name__ == "__main__":
    sys.exit(main())
