from collections.abc import Callable

import pytest

from reptrain.config import RunConfig
from reptrain.distributed.deepspeed_config import deepspeed_config
from reptrain.errors import ConfigError


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_deepspeed_config_keeps_gradients_in_fp32_under_bf16(
    tiny: Callable[..., RunConfig], stage: int
) -> None:
    config = tiny("train.precision=bf16", f"train.zero_stage={stage}")
    settings = deepspeed_config(
        config, world_size=2, micro_batch_windows=3, micro_steps=2, bucket_elements=9, on_gpu=False
    )
    assert settings["zero_optimization"] == {"stage": stage, "reduce_bucket_size": 9}
    assert settings["bf16"] == {"enabled": True}
    assert settings["data_types"] == {"grad_accum_dtype": "fp32"}
    assert settings["communication_data_type"] == "fp32"


def test_deepspeed_config_batch_sizes_are_consistent(tiny: Callable[..., RunConfig]) -> None:
    settings = deepspeed_config(
        tiny(), world_size=2, micro_batch_windows=3, micro_steps=4, bucket_elements=9, on_gpu=False
    )
    assert settings["train_batch_size"] == 24
    assert "bf16" not in settings and "fp16" not in settings


@pytest.mark.parametrize("on_gpu", [True, False])
def test_an_offloaded_optimizer_is_pinned_on_a_gpu_only(tiny: Callable[..., RunConfig], on_gpu: bool) -> None:
    config = tiny("train.zero_stage=2", "train.offload_optimizer=cpu")
    settings = deepspeed_config(
        config, world_size=2, micro_batch_windows=3, micro_steps=4, bucket_elements=9, on_gpu=on_gpu
    )
    assert settings["zero_optimization"]["offload_optimizer"] == {"device": "cpu", "pin_memory": on_gpu}
    with pytest.raises(ConfigError, match=r"train\.zero_stage"):
        tiny("train.offload_optimizer=cpu")


def _zero_settings(config: RunConfig) -> dict[str, object]:
    settings = deepspeed_config(
        config, world_size=2, micro_batch_windows=3, micro_steps=4, bucket_elements=9, on_gpu=True
    )
    found: dict[str, object] = settings["zero_optimization"]
    return found


def test_offloaded_parameters_need_a_partition_of_them(tiny: Callable[..., RunConfig]) -> None:
    config = tiny("train.zero_stage=3", "train.offload_parameters=cpu")
    assert _zero_settings(config)["offload_param"] == {"device": "cpu", "pin_memory": True}
    assert "offload_param" not in _zero_settings(tiny("train.zero_stage=3"))
    with pytest.raises(ConfigError, match=r"set train\.zero_stage=3"):
        tiny("train.zero_stage=2", "train.offload_parameters=cpu")


def test_overlapped_communication_needs_partitioned_gradients(tiny: Callable[..., RunConfig]) -> None:
    assert _zero_settings(tiny("train.zero_stage=2", "train.overlap_communication=true"))["overlap_comm"]
    # The default is DeepSpeed's: off at stages 1 and 2, on at stage 3.
    assert "overlap_comm" not in _zero_settings(tiny("train.zero_stage=2"))
    with pytest.raises(ConfigError, match=r"set train\.zero_stage=2"):
        tiny("train.zero_stage=1", "train.precision=bf16", "train.overlap_communication=true")
