"""The columns of runs.parquet and evaluations.parquet: the one definition of names, types and meanings.

The tables, their Parquet metadata and the reference page are all made from it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from reptrain.runs.scores import SCORES

ColumnType = Literal["string", "int64", "float64", "bool"]

SETTING_PREFIX = "set."
"""A varied setting has the column ``set.KEY``, for example ``set.data.unique_tokens``."""


MAIN = "main"
"""The role of a main run of a study."""


@dataclass(frozen=True)
class Column:
    """One column.

    Attributes:
        name: Its name, with the unit.
        type: Its type.
        description: Its meaning, in Markdown.
    """

    name: str
    type: ColumnType
    description: str


_IDENTITY = (
    Column("study", "string", "Name of the study."),
    Column("arm", "string", "Name of the arm, without the seed: runs of one arm differ in the seed only."),
    Column("run", "string", "Name of the run folder; its path in `reptrain runs`."),
    Column("seed", "int64", "Seed of the run."),
    Column(
        "cluster", "string",
        "Name of the prefix that the run shares with others, or of the run itself. Statistics count the runs"
        " of a cluster as one independent unit.",
    ),
    Column(
        "role", "string",
        "`main` (a run that the study asks for), or `tune` (a run that only chooses settings). Claims, fits"
        " and figures use main runs, unless a condition names the column. Null outside a study.",
    ),
)  # fmt: skip

_ORIGIN = (
    Column(
        "branch_of", "string",
        "The run whose first steps this run shares instead of training them itself; null for any other run.",
    ),
    Column(
        "origin", "string",
        "Study and run that the row was copied from, as `STUDY/RUN`, if the run is done elsewhere"
        " (`study run --done`); else null.",
    ),
)  # fmt: skip

_STATE = (
    Column(
        "status", "string",
        "`done`, `running`, `failed`, `preempted`, `not run` (no step yet), `killed` (its process ended"
        " without a record), `damaged` (a file cannot be read; see `reason`), or `other config` (the folder"
        " holds a run of other settings, which is not read).",
    ),
    Column("reason", "string", "Why the run failed, stopped or ended early, or what is damaged."),
)  # fmt: skip

_SIZES = (
    Column("model_family", "string", "`decoder` or `t5`."),
    Column("objective", "string", "Name of the training objective."),
    Column("parameters_total", "int64", "All parameters; shared layers count once."),
    Column("parameters_active", "int64", "Parameters used per token; of a dense model, all."),
    Column("parameters_nonembedding", "int64", "All parameters without token embedding and output head."),
    Column("unique_tokens", "int64", "U, the tokens of the subset; in a mixture, of all subsets."),
    Column("planned_tokens", "int64", "Tokens that the whole run consumes, repeats counted."),
    Column("planned_epochs", "float64", "`planned_tokens / unique_tokens`."),
    Column("consumed_tokens", "int64", "D, the tokens consumed so far, repeats counted."),
    Column("epochs", "float64", "`consumed_tokens / unique_tokens`: how often a token was used on average."),
    Column(
        "repeats", "float64",
        "`epochs - 1`, at least 0: R_D, the passes after the first (Muennighoff et al. 2023).",
    ),
    Column(
        "train_flops", "float64",
        "Training FLOPs of the consumed tokens, without recomputation: 6 N + 12 L H Q T per token for a"
        " decoder, three times the forward matrix products for an encoder-decoder.",
    ),
    Column("steps", "int64", "Optimizer steps completed."),
    Column("batch_tokens", "int64", "Tokens of a full batch."),
)  # fmt: skip

_LOSSES = (
    Column("scored_source", "string", "In a mixture, the source whose held-out losses this row has."),
    Column("loss_start_nats", "float64", "Loss on `report` before the first step."),
    Column("loss_select_final_nats", "float64", "Loss on the selection split at the last evaluation."),
    Column(
        "loss_select_best_nats", "float64",
        "Lowest loss on the selection split at an evaluation after the first step.",
    ),
    Column("loss_report_final_nats", "float64", "Loss on the report split at the last evaluation."),
    Column(
        "loss_report_best_nats", "float64",
        "Loss on the report split where the selection split is lowest.",
    ),
    Column("best_epoch", "float64", "Epochs consumed at that evaluation."),
    Column(
        "loss_report_average_nats", "float64",
        "Loss of the averaged weights on the report split at the last evaluation; null without `average`.",
    ),
    Column(
        "average_gain_nats", "float64",
        "`loss_report_final_nats - loss_report_average_nats`: how much the average of the weights is better.",
    ),
    Column("bits_per_byte_report_final", "float64", "Bits per UTF-8 byte on the report split at the end."),
    Column("bits_per_byte_report_best", "float64", "The same where the selection split is lowest."),
    Column("loss_probe_final_nats", "float64", "Loss on the fixed probe of training windows at the end."),
    Column(
        "gap_final_nats", "float64",
        "`loss_report_final_nats - loss_probe_final_nats`: how much better the model predicts its training"
        " text.",
    ),
    Column(
        "measure", "string",
        "Fingerprint of held-out text, objective and window. Compare losses of equal `measure` only.",
    ),
)  # fmt: skip

_ROUTING = (
    Column(
        "expert_load", "float64",
        "Load of the busiest expert over a uniform load, in the worst layer, as a mean over the last fifth of"
        " the steps. Null for a dense model.",
    ),
    Column(
        "experts_unused", "int64",
        "In the worst layer, the fewest experts without a token in any of these steps: above 0, some expert"
        " is probably dead.",
    ),
    Column(
        "knock_out_mean_nats", "float64",
        "Rise of the loss on training windows, in nats per token, if no token may select an expert: the mean"
        " over the experts of all layers. Null unless `reptrain routers` was run after the last step.",
    ),
    Column("knock_out_max_nats", "float64", "The largest rise among these experts."),
)  # fmt: skip

_COST = (
    Column("device", "string", "Device of the last start: the GPU's name, or `cpu`."),
    Column("num_devices", "int64", "Ranks of the last start."),
    Column("tokens_per_second", "float64", "Median training speed of the steps, over all devices."),
    Column("train_seconds", "float64", "Time of the steps together, without evaluations and checkpoints."),
    Column(
        "wall_seconds", "float64",
        "Time from each start of the run to its recorded end, summed; null if an end is missing.",
    ),
    Column("cost_usd", "float64", "Price of `wall_seconds`, if a price per hour was given."),
)  # fmt: skip

_PROOF = (
    Column(
        "audit_verdict", "string",
        "`exact`, `as planned` (not exact because of the order `mixed`), `not exact`, `cannot say` (evidence"
        " is missing or damaged), or `not audited` (no audit since the last step). In a study, `parent not"
        " exact` or `parent cannot say`: so is a run that its initial weights come from.",
    ),
    Column("audit_level", "string", "Level of the audit, where the audit records one."),
    Column("config_fingerprint", "string", "Fingerprint of the settings that change the results."),
    Column("node_fingerprint", "string", "Fingerprint of the node in the study's graph, with its inputs."),
    Column(
        "numerics_version", "int64",
        "Version of the defaults and formulas of the run. Never pool rows of different versions.",
    ),
)  # fmt: skip

RUN_COLUMNS: tuple[Column, ...] = (
    *_IDENTITY, *_ORIGIN, *_STATE, *_SIZES, *_LOSSES, *_ROUTING, *_COST, *_PROOF,
)  # fmt: skip
"""The columns of runs.parquet, in order. The varied settings come after `role`."""

_SCORE_NAMES = {"nats": "loss_nats"}

SCORE_COLUMNS: dict[str, str] = {name: _SCORE_NAMES.get(name, name) for name in SCORES}
"""Column of each score of `reptrain.runs.scores`."""

EVALUATION_COLUMNS: tuple[Column, ...] = (
    *_IDENTITY,
    Column("node", "string", "Node of the study that evaluated; `train` for a run's own evaluations."),
    Column("split", "string", "`select`, `report`, `probe` (training windows), or the name of another set."),
    Column("source", "string", "Source of the text in a mixture; null in a run on one store."),
    Column("weights", "string", "`own`, or `average` for the averaged weights."),
    Column("objective", "string", "Objective of the evaluation; of `train` that of the training."),
    Column("step", "int64", "Steps completed before the evaluation."),
    Column("consumed_tokens", "int64", "Tokens consumed before it, repeats counted."),
    Column("epoch", "float64", "Epochs consumed before it."),
    *(
        Column(
            SCORE_COLUMNS[name],
            "int64" if score.better is None else "float64",
            f"{score.label[0].upper()}{score.label[1:]}"
            + (f", in {score.unit}." if score.unit not in score.label else "."),
        )
        for name, score in SCORES.items()
    ),
    Column(
        "expert_load",
        "float64",
        "Load of the busiest expert over a uniform load, in the worst layer, as a mean over the steps since"
        " the run's previous evaluation. Null for a dense model, and before the first step.",
    ),
    Column(
        "experts_unused",
        "int64",
        "In the worst layer, the fewest experts without a token in any of these steps.",
    ),
    Column("numerics_version", "int64", "As in runs.parquet."),
)
"""The columns of evaluations.parquet, in order."""


def runs_columns(settings: dict[str, ColumnType], results: Sequence[str] = ()) -> tuple[Column, ...]:
    """The columns of a study's runs.parquet.

    Args:
        settings: Type of each varied setting, by dotted key.
        results: Names of the scores of the commands on the runs, as ``ENTRY.SCORE``.
    """
    varied = tuple(
        Column(f"{SETTING_PREFIX}{key}", kind, f"The setting `{key}`.") for key, kind in settings.items()
    )
    scores = tuple(Column(name, "float64", "Score of a command in `then`.") for name in results)
    return (*_IDENTITY, *varied, *RUN_COLUMNS[len(_IDENTITY) :], *scores)
