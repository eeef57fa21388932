"""The training runs of the kit: tiny ones for the goldens, and runs of published models that are timed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from rows import ROOT


class TimedRun(NamedTuple):
    """A run that is timed on a GPU."""

    name: str
    settings: dict[str, Any]
    """As in a YAML file, without the store."""
    batch_windows: int
    steps: int = 8

    @property
    def model(self) -> str:
        """Name of the model, as in configs/bench."""
        return self.name.split(" batch ")[0].removesuffix(" compiled blocks").replace(" ", "-")


def timed_runs() -> list[TimedRun]:
    """The timed runs, the most important first, because time may be short."""
    block = {"train": {"compile": "block"}}
    t5, decoder = _settings("t5-base"), _settings("decoder-125m")
    return [
        TimedRun("t5-base batch 128", t5, 128, 6),
        TimedRun("t5-base batch 16", t5, 16),
        TimedRun("decoder-125m", decoder, 32),
        TimedRun("decoder-560m", _settings("decoder-560m"), 16, 6),
        TimedRun("dense twin", _settings("dense-twin"), 32),
        TimedRun("moe", _settings("moe"), 32),
        TimedRun("t5-base batch 16 compiled blocks", t5 | block, 16),
        TimedRun("t5-base batch 128 compiled blocks", t5 | block, 128, 6),
        TimedRun("decoder-125m compiled blocks", decoder | block, 32),
    ]


def _settings(name: str) -> dict[str, Any]:
    """The settings of a file in configs/bench."""
    from reptrain.config.load import read_yaml

    return {"data": {}} | read_yaml(ROOT / "configs" / "bench" / f"{name}.yaml")


def rehearsed(run: TimedRun) -> TimedRun:
    """The same run at a size that a CPU trains in seconds."""
    model = dict(run.settings["model"])
    model |= {"d_model": 32, "num_heads": 2, "d_ff": 32, "vocab_size": 2500}
    layers = [key for key in model if key.endswith("_layers")]
    model |= dict.fromkeys(layers, 1)
    if "head_dim" in model:
        model["head_dim"] = 16
    if "max_positions" in model:
        model["max_positions"] = 64
    if "moe" in model:
        model["moe"] = model["moe"] | {"num_experts": 4, "d_ff": 32}
    settings = run.settings | {"model": model}
    settings["data"] = {"window_tokens": 64} if settings["data"] else {}
    if settings["model"]["family"] == "t5":
        settings["objective"] = {"name": "span_corruption", "input_tokens": 48}
        settings["data"] = {}
    return TimedRun(run.name, settings, 8, 3)


TINY_MODEL = {"d_model": 32, "num_heads": 2, "d_ff": 64}
TINY = {
    "decoder": {
        "data": {"window_tokens": 64},
        "model": {
            "family": "decoder",
            "num_layers": 2,
            **TINY_MODEL,
            "dropout": {"mlp": 0.1, "residual": 0.1},
        },
    },
    "t5": {
        "data": {},
        "objective": {"name": "span_corruption", "input_tokens": 48},
        "model": {"family": "t5", "num_encoder_layers": 2, "num_decoder_layers": 2, "head_dim": 16}
        | TINY_MODEL
        | {"dropout": {"attention": 0.1, "residual": 0.1}},
    },
    "moe": {
        "data": {"window_tokens": 64},
        "model": {"family": "decoder", "num_layers": 2, **TINY_MODEL}
        | {"moe": {"num_experts": 4, "top_k": 2, "d_ff": 32, "group_windows": 4}},
    },
}
TINY_STEPS = 3


def config_of(settings: dict[str, Any], store: Path, batch_windows: int, steps: int, **train: Any) -> Any:
    """A run's configuration: exactly ``steps`` batches, and two of them are an epoch."""
    from reptrain.config import RunConfig
    from reptrain.config.load import validate

    common = {
        "name": "gpu",
        "data": settings["data"] | {"store": str(store)},
        "train": settings.get("train", {}) | train | {"batch_windows": batch_windows},
        "optimizer": {"lr": 1e-4},
        "evaluate": {"max_windows": 1},
    }
    first = validate(RunConfig, settings | common)
    common["data"] = common["data"] | {"unique_tokens": 2 * first.window_tokens * batch_windows}
    common["train"] = common["train"] | {"total_tokens": f"{steps / 2}epochs"}
    return validate(RunConfig, settings | common)


def train_steps(config: Any, device: str) -> Iterator[tuple[Any, float]]:
    """Train step by step as `reptrain train` does, without a run folder: the results and the seconds.

    Args:
        config: The run.
        device: "cpu" or "cuda".
    """
    import gc
    import time

    import torch

    from reptrain.distributed.world import choose_device, join
    from reptrain.training.loop import apply_schedules
    from reptrain.training.setup import open_data, prepare
    from reptrain.training.step import train_step

    place = choose_device("cuda" if device == "cuda" else "cpu")
    config = config.on_device(place.type)
    data, world = open_data(config), join(place)
    training = prepare(config, data, world)
    wait = torch.cuda.synchronize if place.type == "cuda" else (lambda: None)
    try:
        for batch in training.batches.iterate(0):
            begin = time.perf_counter()
            _, settings = apply_schedules(training.trainer, batch)
            result = train_step(training.trainer, batch, settings)
            wait()
            yield result, time.perf_counter() - begin
    finally:
        training.trainer.engine.destroy()
        del training
        gc.collect()
        if place.type == "cuda":
            torch.cuda.empty_cache()
