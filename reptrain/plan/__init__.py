"""Plans: the tokens of a run, their order, and the rank of each. Pure functions of the configuration."""

from reptrain.plan.epochs import EpochPlan, Windows, plan_epochs
from reptrain.plan.interleaving import Interleaving
from reptrain.plan.mixture import MixturePlan, plan_mixture, source_seed
from reptrain.plan.shard import StepPlan, micro_steps_of, rank_rows
from reptrain.plan.stream import Stream, open_stream, source_stream
from reptrain.plan.subset import Subset

__all__ = [
    "EpochPlan",
    "Interleaving",
    "MixturePlan",
    "StepPlan",
    "Stream",
    "Subset",
    "Windows",
    "micro_steps_of",
    "open_stream",
    "plan_epochs",
    "plan_mixture",
    "rank_rows",
    "source_seed",
    "source_stream",
]
