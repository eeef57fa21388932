"""Training objectives, one per file: each maps a micro-batch to model inputs and targets."""

from reptrain.batch.objectives.augmented_causal import AugmentedCausal
from reptrain.batch.objectives.build import build_objective
from reptrain.batch.objectives.causal import Causal
from reptrain.batch.objectives.denoising import Denoising
from reptrain.batch.objectives.example import Example, NoisePlaces, Objective
from reptrain.batch.objectives.fill_in_the_middle import FillInTheMiddle, MiddleIds
from reptrain.batch.objectives.masked_diffusion import MaskedDiffusion
from reptrain.batch.objectives.prefix_lm import PrefixLM
from reptrain.batch.objectives.span_corruption import SpanCorruption
from reptrain.batch.objectives.ul2 import UL2
from reptrain_kernels.ops.linear_cross_entropy import IGNORE

__all__ = [
    "IGNORE",
    "UL2",
    "AugmentedCausal",
    "Causal",
    "Denoising",
    "Example",
    "FillInTheMiddle",
    "MaskedDiffusion",
    "MiddleIds",
    "NoisePlaces",
    "Objective",
    "PrefixLM",
    "SpanCorruption",
    "build_objective",
]
