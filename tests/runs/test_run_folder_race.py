"""Two starts in one new folder at the same instant."""

from __future__ import annotations

import multiprocessing
from multiprocessing.synchronize import Barrier
from pathlib import Path

from run_folders import run_plan
from time_limits import START_S

from reptrain.config import RunConfig
from reptrain.errors import RunError
from reptrain.runs import RunFolder

ROUNDS = 40
SETTINGS = {"data": {"store": "store", "unique_tokens": 100, "window_tokens": 16}}


def _start(seed: int, folder: Path, barrier: Barrier) -> None:
    config = RunConfig.model_validate({**SETTINGS, "seed": seed})
    for number in range(ROUNDS):
        plan = run_plan(config)
        barrier.wait()
        try:
            RunFolder.create_or_open(folder / str(number), config, plan, {"seed": seed})
        except RunError:
            (folder / f"{number}-refused-{seed}").touch()


def test_create_or_open_mixes_no_two_runs_started_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(2)
    both = [context.Process(target=_start, args=(seed, tmp_path, barrier)) for seed in (1, 2)]
    for process in both:
        process.start()
    for process in both:
        process.join(timeout=START_S)
        assert process.exitcode == 0
    for number in range(ROUNDS):
        folder = RunFolder.open(tmp_path / str(number))
        seed = folder.config.seed
        assert folder.plan.config_fingerprint in (folder.path / "config.yaml").read_text()
        assert folder.environment["seed"] == seed
        assert (tmp_path / f"{number}-refused-{3 - seed}").exists()
