"""Training steps compared with a bare torch loop of the same model, and with other trainers at equal sizes.

A value is the tokens per second over a few steps. All implementations of a case train in one process, one
after the other in every repetition, with the same batch, precision, number of threads, and sizes.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch

from reptrain.bench.made_store import made_store
from reptrain.bench.measure import Measurement, Metric, Missing, compared, gate, torch_threads
from reptrain.bench.peers.litgpt_loop import litgpt_loop
from reptrain.bench.peers.plain_gpt import plain_gpt_loop
from reptrain.bench.peers.trainers import transformers_loop, transformers_trainer
from reptrain.bench.rows import OURS, Row
from reptrain.bench.two_runs import two_runs
from reptrain.config import RunConfig
from reptrain.config.load import validate
from reptrain.config.model import DecoderConfig

TRAINING = Metric("training", "tokens/s")
BARE, TWIN, UNDROPPED = "bare torch loop", "dense twin", "the same without dropout"
TRAINER, PLAIN_GPT, LITGPT = "transformers Trainer", "nanoGPT-style loop", "LitGPT model"
_DROPOUT = {"embedding": 0.1, "attention": 0.1, "mlp": 0.1, "residual": 0.1}
# In bf16, one rounds the weights and the other the operations.
_LOSS_TOLERANCE = {"fp32": 1e-4, "bf16": 1e-2}


class Case(NamedTuple):
    """A model and its training settings."""

    name: str
    model: Mapping[str, Any]
    train: Mapping[str, Any]
    batch_windows: int = 8

    def config(self, store: Path, steps: int, epochs: int = 1) -> RunConfig:
        """The run's configuration: exactly ``steps`` steps in each epoch."""
        is_t5 = self.model["family"] == "t5"
        settings: dict[str, Any] = {
            "name": "bench",
            "data": {"store": str(store)} | ({} if is_t5 else {"window_tokens": 256}),
            "model": dict(self.model),
            "train": {"batch_windows": self.batch_windows, "total_tokens": f"{epochs}epochs", **self.train},
            "optimizer": {"lr": 1e-4},
        }
        if is_t5:
            settings["objective"] = {"name": "span_corruption", "input_tokens": 256}
        window_tokens = validate(RunConfig, settings).window_tokens
        settings["data"] |= {"unique_tokens": steps * self.batch_windows * window_tokens}
        return validate(RunConfig, settings)


