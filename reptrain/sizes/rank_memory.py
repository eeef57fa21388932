"""Memory of one rank of a run: state, buffers and activations, from the ZeRO stage and the micro-batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from reptrain.config import RunConfig
from reptrain.config.model import Recompute
from reptrain.config.objectives import ExampleShape
from reptrain.config.sections import TrainConfig
from reptrain.errors import ConfigError
from reptrain.sizes.flops import Precision
from reptrain.sizes.memory import (
    UPDATED_BYTES,
    ActivationBytes,
    activation_bytes,
    buffer_bytes,
    head_bytes,
    retained_bytes,
    saved_bytes,
    state_bytes,
    weight_bytes,
)
from reptrain.sizes.parameters import ParameterCount, count_parameters
from reptrain.sizes.step_flops import has_masked_inputs, teacher_models
from reptrain.sizes.subject import Subject, trainable


class RankMemory(NamedTuple):
    """Bytes that a rank needs."""

    state: int
    """Weights, gradients and AdamW's moments, and the weights of teachers."""
    buffers: int
    """DeepSpeed's buckets and copies of gradients, at most."""
    activations: int
    """What the forward pass keeps for the backward pass."""
    retained: int
    """On a CPU: freed memory that the process keeps, at most."""
    saving: int
    """On a CPU: the copy of the state with `checkpoint.background: true`."""


_FULL = 4
# A distilled run keeps the logarithms of its probabilities and the teacher's probabilities in fp32. It also
# holds the teacher's logits.
_DISTILLED = 2 * _FULL


