"""Sizes and costs of models, computed from their configuration."""

from reptrain.sizes.describe import describe_match, describe_sizes, match_text, sizes_text, write_match
from reptrain.sizes.flops import (
    ForwardFlops,
    forward_flops,
    peak_flops,
    published_flops_per_token,
    train_flops_per_window,
    utilization_flops,
)
from reptrain.sizes.match import Match, match
from reptrain.sizes.memory import (
    activation_bytes,
    bucket_elements,
    buffer_bytes,
    retained_bytes,
    state_bytes,
)
from reptrain.sizes.parameters import ParameterCount, count_parameters, embedding_rows
from reptrain.sizes.step_flops import StepFlops, step_flops
from reptrain.sizes.subject import Subject, load_subject
from reptrain.sizes.suggest import Suggestion, suggest

__all__ = [
    "ForwardFlops",
    "Match",
    "ParameterCount",
    "StepFlops",
    "Subject",
    "Suggestion",
    "activation_bytes",
    "bucket_elements",
    "buffer_bytes",
    "count_parameters",
    "describe_match",
    "describe_sizes",
    "embedding_rows",
    "forward_flops",
    "load_subject",
    "match",
    "match_text",
    "peak_flops",
    "published_flops_per_token",
    "retained_bytes",
    "sizes_text",
    "state_bytes",
    "step_flops",
    "suggest",
    "train_flops_per_window",
    "utilization_flops",
    "write_match",
]
