"""Plans: which tokens, in which order, on which rank. Pure functions of the configuration."""

from reptrain.plan.epochs import EpochPlan, Windows, plan_epochs
from reptrain.plan.shard import StepPlan, micro_steps_of, rank_rows
from reptrain.plan.subset import Subset

__all__ = [
    "EpochPlan",
    "StepPlan",
    "Subset",
    "Windows",
    "micro_steps_of",
    "plan_epochs",
    "rank_rows",
]
