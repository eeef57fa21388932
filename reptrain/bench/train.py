"""Training steps of one configuration on random tokens: tokens/s, utilization, memory, parts of a step.

Unlike the other benchmarks, this one measures the user's own sizes, on the user's own device.
"""

from __future__ import annotations

import gc
import math
import statistics
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from reptrain.batch.loader import Loader
from reptrain.bench.made_store import made_store
from reptrain.bench.measure import Metric, Missing, gate, row_of
from reptrain.bench.peers.trainers import transformers_loop
from reptrain.bench.rows import OURS, Row
from reptrain.bench.step_parts import Clock, StepParts
from reptrain.config import RunConfig
from reptrain.config.load import apply_overrides, read_config, validate
from reptrain.distributed.precision import product_precision
from reptrain.distributed.world import World, choose_device, in_groups, join
from reptrain.errors import ConfigError
from reptrain.model import build_model
from reptrain.plan.mixture import plan_mixture
from reptrain.runs.pace import tokens_per_s
from reptrain.sizes import peak_flops, utilization_flops
from reptrain.training.loop import apply_schedules
from reptrain.training.setup import Data, Training, open_data, prepare
from reptrain.training.step import StepResult, train_step
from reptrain_kernels.implementation import assume
from reptrain_kernels.ops.linear_cross_entropy import Targets

TRAINING = Metric("training", "tokens/s per device")
STEP = Metric("step", "ms", larger_is_better=False)
MEMORY = Metric("largest allocated memory", "GiB", larger_is_better=False)
_GATE_WINDOWS = 8
# Root mean square over tokens. The losses of an untrained model vary by some tenths of a nat
# from token to token. TF32 products have a relative rounding error of 2^-11, those of bf16 one of 2^-9.
_TOLERANCE_NATS = {"fp32": 5e-3, "bf16": 5e-2, "fp16": 5e-2}


class Steps(NamedTuple):
    """Figures of the measured steps, without the warm-up. One value for each step."""

    seconds: list[float]
    parts_ms: Mapping[str, list[float]]
    """Time of each part of a step (`StepParts`), on the device."""
    peak_bytes: int | None
    """Largest allocated device memory; None on a CPU."""
    results: list[StepResult]
    """Of all steps, warm-up included."""
    vocab_size: int
    """Vocabulary size of the tokenizer."""


def bench_config(file: Path, overrides: Sequence[str], steps: int, store: Path) -> RunConfig:
    """A run's configuration, with exactly ``steps`` steps on another store.

    Args:
        file: The run's YAML file. Its sources, budget and evaluation are replaced.
        overrides: KEY=VALUE.
        steps: Number of steps.
        store: Folder of the store.

    Raises:
        ConfigError: If the file or an override is wrong, or the run is distilled.
    """
    settings: dict[str, Any] = apply_overrides(read_config(file), overrides)
    data = {key: value for key, value in (settings.get("data") or {}).items() if key not in _REPLACED}
    settings |= {"name": file.stem, "data": data | {"store": str(store)}, "evaluate": {"max_windows": 1}}
    settings["train"] = (settings.get("train") or {}) | {"total_tokens": "1epochs"}
    first = validate(RunConfig, settings)
    if first.distill is not None:
        raise ConfigError(
            "distill",
            got="a run with a teacher",
            rule="must be null here: no teacher has the vocabulary of random tokens",
            remedy="Add distill=null to measure the steps without a teacher.",
        )
    windows = steps * first.train.batch_windows
    unique_tokens = windows * first.window_tokens
    settings["data"] |= {"unique_tokens": unique_tokens}
    # An epoch of shifted cuts has one window more.
    per_epoch = plan_mixture(first, {"data": unique_tokens}).windows_per_epoch
    settings["train"] |= {"total_tokens": f"{windows}/{per_epoch}epochs"}
    return validate(RunConfig, settings)


_REPLACED = frozenset({"store", "sources", "unique_tokens"})


def run(
    file: Path, overrides: Sequence[str] = (), *, steps: int = 20, warm_up: int = 5, peers: bool = False
) -> list[Row]:
    """Measure a configuration, on all ranks alike.

    Args:
        file: The run's YAML file.
        overrides: KEY=VALUE.
        steps: Number of measured steps.
        warm_up: Number of steps before them.
        peers: Whether to measure a transformers model of the same sizes, too. One rank only.

    Returns:
        The rows.

    Raises:
        ConfigError: If the configuration is wrong.
        GateError: If the losses are not those of the plain definitions.
    """
    with tempfile.TemporaryDirectory(prefix="reptrain-bench-") as name:
        config = bench_config(file, overrides, warm_up + steps, Path(name))
        store = made_store(Path(name), config.data.unique_tokens or 0).path
        config = bench_config(file, overrides, warm_up + steps, store)
        device = choose_device(config.train.device)
        config = config.on_device(device.type)
        world = in_groups(join(device), config.train)
        found = measured_steps(config, world, warm_up)
        device_name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
        rows = rows_of(config, found, world, device_name)
        if peers:
            rows += _peer_rows(config, world, found, warm_up, device_name)
    return rows


