"""Precision of a run on its device."""

from __future__ import annotations

import torch

from reptrain.config.sections import TrainConfig
from reptrain.errors import ConfigError
from reptrain.sizes.flops import Precision


def check_precision(precision: str, device: torch.device) -> None:
    """Refuse a precision that a device does not support.

    Raises:
        ConfigError: For fp16 on a CPU.
    """
    if precision == "fp16" and device.type == "cpu":
        raise ConfigError(
            "train.precision",
            got="fp16 on a CPU",
            rule="must be fp32 or bf16 without a GPU",
            remedy="Set train.precision=fp32.",
        )


def allow_tf32(train: TrainConfig, device: torch.device) -> None:
    """Set, for this process, whether torch may use TF32 for matrix products of fp32 tensors.

    Triton kernels read the same setting (`matmul_precision`). On a CPU it has no effect.
    """
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high" if train.tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = train.tf32


def product_precision(train: TrainConfig, device: torch.device) -> Precision:
    """Precision of most matrix products of a run; MFU is relative to its peak rate."""
    if train.precision == "auto" or train.precision == "fp32":
        return "tf32" if device.type == "cuda" and train.tf32 else "fp32"
    return train.precision


def precision_text(train: TrainConfig, device: torch.device) -> str:
    """The precision as the run's header prints it.

    Example:
        "bf16, fp32 matrix products in TF32" on a GPU; "fp32" on a CPU.
    """
    precision = "fp32" if train.precision == "auto" else train.precision
    if device.type != "cuda":
        return precision
    return f"{precision}, fp32 matrix products in {'TF32' if train.tf32 else 'full fp32'}"
