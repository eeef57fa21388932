"""Sizes and costs of models, computed from their configuration."""

from reptrain.sizes.flops import peak_flops, train_flops_per_window
from reptrain.sizes.parameters import ParameterCount, count_parameters, embedding_rows

__all__ = [
    "ParameterCount",
    "count_parameters",
    "embedding_rows",
    "peak_flops",
    "train_flops_per_window",
]
