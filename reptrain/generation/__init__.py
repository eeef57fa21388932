"""Text generation: greedy or sampled, with a key-value cache."""

from reptrain.generation.decoding import Generated, Writer, generate
from reptrain.generation.prompts import read_prompts
from reptrain.generation.sampling import Sampling

__all__ = ["Generated", "Sampling", "Writer", "generate", "read_prompts"]