def measured_steps(config: RunConfig, world: World, warm_up: int) -> Steps:
    """Train the whole run step by step, without a run folder.

    Args:
        config: The run, with the precision resolved.
        world: The ranks.
        warm_up: Number of steps that are not measured.

    Raises:
        GateError: If the losses are not those of the plain definitions.
    """
    data = open_data(config)
    training = prepare(config, data, world)
    _check_losses(config, data, training, world)
    on_gpu = world.device.type == "cuda"
    clock = Clock(world.device)
    parts = StepParts(training.trainer.engine, clock)
    seconds: list[float] = []
    results: list[StepResult] = []
    steps = training.batches.iterate(0)
    try:
        for number in range(data.steps.num_steps):
            if number == warm_up:
                parts.clear()
                if on_gpu:
                    torch.cuda.reset_peak_memory_stats(world.device)
            begin = clock.now()
            with parts.part("loader"):
                batch = next(steps)
            _, settings = apply_schedules(training.trainer, batch)
            results.append(train_step(training.trainer, batch, settings))
            seconds.append(clock.seconds_since(begin))
            parts.end_step(seconds[-1])
        peak = torch.cuda.max_memory_allocated(world.device) if on_gpu else None
        return Steps(seconds[warm_up:], parts.milliseconds(), peak, results, data.tokenizer.vocab_size)
    finally:
        training.trainer.engine.destroy()
        del training
        gc.collect()
        if on_gpu:
            torch.cuda.empty_cache()


def _check_losses(config: RunConfig, data: Data, training: Training, world: World) -> None:
    """Compare the loss of each token of a few windows with an fp32 model whose operations are plain torch."""
    if config.train.zero_stage == 3:
        # Every rank would need the whole model for the comparison.
        return
    windows = min(_GATE_WINDOWS, config.micro_batch_windows(world.data_ranks))
    place = world.data_rank, world.data_ranks
    loader = Loader(data.stream, data.plan, data.steps, data.objective, *place, windows)
    batch = loader.batch(0).micro_batches[0].to(world.device)
    example = data.objective.example(batch)
    seed, targets = config.seed_of("weights"), Targets(example.targets_BT)
    plain = build_model(config.model, vocab_size=data.tokenizer.vocab_size, seed=seed).to(world.device)
    engine = training.trainer.engine
    engine.eval()
    with torch.no_grad():
        ours = engine(**example.inputs, targets=targets).nats
        with assume(impl="torch"):
            expected = plain.eval()(**example.inputs, targets=targets).nats
    engine.train()
    own = engine.module.sequence.of(ours.shape[1])
    squares = own.part(ours - expected)[own.part(example.is_scored_BT)].double().square()
    # All ranks come to the same verdict, so none waits for one that has stopped.
    total, number = world.sum(torch.stack([squares.sum(), squares.new_tensor(squares.numel())])).tolist()
    difference = math.sqrt(total / number)
    gate(
        difference <= _TOLERANCE_NATS[config.train.precision],
        bench="train",
        what=f"the plain definitions in fp32: its losses differ by {difference:.3g} nats (root mean square)",
        rule="must have the losses of the plain definitions before the first step",
    )


def rows_of(config: RunConfig, found: Steps, world: World, device_name: str) -> list[Row]:
    """The rows of the measured steps.

    Args:
        config: The run, with the precision resolved.
        found: The steps.
        world: The ranks.
        device_name: Name of one device, for its peak.
    """
    rates = _rates(config, found.seconds, world.world_size)
    case = _case(config, device_name)

    def row(metric: Metric, values: Sequence[float], note: str = "") -> Row:
        return row_of(
            "train",
            case,
            OURS,
            metric,
            values,
            note=note,
            packages=("reptrain", "torch", "deepspeed"),
            device=device_name,
            threads=torch.get_num_threads(),
        )

    rows = [
        row(TRAINING, rates, f"{world.world_size} devices" if world.world_size > 1 else ""),
        row(STEP, [1e3 * seconds for seconds in found.seconds]),
    ]
    rows += [
        row(Metric(f"time of {name}", "ms", larger_is_better=False), values)
        for name, values in found.parts_ms.items()
    ]
    if found.peak_bytes is not None:
        rows.append(row(MEMORY, [found.peak_bytes / 2**30]))
    peak = peak_flops(device_name, product_precision(config.train, world.device))
    if peak is not None:
        flops = utilization_flops(
            config.model,
            found.vocab_size,
            config.example_shape,
            recompute=config.train.activation_checkpointing,
        )
        for name, of_window in flops.items():
            percent = [100 * rate * of_window / config.window_tokens / peak for rate in rates]
            rows.append(row(Metric(name, "%"), percent))
    return rows


def _rates(config: RunConfig, seconds: Sequence[float], world_size: int) -> list[float]:
    tokens = config.train.batch_windows * config.window_tokens / world_size
    return [tokens_per_s(tokens, spent) for spent in seconds]


def _case(config: RunConfig, device_name: str) -> str:
    train = config.train
    compiled = "" if train.compile == "none" else f", compile {train.compile}"
    return f"{config.name}, {train.batch_windows} windows, {train.precision}{compiled}, {device_name}"


def _peer_rows(config: RunConfig, world: World, ours: Steps, warm_up: int, device_name: str) -> list[Row]:
    """The row of a transformers model with the same sizes, batch and precision."""
    name = "transformers"
    peer = (
        transformers_loop(config, str(world.device))
        if world.world_size == 1
        else Missing("measured on one rank only")
    )
    case = _case(config, device_name)
    common = {
        "packages": ("transformers", "torch"),
        "device": device_name,
        "threads": torch.get_num_threads(),
    }
    if isinstance(peer, Missing):
        return [row_of("train", case, name, TRAINING, [], note=peer.reason, **common)]
    clock, seconds = Clock(world.device), []
    for _ in range(warm_up + len(ours.seconds)):
        begin = clock.now()
        next(peer)
        seconds.append(clock.seconds_since(begin))
    values = _rates(config, seconds[warm_up:], 1)
    # Not interleaved, so that both models need not fit at once: every step is compared with our median.
    middle = tokens_per_s(config.train.batch_windows * config.window_tokens, statistics.median(ours.seconds))
    note = "a plain loop over one batch of random tokens"
    return [row_of("train", case, name, TRAINING, values, ours=[middle] * len(values), note=note, **common)]
