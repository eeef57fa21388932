"""How fast a step was, and how near to the device's peak."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from reptrain.config.schema import RunConfig
from reptrain.distributed.precision import product_precision
from reptrain.sizes import peak_flops, train_flops_per_window


@dataclass(frozen=True)
class Throughput:
    """What a run's speed is held against; `reptrain.runs.pace` defines the speed.

    Args:
        flops_per_token: Training FLOPs of a raw token (see `train_flops_per_window`).
        world_size: Devices.
        device_peak: FLOP/s of one device at the run's precision; None where no figure is published.
    """

    flops_per_token: float
    world_size: int
    device_peak: float | None

    def mfu(self, tokens_per_s_per_device: float) -> float | None:
        """Model FLOPs utilisation in [0, 1]; recomputed activations do not count."""
        if self.device_peak is None:
            return None
        return tokens_per_s_per_device * self.flops_per_token / self.device_peak


def throughput_of(config: RunConfig, *, vocab_size: int, world_size: int, device: torch.device) -> Throughput:
    """The rates' constants for a run on a device; tokens are raw ones, as the ledger counts them."""
    flops_per_window = train_flops_per_window(config.model, vocab_size, config.example_shape)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu"
    return Throughput(
        flops_per_token=flops_per_window / config.window_tokens,
        world_size=world_size,
        device_peak=peak_flops(name, product_precision(config.train, device)),
    )
