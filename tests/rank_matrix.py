"""Trains runs in several ways within one start of ranks. Started by rank_starts.py, on every rank.

Usage: rank_matrix.py OUT CASES.json, where the JSON maps the name of a run folder below OUT to

    {"overrides": [...], "stop_after": step or null, "nan": null or [rank, step, "loss" or "gradient"],
     "hang": null or [rank, step], "counts": whether to keep what each expert got, "copy": null or a case,
     "init_from": null or a case}

A case whose folder exists goes on in it. One with "copy" loads the newest checkpoint of that case and saves
it again, trained no further. Counts are kept in NAME-counts.json: a list for each step of one for each layer.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from reptrain import checkpoint
from reptrain.batch.loader import Loader, StepBatch
from reptrain.config import RunConfig, load_run_config
from reptrain.distributed.stop import StopRequest
from reptrain.distributed.world import World, choose_device, join
from reptrain.errors import RunError
from reptrain.model.head import Head
from reptrain.training import setup
from reptrain.training import step as step_module
from reptrain.training.loop import train
from reptrain.training.setup import open_data, prepare
from reptrain_kernels.ops.linear_cross_entropy import Loss, Targets


class StopAfter(StopRequest):
    """Asks to stop once so many steps were asked for."""

    def __init__(self, steps: int | None) -> None:
        super().__init__()
        self.steps, self.seen = steps, 0

    def reason(self, world: World) -> str | None:
        return "enough" if self.steps is not None and self.seen >= self.steps else super().reason(world)


@contextmanager
def watched(stop: StopAfter, case: dict[str, Any], rank: int) -> Iterator[None]:
    """Count the steps, and plant a value that is not finite, or an endless wait, in one of them."""
    nan, hang = case.get("nan"), case.get("hang")
    iterate, forward = Loader.iterate, Head.forward
    planting = False

    def counted(self: Loader, first_step: int = 0) -> Iterator[StepBatch]:
        nonlocal planting
        for batch in iterate(self, first_step):
            planting = nan is not None and [rank, batch.step] == nan[:2]
            stop.seen = batch.step + 1
            if hang == [rank, batch.step]:
                time.sleep(1000)
            yield batch

    def planted(
        self: Head, x_BTD: torch.Tensor, targets: Targets | None = None, *rest: Any
    ) -> torch.Tensor | Loss:
        if planting and nan[2] == "gradient" and x_BTD.requires_grad:
            x_BTD.register_hook(lambda gradient: gradient * float("inf"))
        found = forward(self, x_BTD, targets, *rest)
        if planting and nan[2] == "loss":
            return found._replace(loss=found.loss + float("inf"), nats=found.nats + float("inf"))
        return found

    Loader.iterate, Head.forward = counted, planted
    try:
        yield
    finally:
        Loader.iterate, Head.forward = iterate, forward


@contextmanager
def counted(path: Path | None) -> Iterator[None]:
    """Keep what each expert got in each step."""
    records, steps = step_module.routing_records, []

    def kept(model: Any, figure_LS: list[list[float]] | None, num_targets: int) -> Any:
        if figure_LS is not None:
            steps.append([figures[4:] for figures in figure_LS])
        return records(model, figure_LS, num_targets)

    step_module.routing_records = kept
    try:
        yield
    finally:
        step_module.routing_records = records
    if path is not None:
        before = json.loads(path.read_text()) if path.exists() else []
        path.write_text(json.dumps(before + steps))


def copy(config: RunConfig, source: Path, target: Path, world: World) -> None:
    """Load the newest checkpoint of a run, and save it in another place."""
    engine = prepare(config, open_data(config), world).trainer.engine
    found = checkpoint.find(source / "checkpoints", world=world)
    assert found.path is not None and found.manifest is not None
    checkpoint.load(engine, found.path, found.manifest)
    folder = target / "checkpoints"
    checkpoint.save(engine, folder, found.manifest.step, world=world, keep_last=1)


def partition_everything() -> None:
    """Let ZeRO 3 cut up small weights too, which it would keep whole on every rank: these all are small."""
    plain = setup.deepspeed_config

    def with_threshold(*args: Any, **named: Any) -> dict[str, Any]:
        settings = plain(*args, **named)
        settings["zero_optimization"]["stage3_param_persistence_threshold"] = 0
        return settings

    setup.deepspeed_config = with_threshold


def main(out: Path, cases: dict[str, dict[str, Any]]) -> None:
    partition_everything()
    world = join(choose_device("cpu"))
    for name, case in cases.items():
        parent = [f"init_from={out / case['init_from']}"] if case.get("init_from") else []
        config = load_run_config(out / "config.yaml", [*case["overrides"], *parent])
        if case.get("copy"):
            copy(config, out / case["copy"], out / name, world)
            continue
        stop = StopAfter(case.get("stop_after"))
        kept = out / f"{name}-counts.json" if case.get("counts") and world.is_main else None
        with watched(stop, case, world.rank), counted(kept):
            try:
                train(config, out / name, stop=stop)
            except RunError as error:
                if not case.get("nan"):
                    raise
                (out / f"{name}-rank{world.rank}.txt").write_text(str(error))


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(Path(sys.argv[2]).read_text()))
