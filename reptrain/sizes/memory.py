"""Memory of one rank: the state that ZeRO keeps, its buffers, and the activations."""

from __future__ import annotations

from typing import NamedTuple

from reptrain.config.model import DecoderConfig, ModelConfig, MoEConfig, Recompute, StackShape, is_gated
from reptrain.config.objectives import ExampleShape
from reptrain.sizes.flops import Precision
from reptrain.sizes.parameters import embedding_rows

_FULL = 4
_DOUBLE = 8
_BYTES: dict[Precision, int] = {"fp32": _FULL, "tf32": _FULL, "bf16": 2, "fp16": 2}
_MOMENTS = 8


def weight_bytes(precision: Precision) -> int:
    """Bytes of a weight that the model computes with."""
    return _BYTES[precision]


UPDATED_BYTES = _FULL + _MOMENTS
"""The fp32 weight and AdamW's two moments of a parameter."""


def saved_bytes(num_parameters: int, *, average: bool) -> int:
    """Size of a checkpoint: fp32 weights, AdamW's moments, and the averaged weights if there are any.

    Other optimizers have less.
    """
    return num_parameters * (UPDATED_BYTES + (_FULL if average else 0))


# 16 MiB of fp32, about the bucket of PyTorch's DistributedDataParallel.
_SMALL_BUCKET = 1 << 22
# DeepSpeed's defaults: reduce_bucket_size, and stage3_max_live_parameters.
_LARGEST_BUCKET = 500_000_000
_MOST_GATHERED = 1_000_000_000


