"""The runs of seconds in which the faults of `mutants` are planted."""

from __future__ import annotations

from dataclasses import dataclass

DROPOUT = [f"model.dropout.{site}=0.1" for site in ("embedding", "attention", "residual", "mlp")]
COMMON = [
    *(
        "model.d_model=32",
        "model.d_ff=48",
        "data.unique_tokens=1500",
        "train.batch_windows=8",
        "train.device=cpu",
    ),
    *("optimizer.eps=1e-6", "optimizer.clip_grad_norm=0.5", "schedule.warmup_fraction=0.2", "seed=3"),
    *("evaluate.max_windows=4", "evaluate.every_fraction=0.5", "checkpoint.every_fraction=0.5"),
    "checkpoint.keep_last=9",
]
DECODER = [
    *(
        *COMMON,
        *DROPOUT,
        "data.window_tokens=32",
        "train.total_tokens=2.3epochs",
        "train.micro_batch_windows=3",
    ),
    *("data.document_mask=true", "data.cut=shifted", "average={decay: 0.9}"),
    "regularize={label_smoothing: 0.1, z_loss: 1e-3}",
]
MOE = [
    *(
        *COMMON,
        *DROPOUT,
        "data.window_tokens=32",
        "train.total_tokens=2epochs",
        "train.micro_batch_windows=4",
    ),
    *(
        "model.dropout.expert=0.1",
        "model.moe.num_experts=4",
        "model.moe.d_ff=32",
        "model.moe.group_windows=2",
    ),
]
T5 = [
    *(
        *COMMON,
        *DROPOUT,
        "objective.input_tokens=32",
        "objective.noise_density=0.3",
        "data.document_mask=true",
    ),
    *("model.num_encoder_layers=1", "model.num_decoder_layers=1", "model.num_heads=2", "model.head_dim=8"),
    *("train.total_tokens=2.3epochs", "train.micro_batch_windows=3"),
]
MIXTURE = [
    *(
        *COMMON,
        "data.window_tokens=32",
        "data.store=null",
        "data.unique_tokens=null",
        "train.total_tokens=null",
    ),
    "data.sources.first={store: 'STORE', unique_tokens: 900, total_tokens: 2.5epochs}",
    "data.sources.second={store: 'STORE', unique_tokens: 700, subset_seed: 1, order: same}",
]
VIEWS = [
    *(
        *COMMON,
        "data.window_tokens=32",
        "train.total_tokens=2.3epochs",
        "train.micro_batch_windows=3",
        "model.dropout.mlp_output=0.2",
        "optimizer.weight_decay=0.5",
    ),
    "objective={name: augmented_causal, max_offset: 3, right_to_left: 0.5}",
    "schedule={name: cyclic, cycles: 2, weight_decay_ratio: 5}",
]
MASKED = [
    *(*MOE, "objective.name=prefix_lm", "model.dropout.expert_output=0.2"),
    "regularize={masked_inputs: 0.4, input_noise: 0.1, input_noise_by: random}",
]
BRANCH = [*DECODER, "schedule={name: constant, warmup_fraction: 0}"]


@dataclass(frozen=True)
class TinyRun:
    """A run of seconds."""

    config: str
    """File in configs/tiny."""
    settings: list[str]
    ranks: int = 1
    stops_after: int | None = None
    """Steps after which it stops, and is resumed by another process."""
    branches_at: int | None = None
    """Steps that it takes over from a run of the same settings."""


RUNS = {
    "decoder": TinyRun("decoder", DECODER),
    "prefix, sparse": TinyRun("decoder-moe", [*MOE, "objective.name=prefix_lm"]),
    "T5": TinyRun("t5", T5),
    "mixture": TinyRun("decoder", MIXTURE),
    "two ranks": TinyRun("decoder", [*DECODER, "train.zero_stage=1", "train.micro_batch_windows=2"], ranks=2),
    "expert parallel": TinyRun(
        "decoder-moe", [*MOE, "train.zero_stage=1", "train.expert_parallel_size=2"], ranks=2
    ),
    "sequence parallel": TinyRun(
        "t5", [*T5, "train.zero_stage=1", "train.sequence_parallel_size=2"], ranks=2
    ),
    "resumed": TinyRun("decoder", DECODER, stops_after=7),
    "views": TinyRun("decoder", VIEWS),
    "masked": TinyRun("decoder-moe", MASKED),
    "repacked": TinyRun("decoder", [*DECODER, "data.cut=repacked"]),
    "branch": TinyRun("decoder", BRANCH, branches_at=7),
}  # fmt: skip
