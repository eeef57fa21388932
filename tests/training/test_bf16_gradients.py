"""Passes over the gradients in bf16 at ZeRO stage 1: the results of DeepSpeed's own, with less traffic."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from reptrain.config import RunConfig
from reptrain.config.load import validate
from reptrain.distributed.bf16_gradients import save_gradient_passes
from reptrain.distributed.world import choose_device, join
from reptrain.training import setup
from reptrain.training.loop import apply_schedules
from reptrain.training.setup import Training, open_data, prepare
from reptrain.training.step import train_step

MODEL = {"family": "decoder", "num_layers": 2, "d_model": 64, "num_heads": 2, "d_ff": 128}
# The bytes that the page on performance lists: AdamW, copy, norm, clipping, weights in bf16.
BYTES = 28 + 6 + 4 + 8 + 6


class Bytes(TorchDispatchMode):
    """Counts the bytes that operations read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), named: Any = None) -> Any:
        named = named or {}
        arguments = operation._schema.arguments
        result = operation(*args, **named)
        # A reduction over one rank moves nothing, nor does a view.
        if operation.is_view or any(word in operation.name() for word in ("view", "detach", "c10d")):
            return result
        overwrites = any(word in operation.name() for word in ("copy_", "zero_"))
        for argument, values in zip(arguments, args, strict=False):
            is_written = argument.alias_info is not None and argument.alias_info.is_write
            # AdamW's schema names the gradients too, which it writes only if it unscales them.
            is_written &= argument.name != "grads"
            is_read = not (is_written and overwrites)
            self.count += (is_read + is_written) * _bytes(values)
        if operation._schema.returns and operation._schema.returns[0].alias_info is None:
            self.count += _bytes(result)
        return result


def _bytes(values: Any) -> int:
    return sum(x.numel() * x.element_size() for x in tree_leaves(values) if isinstance(x, Tensor))


def train_bf16(store: Path, model: dict[str, Any], **optimizer: Any) -> Training:
    """A run in bf16 at ZeRO stage 1, before its first step."""
    settings: dict[str, Any] = {
        "name": "bf16",
        "data": {"store": str(store), "window_tokens": 32},
        "model": model,
        "train": {"batch_windows": 4, "total_tokens": "1epochs", "precision": "bf16", "zero_stage": 1},
        "optimizer": {"lr": 1e-2, **optimizer},
    }
    settings["train"] |= {"micro_batch_windows": settings["optimizer"].pop("micro_batch_windows", 4)}
    config = validate(RunConfig, settings)
    return prepare(config, open_data(config), join(choose_device("cpu")))


class Steps(NamedTuple):
    """Losses and gradient norms of steps, and then the weights and their moments."""

    figures: list[tuple[float, float | None]]
    state: list[Tensor]


def steps_of(training: Training, num_steps: int) -> Steps:
    """The first steps of a run. A layer has no gradient in the second step."""
    trainer, figures = training.trainer, []
    frozen = next(training.trainer.engine.module.blocks[0].parameters())
    for batch in training.batches.iterate(0):
        _, values = apply_schedules(trainer, batch)
        handle = frozen.register_post_accumulate_grad_hook(drop) if batch.step == 1 else None
        result = train_step(trainer, batch, values)
        if handle is not None:
            handle.remove()
        figures.append((result.loss_nats, result.grad_norm))
        if len(figures) == num_steps:
            break
    optimizer = trainer.engine.optimizer
    moments = [x for state in optimizer.optimizer.state.values() for x in state.values()]
    return Steps(figures, [*optimizer.fp32_groups_flat_partition, *optimizer.bf16_groups_flat, *moments])


def drop(parameter: Tensor) -> None:
    """As a parameter that does not take part in the loss."""
    parameter.grad = None


@pytest.mark.parametrize("micro_batch_windows", [4, 2])
def test_gradients_take_fewer_passes_with_the_same_results(
    store_path: Path,
    one_thread: None,
    monkeypatch: pytest.MonkeyPatch,
    micro_batch_windows: int,
) -> None:
    optimizer = {"clip_grad_norm": 0.5, "micro_batch_windows": micro_batch_windows}
    fewer = steps_of(train_bf16(store_path, MODEL, **optimizer), 4)
    monkeypatch.setattr(setup, "save_gradient_passes", lambda *_, **__: None)
    expected = steps_of(train_bf16(store_path, MODEL, **optimizer), 4)
    assert fewer.figures == expected.figures
    assert all(torch.equal(x, y) for x, y in zip(fewer.state, expected.state, strict=True))


def test_norm_of_whole_groups_is_that_of_their_parameters(store_path: Path, one_thread: None) -> None:
    expected = steps_of(train_bf16(store_path, MODEL), 3)
    training = train_bf16(store_path, MODEL)
    # As on a GPU.
    save_gradient_passes(training.trainer.engine, world_size=1, on_gpu=True)
    norms = [norm for _, norm in steps_of(training, 3).figures]
    assert norms == pytest.approx([norm for _, norm in expected.figures], rel=1e-5)


@pytest.fixture
def updates(store_path: Path, one_thread: None) -> Iterator[tuple[int, int]]:
    """Bytes that the update of a step moves, all in all, and number of parameters."""
    training = train_bf16(store_path, MODEL, clip_grad_norm=1e-3)
    trainer, counted = training.trainer, Bytes()
    optimizer = trainer.engine.optimizer
    for owner, name in ((optimizer, "update_hp_grads"), (trainer.engine, "allreduce_gradients")):
        setattr(owner, name, within(counted, getattr(owner, name)))
    trainer.engine.step = within(counted, trainer.engine.step)
    for batch in training.batches.iterate(0):
        _, values = apply_schedules(trainer, batch)
        counted.count = 0
        train_step(trainer, batch, values)
        if batch.step == 2:
            break
    yield counted.count, sum(p.numel() for p in trainer.engine.module.parameters())


def within(mode: TorchDispatchMode, function: Any) -> Any:
    """The same function, under a mode."""

    def call(*arguments: Any, **named: Any) -> Any:
        with mode:
            return function(*arguments, **named)

    return call


def test_update_moves_no_more_bytes_than_documented(updates: tuple[int, int]) -> None:
    moved, num_parameters = updates
    # Gain vectors and counters make up the rest.
    assert BYTES <= moved / num_parameters < BYTES + 0.5


def test_optimizer_of_deepspeed_moves_the_bytes_that_the_page_lists(
    monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setattr(setup, "save_gradient_passes", lambda *_, **__: None)
    moved, num_parameters = request.getfixturevalue("updates")
    assert 88 <= moved / num_parameters < 88.5