def run_activation_bytes(
    run: RunConfig,
    vocab_size: int,
    shape: ExampleShape,
    *,
    windows: int,
    precision: Precision,
    recompute: Recompute,
) -> ActivationBytes:
    """Activations of a run, with masked copies and the logits of a teacher (see `activation_bytes`).

    Args:
        run: The run.
        vocab_size: Ids of the tokenizer.
        shape: Positions of encoder and decoder for a window.
        windows: Windows of the micro-batch, without masked copies.
        precision: Of the run.
        recompute: `train.activation_checkpointing`.
    """
    rows = windows * (2 if has_masked_inputs(run) else 1)
    ranks = run.train.sequence_parallel_size
    kept = activation_bytes(
        run.model,
        vocab_size,
        shape,
        windows=rows,
        precision=precision,
        recompute=recompute,
        sequence_ranks=ranks,
    )
    if run.distill is None:
        return kept
    positions, size = rows * -(-shape.target_tokens // ranks), 2 if precision in ("bf16", "fp16") else _FULL
    fused, plain = (
        head_bytes(run.model.d_model, vocab_size, positions, size=size, fused=is_fused)
        for is_fused in (True, False)
    )
    # The teacher computes whole windows on each rank.
    logits = (positions * _DISTILLED + rows * shape.target_tokens * _FULL) * vocab_size
    # The head makes all logits, on CUDA too.
    return ActivationBytes(kept.fused - fused + plain + logits, kept.plain + logits)


def teacher_bytes(run: RunConfig, vocab_size: int) -> int | None:
    """Weights of a run's teachers on each rank, in fp32; 0 without distillation, None if the settings of one
    cannot be read."""
    models = teacher_models(run)
    sizes = [None if model is None else count_parameters(model, vocab_size).total for model in models]
    return None if None in sizes else _FULL * sum(size for size in sizes if size is not None)


def check_ranks(world_size: int, train: TrainConfig) -> None:
    """Refuse a number of ranks that is not a multiple of the size of a parallel group.

    Raises:
        ConfigError: If it is not.
    """
    for setting in ("expert_parallel_size", "sequence_parallel_size"):
        size = getattr(train, setting)
        if world_size % size:
            raise ConfigError(
                "--world-size",
                got=world_size,
                rule=f"must be a multiple of train.{setting} {size}",
                remedy="Change one of the two.",
            )


def rank_state_bytes(
    count: ParameterCount, *, stage: int, world_size: int, groups: int, precision: Precision
) -> int | None:
    """State of a rank; None where DeepSpeed does not support the stage.

    Experts are partitioned over the ranks outside of their expert-parallel group.

    Args:
        count: Parameters of the model.
        stage: ZeRO stage.
        world_size: Ranks.
        groups: `train.expert_parallel_size`.
        precision: Of the run.
    """
    rest = state_bytes(count.total - count.experts, stage=stage, world_size=world_size, precision=precision)
    experts = state_bytes(
        count.experts // groups, stage=stage, world_size=world_size // groups, precision=precision
    )
    return None if rest is None or experts is None else rest + experts


def rank_buffer_bytes(
    count: ParameterCount,
    *,
    stage: int,
    world_size: int,
    groups: int,
    precision: Precision,
    device: str,
    train: TrainConfig | None = None,
) -> int:
    """Buffers of a rank on the device "cuda" or "cpu"; for the others see `rank_state_bytes`.

    ``train`` has the size of the buckets; None: the default size.
    """
    return buffer_bytes(
        count.total - count.experts + count.experts // groups,
        stage=stage,
        partition=_partition(count, world_size, groups),
        precision=precision,
        device=device,
        bucket=None if train is None else train.bucket_elements,
        overlaps=train is not None and train.overlap_communication,
    )


def _partition(count: ParameterCount, world_size: int, groups: int) -> int:
    """Parameters that a rank updates, from stage 1 on."""
    rest, experts = count.total - count.experts, count.experts // groups
    return -(-rest // world_size) - (-experts // (world_size // groups))


def rank_retained_bytes(count: ParameterCount, *, stage: int, groups: int) -> int:
    """Freed memory that a CPU rank keeps; the arguments are those of `rank_state_bytes`."""
    return retained_bytes(count.total - count.experts + count.experts // groups, stage=stage)


def rank_copy_bytes(count: ParameterCount, *, world_size: int, average: bool) -> int:
    """Host memory for the copy of a rank's state with which checkpoints are written in the background.

    It has the content of a checkpoint (see `saved_bytes`).

    Args:
        count: Parameters of the model.
        world_size: Ranks.
        average: Whether the run averages its weights.
    """
    return -(-saved_bytes(count.total, average=average) // world_size)


def rank_offloaded_bytes(count: ParameterCount, *, stage: int, world_size: int, groups: int) -> int:
    """What `train.offload_optimizer: cpu` moves from a GPU to its host: fp32 weights and AdamW's moments.

    The other arguments are those of `rank_state_bytes`. Nothing is moved at stage 0.
    """
    return UPDATED_BYTES * _partition(count, world_size, groups) if stage > 0 else 0


def rank_offloaded_weights(
    count: ParameterCount, *, stage: int, world_size: int, groups: int, precision: Precision
) -> int:
    """What `train.offload_parameters: cpu` moves from a GPU to its host: the weights of the partition.

    The arguments are those of `rank_state_bytes`. Nothing is moved below stage 3.
    """
    return weight_bytes(precision) * _partition(count, world_size, groups) if stage == 3 else 0


@dataclass(frozen=True)
class RankSettings:
    """Settings that determine the memory of a rank, except for the model."""

    world_size: int
    """Ranks."""
    stage: int
    """ZeRO stage."""
    windows: int
    """Windows of a micro-batch."""
    recompute: Recompute
    """`train.activation_checkpointing`."""
    precision: Precision
    device: str
    """cuda or cpu."""


def rank_memory(subject: Subject, settings: RankSettings) -> RankMemory | None:
    """Memory of one rank; None where DeepSpeed does not support the stage.

    Args:
        subject: The run.
        settings: Its ranks and how they train it.
    """
    world_size, stage, precision = settings.world_size, settings.stage, settings.precision
    run, _ = trainable(subject, "the file")
    count, groups = subject.parameters, run.train.expert_parallel_size
    check_ranks(world_size, run.train)
    state = rank_state_bytes(count, stage=stage, world_size=world_size, groups=groups, precision=precision)
    if state is None:
        return None
    activations = run_activation_bytes(
        run,
        subject.vocab_size,
        subject.shape,
        windows=settings.windows,
        precision=precision,
        recompute=settings.recompute,
    )
    on_cpu = settings.device == "cpu"
    state += teacher_bytes(run, subject.vocab_size) or 0
    if not on_cpu and run.train.offload_optimizer == "cpu":
        state -= rank_offloaded_bytes(count, stage=stage, world_size=world_size, groups=groups)
    if not on_cpu and run.train.offload_parameters == "cpu":
        state -= rank_offloaded_weights(
            count, stage=stage, world_size=world_size, groups=groups, precision=precision
        )
    # Where it is "auto", there is no copy if it does not fit.
    is_copied = on_cpu and run.checkpoint.background is True
    copy = rank_copy_bytes(count, world_size=world_size, average=run.average is not None)
    return RankMemory(
        state,
        rank_buffer_bytes(
            count,
            stage=stage,
            world_size=world_size,
            groups=groups,
            precision=precision,
            device=settings.device,
            train=run.train,
        ),
        activations.plain if on_cpu else activations.fused,
        rank_retained_bytes(count, stage=stage, groups=groups) if on_cpu else 0,
        copy if is_copied else 0,
    )