def state_bytes(num_parameters: int, *, stage: int, world_size: int, precision: Precision) -> int | None:
    """Weights, gradients and AdamW's state on one GPU, without `buffer_bytes`.

    Weights and gradients are in the run's precision, bf16's gradients in fp32. From stage 1 on DeepSpeed
    keeps an fp32 copy of the weights in addition to the moments, in an fp32 run too.

    Args:
        num_parameters: All of the model's, idle ones too.
        stage: ZeRO stage. 1 divides the optimizer's state among the GPUs, 2 the gradients too, 3 all.
        world_size: GPUs.
        precision: Of the run.

    Returns:
        Bytes, or None for low precision at stage 0, which is no way to train here.

    Source:
        Rajbhandari et al., "ZeRO: Memory optimizations toward training trillion parameter models", 2020,
        section 5.
    """
    weights = _BYTES[precision]
    gradients = _FULL if precision == "bf16" else weights
    if stage == 0:
        return num_parameters * (weights + gradients + _MOMENTS) if weights == _FULL else None
    parts = [weights, gradients, UPDATED_BYTES]
    whole = sum(parts[: 3 - stage])
    return num_parameters * whole + -(-num_parameters * (sum(parts) - whole) // world_size)


def bucket_elements(num_parameters: int, *, stage: int, device: str, given: int | None = None) -> int:
    """Gradients that are reduced together.

    DeepSpeed allocates the bucket in full, whatever the size of the model, and copies it to reduce it. On a
    GPU it is DeepSpeed's default or the whole model, the smaller of both, which computes the same. On a CPU,
    and at stage 0, where nothing overlaps with the reduction, it is small.

    Args:
        num_parameters: Parameters that the rank holds.
        stage: ZeRO stage.
        device: "cuda" or "cpu".
        given: `train.bucket_elements`.
    """
    largest = _LARGEST_BUCKET if device == "cuda" and stage > 0 else _SMALL_BUCKET
    return max(1, min(num_parameters, given or largest))


def buffer_bytes(
    num_parameters: int,
    *,
    stage: int,
    partition: int,
    precision: Precision,
    device: str,
    bucket: int | None = None,
    overlaps: bool = False,
) -> int:
    """Upper bound on DeepSpeed's temporary memory, in addition to `state_bytes`.

    At stage 0 the copy of a bucket. At stages 1 and 2 the gradients of the rank's partition once more, flat
    for the update, and a bucket, on several ranks with its copy. At stage 3 the bucket stays. Beside it are
    the flat gradients, or during the passes the bucket's copy and, on several ranks, up to 1e9 gathered
    weights, which DeepSpeed keeps until the update.

    Args:
        num_parameters: Parameters that the rank computes with.
        stage: ZeRO stage.
        partition: Parameters that the rank updates, from stage 1 on.
        precision: Of the run.
        device: "cuda" or "cpu".
        bucket: `train.bucket_elements`.
        overlaps: `train.overlap_communication`, which adds a bucket at stage 2.
    """
    size = _FULL * bucket_elements(num_parameters, stage=stage, device=device, given=bucket)
    several = partition < num_parameters
    if stage == 0:
        return size
    if stage < 3:
        return _FULL * partition + size * (1 + several + (overlaps and stage == 2))
    gathered = _BYTES[precision] * min(num_parameters, _MOST_GATHERED) if several else 0
    return size + max(_FULL * partition, gathered + size)


def retained_bytes(num_parameters: int, *, stage: int) -> int:
    """Upper bound on the freed memory that a CPU process keeps besides state, buffers and activations.

    Freed memory is kept for the next step (`reptrain.distributed.host_memory`). glibc's aligned
    allocation often cannot use the gap of a freed tensor for one of the same size, and takes new memory
    once more. At stages 0 and 3 these are gradients. At stages 1 and 2 they are the copies in fp64 from which
    DeepSpeed computes the gradient norm: it frees each copy before it makes the next, and the process
    can keep all of them. With glibc 2.36, 0 to 7 bytes per parameter were measured at stages 1 and 2: the
    gaps depend on the addresses, so equal runs differ.

    Args:
        num_parameters: Parameters that the rank computes with.
        stage: ZeRO stage.
    """
    return (_DOUBLE if stage in (1, 2) else _FULL) * num_parameters


class ActivationBytes(NamedTuple):
    """Bytes that the forward pass of one micro-batch keeps for the backward pass."""

    fused: int
    """On CUDA: logits are not kept; attention weights only if attention dropout meets a sliding window or
    relative positions."""
    plain: int
    """Upper bound on a CPU: logits are kept, and attention weights with a bias or dropout."""


def activation_bytes(
    config: ModelConfig,
    vocab_size: int,
    shape: ExampleShape,
    *,
    windows: int,
    precision: Precision,
    recompute: Recompute,
    sequence_ranks: int = 1,
) -> ActivationBytes:
    """Bytes of the activations of a micro-batch.

    Counted per position, with e bytes per element (4 in fp32, else 2); norms and sums are in fp32:

    - a norm: its input in fp32, and the normalized and the scaled state: d (4 + 2 e)
    - attention: queries, output, keys and values: 2 (H + K) N e, and the sum of the weights of each head: 4 H
    - an MLP: gated 4 F e; GELU 2 F e; ReLU F e, with dropout 2 F e
    - a sparse MLP: the same for each of the token's experts, and 2 d e for dispatch and combination
    - the fused head: d e, and once V d e, for its gradients. Its logits, up to 512 MiB or an eighth of all,
      are temporary and do not count. The plain head: V log-probabilities in fp32
    - attention weights, where kept: H (4 + e) per pair of positions
    - relative positions: a second query, and keys and values of all heads, H N e; the scores of the
      distances, H e per pair; and once for all windows the projected distances

    Recomputation keeps each layer's input, d e, and one whole layer; ``selective`` also the matrix products.
    Sequence parallelism divides the positions among the ranks, and within attention the heads. The output of
    attention is then kept twice, before and after the exchange.

    Args:
        config: The model.
        vocab_size: Ids of the tokenizer.
        shape: Tokens that encoder and decoder see of the window.
        windows: Of the micro-batch.
        precision: Of the run.
        recompute: `train.activation_checkpointing`.
        sequence_ranks: `train.sequence_parallel_size`.

    Source:
        The method of Korthikanti et al., "Reducing activation recomputation in large transformer models",
        2022, section 4, with the tensors that this code keeps.
    """
    size, rows = _BYTES[precision], embedding_rows(config, vocab_size)
    stacks = _stacks(config, shape, sequence_ranks)
    kept = [
        _stack_bytes(
            config,
            stack,
            windows=windows,
            size=size,
            recompute=recompute,
            max_positions=shape.target_tokens,
            sequence_ranks=sequence_ranks,
        )
        for stack in stacks
    ]
    positions = windows * stacks[-1].positions
    return ActivationBytes(
        sum(each.fused for each in kept) + head_bytes(config.d_model, rows, positions, size=size, fused=True),
        sum(each.plain for each in kept)
        + head_bytes(config.d_model, rows, positions, size=size, fused=False),
    )


class _Stack(NamedTuple):
    """An encoder or a decoder, with the sizes of one window."""

    shape: StackShape
    positions: int
    """On one rank."""
    pairs: int
    """Pairs of a query and a key, over all ranks."""
    norms: int
    """Norms of a layer."""
    source_positions: int
    """Positions of the encoder that cross-attention attends to, on one rank; 0 without cross-attention."""


def _stacks(config: ModelConfig, shape: ExampleShape, sequence_ranks: int) -> list[_Stack]:
    source, target = shape
    own_source, own_target = -(-source // sequence_ranks), -(-target // sequence_ranks)
    if isinstance(config, DecoderConfig):
        return [_Stack(config.stack, own_target, target * target, 2, 0)]
    return [
        _Stack(config.encoder, own_source, source * source, 2, 0),
        _Stack(config.decoder, own_target, target * (target + source), 3, own_source),
    ]


def _stack_bytes(
    config: ModelConfig,
    stack: _Stack,
    *,
    windows: int,
    size: int,
    recompute: Recompute,
    max_positions: int,
    sequence_ranks: int,
) -> ActivationBytes:
    """Activations of a stack for a micro-batch, its final norm included."""
    layers = _layers(config, stack, size=size, is_exchanged=sequence_ranks > 1)
    if recompute == "none":
        kept, num_kept = sum(layer.whole for layer in layers), len(layers)
    else:
        kept, num_kept = max(layer.whole for layer in layers), 1
        kept += len(layers) * stack.positions * config.d_model * size
    if recompute == "selective":
        kept += sum(layer.products for layer in layers)
    kept += stack.positions * config.d_model * (_FULL + 2 * size)
    distances = _projected_distances(config, max_positions, size) * (
        1 if recompute == "full" else len(layers)
    )
    without_scores = windows * kept + distances
    scores = num_kept * windows * stack.pairs * (config.num_heads // sequence_ranks)
    plain = fused = without_scores + scores * (_FULL + size)
    if not _keeps_weights(config, max_positions):
        fused = without_scores + (scores * size if distances else 0)
    return ActivationBytes(fused, plain)


def head_bytes(width: int, rows: int, positions: int, *, size: int, fused: bool) -> int:
    """Bytes that the head and the loss keep, for ``rows`` ids (see `activation_bytes`)."""
    return (positions + rows) * width * size if fused else positions * rows * _FULL


def _keeps_weights(config: ModelConfig, positions: int) -> bool:
    """Whether attention weights are kept on CUDA too: the Triton kernel supports neither sliding windows nor
    relative positions, and torch's fused attention does not support counter-based dropout."""
    if not isinstance(config, DecoderConfig):
        return False
    is_windowed = config.sliding_window is not None and config.sliding_window < positions
    return (is_windowed or _is_relative(config)) and config.dropout.attention.largest > 0


def _is_relative(config: ModelConfig) -> bool:
    return isinstance(config, DecoderConfig) and config.positions == "relative"


def _projected_distances(config: ModelConfig, positions: int, size: int) -> int:
    """Bytes of the projected distances of a layer, and of the encodings in low precision; 0 without relative
    positions."""
    if not _is_relative(config):
        return 0
    cast = config.d_model if size < _FULL else 0
    return (positions + 1) * (config.num_heads * config.head_width + cast) * size


class _Layer(NamedTuple):
    """Bytes of a layer for one window."""

    whole: int
    products: int
    """Of them the results of matrix products and of attention, which selective recomputation keeps."""


def _layers(config: ModelConfig, stack: _Stack, *, size: int, is_exchanged: bool = False) -> list[_Layer]:
    """The layers of a stack. If ranks exchange the output of attention, both forms of it are kept."""
    heads, width = config.num_heads, config.num_heads * config.head_width
    kv_width = config.kv_heads * config.head_width if isinstance(config, DecoderConfig) else width
    attentions = 2 if stack.source_positions else 1
    outputs = 2 if is_exchanged else 1
    attention = attentions * ((1 + outputs) * width * size + heads * _FULL) + 2 * kv_width * size
    if _is_relative(config):
        attention += (width + 2 * (width - kv_width)) * size
    crossed = stack.source_positions * 2 * kv_width * size
    around = stack.norms * config.d_model * (_FULL + 2 * size)
    projected = attentions * config.d_model * size
    return [
        _Layer(
            stack.positions * (around + attention + _mlp(config, sparse, size)) + crossed,
            stack.positions * (attention + projected + _mlp_products(config, sparse, size)) + crossed,
        )
        for sparse in (stack.shape.sparse(layer) for layer in range(stack.shape.num_layers))
    ]


def _mlp_products(config: ModelConfig, sparse: MoEConfig | None, size: int) -> int:
    """Bytes of the matrix products of an MLP, per position."""
    into = 2 if is_gated(config.mlp) else 1
    if sparse is None:
        return (into * config.d_ff + config.d_model) * size
    experts = sparse.top_k * (into * (sparse.d_ff or config.d_ff) + config.d_model)
    shared = into * sparse.shared_d_ff + config.d_model if sparse.shared_d_ff else 0
    return (experts + shared) * size + sparse.num_experts * _FULL


def _mlp(config: ModelConfig, sparse: MoEConfig | None, size: int) -> int:
    """Bytes that an MLP keeps, per position."""
    if sparse is None:
        return _hidden(config, config.dropout.mlp.largest) * config.d_ff * size
    expert = _hidden(config, config.dropout.expert.largest) * (sparse.d_ff or config.d_ff)
    shared = _hidden(config, config.dropout.mlp.largest) * sparse.shared_d_ff
    # The router reads an fp32 copy, and keeps logits and scores.
    router = 2 * sparse.num_experts * _FULL + (config.d_model * _FULL if size < _FULL else 0)
    return (sparse.top_k * (expert + 2 * config.d_model) + shared) * size + router


def _hidden(config: ModelConfig, dropout: float) -> int:
    """Tensors of hidden units that are kept."""
    if is_gated(config.mlp):
        return 4
    return 1 if config.mlp == "relu" and dropout == 0 else 2
