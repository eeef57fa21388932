"""Throughput of a run relative to the peak of its devices."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from reptrain.config.model import ModelConfig
from reptrain.config.objectives import ExampleShape
from reptrain.config.sections import TrainConfig
from reptrain.distributed.precision import product_precision
from reptrain.sizes import peak_flops, train_flops_per_window


@dataclass(frozen=True)
class Throughput:
    """Constants that turn tokens per second (see `reptrain.runs.pace`) into model FLOPs utilization.

    Args:
        flops_per_token: Training FLOPs per raw token (see `train_flops_per_window`).
        world_size: Devices.
        device_peak: FLOP/s of one device at the run's precision; None if no figure is published.
    """

    flops_per_token: float
    world_size: int
    device_peak: float | None

    def mfu(self, tokens_per_s_per_device: float) -> float | None:
        """Model FLOPs utilization in [0, 1]; recomputed activations do not count."""
        if self.device_peak is None:
            return None
        return tokens_per_s_per_device * self.flops_per_token / self.device_peak


def throughput_of(
    model: ModelConfig,
    train: TrainConfig,
    *,
    shape: ExampleShape,
    window_tokens: int,
    vocab_size: int,
    world_size: int,
    device: torch.device,
) -> Throughput:
    """The constants of a run on a device; tokens are raw tokens, as in the ledger."""
    flops_per_window = train_flops_per_window(model, vocab_size, shape)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return Throughput(
        flops_per_token=flops_per_window / window_tokens,
        world_size=world_size,
        device_peak=peak_flops(name, product_precision(train, device)),
    )
