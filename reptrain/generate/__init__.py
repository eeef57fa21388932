"""Texts from trained models: greedy or sampled, with a cache of keys and values."""

from reptrain.generate.decoding import Generated, Writer, generate
from reptrain.generate.prompts import read_prompts
from reptrain.generate.sampling import Sampling

__all__ = ["Generated", "Sampling", "Writer", "generate", "read_prompts"]
