"""Sizes and costs of models, computed from their configuration."""

from reptrain.sizes.flops import (
    ForwardFlops,
    forward_flops,
    peak_flops,
    published_flops_per_token,
    train_flops_per_window,
)
from reptrain.sizes.parameters import ParameterCount, count_parameters, embedding_rows

__all__ = [
    "ForwardFlops",
    "ParameterCount",
    "count_parameters",
    "embedding_rows",
    "forward_flops",
    "peak_flops",
    "published_flops_per_token",
    "train_flops_per_window",
]
