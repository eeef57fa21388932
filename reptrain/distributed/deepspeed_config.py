"""The DeepSpeed configuration of a run."""

from __future__ import annotations

from typing import Any

from reptrain.config.finetune import FinetuneConfig
from reptrain.config.schema import RunConfig


def deepspeed_config(
    config: RunConfig | FinetuneConfig,
    *,
    world_size: int,
    micro_batch_windows: int,
    micro_steps: int,
    bucket_elements: int,
    on_gpu: bool,
) -> dict[str, Any]:
    """DeepSpeed's settings for a run.

    Args:
        config: The run, or the fine-tuning.
        world_size: Number of data-parallel ranks.
        micro_batch_windows: Rows of a micro-batch.
        micro_steps: Micro-batches of a rank in one optimizer step.
        bucket_elements: Gradients that are reduced together at ZeRO 1 to 3.
        on_gpu: Whether the model is on a GPU.

    Returns:
        The dict for `deepspeed.initialize`. Its batch sizes count rows, padding rows included. The training
        step normalizes the loss by tokens, not DeepSpeed.
    """
    train = config.train
    settings: dict[str, Any] = {
        "train_batch_size": world_size * micro_batch_windows * micro_steps,
        "train_micro_batch_size_per_gpu": micro_batch_windows,
        "gradient_accumulation_steps": micro_steps,
        "gradient_clipping": config.optimizer.clip_grad_norm,
        "zero_optimization": {"stage": train.zero_stage, "reduce_bucket_size": bucket_elements},
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 2**31,
        "wall_clock_breakdown": False,
    }
    # Pinned memory needs a GPU.
    host = {"device": "cpu", "pin_memory": on_gpu}
    if train.offload_optimizer == "cpu":
        # The update is the optimizer's own, not DeepSpeed's for CPUs.
        settings["zero_optimization"]["offload_optimizer"] = host
        settings["zero_force_ds_cpu_optimizer"] = False
    if train.offload_parameters == "cpu":
        settings["zero_optimization"]["offload_param"] = host
    if train.overlap_communication:
        settings["zero_optimization"]["overlap_comm"] = True
    if train.precision == "bf16":
        settings["bf16"] = {"enabled": True}
        settings["data_types"] = {"grad_accum_dtype": "fp32"}
        settings["communication_data_type"] = "fp32"
    if train.precision == "fp16":
        settings["fp16"] = {"enabled": True, "loss_scale": 0}
        settings["communication_data_type"] = "fp32"
    return settings


def evaluation_settings(world_size: int) -> dict[str, Any]:
    """DeepSpeed's settings for a partitioned model that is not trained.

    Args:
        world_size: Number of ranks.
    """
    return {
        # Not used, but DeepSpeed requires them.
        "train_batch_size": world_size,
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": {"stage": 3},
        "steps_per_print": 2**31,
    }