def _decoder(width: int, layers: int, d_ff: int, **more: Any) -> dict[str, Any]:
    sizes = {"d_model": width, "num_layers": layers, "num_heads": width // 32, "d_ff": d_ff}
    return {"family": "decoder", "vocab_size": 4096, "tie_embeddings": True, **sizes, **more}


def _t5(width: int, layers: int, d_ff: int, **more: Any) -> dict[str, Any]:
    sizes = {"d_model": width, "num_heads": width // 32, "head_dim": 32, "d_ff": d_ff, "vocab_size": 4096}
    return {
        "family": "t5",
        "num_encoder_layers": layers,
        "num_decoder_layers": layers,
        "tie_embeddings": True,
        **sizes,
        **more,
    }


_FP32 = {"precision": "fp32", "zero_stage": 0}
_COMPILED = {"precision": "bf16", "zero_stage": 1, "compile": "block"}
_SIZES = {
    "decoder 1.4M": _decoder(128, 4, 352),
    "T5 1.6M": _t5(128, 2, 256),
    "decoder 20M": _decoder(384, 10, 1024),
    "T5 20M": _t5(384, 5, 1024),
}


def run(*, repetitions: int, quick: bool) -> Iterator[Row]:
    """Measure training steps on a CPU.

    Args:
        repetitions: Number of values of each implementation.
        quick: Whether to measure the smallest sizes in fp32 only.
    """
    precisions = {"fp32": _FP32} if quick else {"fp32": _FP32, "bf16, compiled blocks": _COMPILED}
    with tempfile.TemporaryDirectory(prefix="reptrain-bench-") as name, torch_threads(1):
        store = made_store(Path(name), 1 << 20).path
        for precision, train in precisions.items():
            for size in list(_SIZES)[:2] if quick else _SIZES:
                yield from steps_of(Case(f"{size}, {precision}", _SIZES[size], train), store, repetitions)
            for size in ("decoder 1.4M", "T5 1.6M"):
                model = _SIZES[size] | {"dropout": _DROPOUT}
                with_dropout = Case(f"{size}, {precision}, dropout at every site", model, train)
                plain = Case(size, _SIZES[size], train)
                yield from beside(with_dropout, UNDROPPED, plain, store, repetitions)
        moe = {"num_experts": 8, "top_k": 1, "group_windows": 8}
        sparse = Case(
            "MoE of 8 experts, top 1, decoder 1.4M, fp32", _SIZES["decoder 1.4M"] | {"moe": moe}, _FP32
        )
        yield from beside(sparse, TWIN, Case("", _SIZES["decoder 1.4M"], _FP32), store, repetitions)
        yield from at_once(Case("decoder 1.4M", _SIZES["decoder 1.4M"], _FP32), store, repetitions)


def steps_of(case: Case, store: Path, repetitions: int) -> list[Row]:
    """Rows of one case: this trainer, the bare loop, and other trainers."""
    steps = 4 * (repetitions + 2)
    config = case.config(store, steps)
    ours, bare = trainer_steps(config), bare_steps(config)
    first, first_bare = next(ours), next(bare)
    gate(
        abs(first - first_bare) <= _LOSS_TOLERANCE[config.train.precision] * abs(first_bare),
        bench="step",
        what=BARE,
        rule="must have the same first loss",
    )
    tokens = case.batch_windows * config.window_tokens
    ways: dict[str, Measurement | Missing] = {OURS: _rate(ours, tokens), BARE: _rate(bare, tokens)}
    notes = {BARE: "no digests, no checks for finite values"}
    compiled = config.train.compile != "none"
    peers = {TRAINER: transformers_trainer(config, steps=steps, compiled=compiled)}
    if compiled:
        notes[TRAINER] = "compiles the whole model"
    else:
        peers["transformers"] = transformers_loop(config)
        notes["transformers"] = "a plain loop over one batch, without its Trainer"
        if isinstance(config.model, DecoderConfig):
            peers[PLAIN_GPT] = plain_gpt_loop(config)
            notes[PLAIN_GPT] = "random windows of a flat file, no digests, no checks"
            peers[LITGPT] = litgpt_loop(config)
            notes[LITGPT] = "a plain loop over one batch, without Fabric"
    ways |= {name: peer if isinstance(peer, Missing) else _rate(peer, tokens) for name, peer in peers.items()}
    packages: dict[str, Sequence[str]] = dict.fromkeys(peers, ("transformers", "torch"))
    packages |= {OURS: ("reptrain", "torch", "deepspeed"), PLAIN_GPT: ("torch",), LITGPT: ("litgpt", "torch")}
    return compared("step", case.name, TRAINING, ways, repetitions, packages=packages, notes=notes)


def beside(case: Case, name: str, other: Case, store: Path, repetitions: int) -> list[Row]:
    """Rows of this trainer in one case, compared with another case."""
    steps = 4 * (repetitions + 2)
    config, plain = case.config(store, steps), other.config(store, steps)
    tokens = case.batch_windows * config.window_tokens
    ways: dict[str, Measurement | Missing] = {
        OURS: _rate(trainer_steps(config), tokens),
        name: _rate(trainer_steps(plain), tokens),
    }
    return compared("step", case.name, TRAINING, ways, repetitions, packages={OURS: ("torch", "deepspeed")})


def at_once(case: Case, store: Path, repetitions: int) -> list[Row]:
    """Rows of two runs with one thread each at the same time, compared with one run with two threads."""
    config = case.config(store, 100, epochs=1000)
    with two_runs(config, case.batch_windows * config.window_tokens) as ways:
        name = f"{case.name}, fp32, two runs of one thread at once"
        return compared("step", name, TRAINING, ways, repetitions, packages={OURS: ("torch",)}, threads=2)


def _rate(steps: Iterator[float], tokens: int, number: int = 3) -> Callable[[], float]:
    """Measures ``number`` steps of ``tokens`` tokens each."""

    def measure() -> float:
        begin = time.perf_counter()
        for _ in range(number):
            next(steps)
        return number * tokens / (time.perf_counter() - begin)

    return measure


def trainer_steps(config: RunConfig, device: str = "cpu") -> Iterator[float]:
    """Train like `reptrain train`, but without a run folder: the loss of each step, in nats per token."""
    from reptrain.distributed.world import choose_device, in_groups, join
    from reptrain.training.loop import apply_schedules
    from reptrain.training.setup import open_data, prepare
    from reptrain.training.step import train_step

    world = in_groups(join(choose_device(device)), config.train)
    training = prepare(config, open_data(config), world)
    for batch in training.batches.iterate(0):
        _, settings = apply_schedules(training.trainer, batch)
        yield train_step(training.trainer, batch, settings).loss_nats


def bare_steps(config: RunConfig) -> Iterator[float]:
    """The same model, batches and optimizer in a plain torch loop: the loss of each step."""
    from reptrain.batch.loader import Loader
    from reptrain.model import DropoutContext, build_model
    from reptrain.model.blocks import compile_blocks
    from reptrain.training.optimizers import build_optimizer, set_learning_rate
    from reptrain.training.regularize import Settings
    from reptrain.training.setup import open_data
    from reptrain.training.targets import targets_of

    data = open_data(config)
    model = build_model(config.model, vocab_size=data.tokenizer.vocab_size, seed=config.seed_of("weights"))
    if config.train.compile == "block":
        compile_blocks(model)
    optimizer = build_optimizer(model, config.optimizer)
    set_learning_rate(optimizer, 1e-6)
    windows = config.train.batch_windows
    loader = Loader(data.stream, data.plan, data.steps, data.objective, 0, 1, windows)
    model.train()
    for share in loader.iterate():
        (rows,) = share.micro_batches
        example = data.objective.example(rows)
        dropout = DropoutContext(seed=config.seed_of("dropout"), step=share.step, row_B=rows.row_B)
        factor = torch.tensor(1 / share.loss_tokens, dtype=torch.float64)
        with torch.autocast("cpu", torch.bfloat16, enabled=config.train.precision == "bf16"):
            targets = targets_of(example, Settings())
            output = model(**example.inputs, dropout=dropout, targets=targets, loss_factor=factor)
        output.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        yield output.loss.item()
