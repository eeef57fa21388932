"""Weights for ZeRO 3: partitioned over the ranks one parameter at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from reptrain.distributed.deepspeed_config import evaluation_settings
from reptrain.distributed.world import World
from reptrain.model import Decoder, EncoderDecoder
from reptrain.model.init import allocate_in_turn


def partition_weights(
    model: Decoder | EncoderDecoder,
    fill: Callable[[str, Tensor], None],
    settings: Mapping[str, Any],
    device: torch.device,
) -> None:
    """Give a model on the meta device its weights, of which each rank keeps its partition.

    No rank holds more than one whole parameter at a time. Every rank calls this function.

    Args:
        model: The model; its parameters are replaced.
        fill: Fills a parameter by name, in fp32 on the CPU.
        settings: Configuration of DeepSpeed.
        device: Where the partitions are kept.

    Source:
        Rajbhandari et al., "ZeRO-Infinity: Breaking the GPU memory wall for extreme scale deep learning",
        2021, section 7.2 (partitioning at initialization).
    """
    from deepspeed.runtime.zero import Init

    # An empty module: what DeepSpeed sets up for a module, without its parameters.
    partitioner: Any = Init(module=nn.Module(), config_dict_or_path=dict(settings))
    dtype = next((dtype for name, dtype in _DTYPES.items() if name in settings), torch.float32)

    @torch.no_grad()
    def place(name: str, parameter: nn.Parameter) -> None:
        fill(name, parameter.data)
        parameter.data = parameter.data.to(device, dtype)
        partitioner._convert_to_zero_parameters([parameter])

    allocate_in_turn(model, device, place)


_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@contextmanager
def partitioned(
    model: Decoder | EncoderDecoder, fill: Callable[[str, Tensor], None], world: World
) -> Iterator[Decoder | EncoderDecoder]:
    """A model in fp32 and evaluation mode. Each layer gathers its weights from all ranks when it computes.

    All ranks make the same number of forward passes.

    Args:
        model: The model, on the meta device.
        fill: Fills a parameter by name, in fp32 on the CPU.
        world: The ranks.
    """
    import deepspeed

    settings = evaluation_settings(world.world_size)
    partition_weights(model, fill, settings, world.device)
    engine, *_ = deepspeed.initialize(model=model, config=settings)
    try:
        yield model.eval()
    finally:
        engine.destroy()
        release_partitions(model)


def release_partitions(model: nn.Module) -> None:
    """Free the weights of a partitioned model after its last use. DeepSpeed keeps a reference to it."""
    for parameter in model.parameters():
        if hasattr(parameter, "ds_tensor"):
            parameter.ds_tensor.data = parameter.ds_tensor.data.new_empty(0)
