"""Memory: ZeRO's published example, and activations against what torch keeps."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from reptrain.config import RunConfig
from reptrain.config.model import DecoderConfig, Recompute, T5Config
from reptrain.config.schema import ExampleShape
from reptrain.distributed import sequence_parallel
from reptrain.distributed.sequence_parallel import SplitSequence
from reptrain.model import DropoutContext, Routing, build_model
from reptrain.model.sequence import WHOLE_SEQUENCE, WholeSequence
from reptrain.sizes import (
    activation_bytes,
    bucket_elements,
    buffer_bytes,
    count_parameters,
    retained_bytes,
    state_bytes,
)
from reptrain.sizes.memory import head_bytes
from reptrain_kernels.ops.linear_cross_entropy import Targets

ROWS, SOURCE, TARGET, VOCAB = 2, 40, 48, 100
ALL_SITES = dict.fromkeys(("embedding", "attention", "residual", "mlp", "expert"), 0.1)
MOE = {"num_experts": 4, "top_k": 2, "shared_d_ff": 32, "backend": "loop"}
GPT = {"mlp": "gelu", "norm": "layernorm", "bias": True, "positions": "learned", "max_positions": 64}
LLAMA_LIKE = {"head_dim": 24, "attention_bias": "all", "mlp_bias": True}
DECODER = {"d_model": 64, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "d_ff": 160}
T5 = {
    "family": "t5",
    "d_model": 64,
    "num_encoder_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 3,
    "head_dim": 16,
    "d_ff": 160,
}


def kept_bytes(
    config: DecoderConfig | T5Config,
    *,
    bf16: bool = False,
    recompute: Recompute = "none",
    sequence: WholeSequence = WHOLE_SEQUENCE,
) -> int:
    """Bytes that autograd keeps between the passes, without the weights."""
    model = build_model(config, vocab_size=VOCAB, seed=0)
    model.sequence = sequence
    model.recompute = recompute
    if bf16:
        model = model.bfloat16()
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, Tensor] = {}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    source_BS, target_BT = (torch.randint(VOCAB, (ROWS, length)) for length in (SOURCE, TARGET))
    inputs: dict[str, Tensor] = {"tokens_BT": target_BT}
    if isinstance(config, T5Config):
        inputs = {"source_BS": source_BS, "inputs_BT": target_BT}
        inputs |= {
            "source_segments_BS": torch.ones_like(source_BS),
            "segments_BT": torch.ones_like(target_BT),
        }
    context = DropoutContext(seed=0, step=0, row_B=torch.arange(ROWS))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        routing = Routing(torch.full((ROWS,), TARGET))
        model(**inputs, dropout=context, routing=routing, targets=Targets(target_BT))
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


def estimate(
    config: DecoderConfig | T5Config,
    *,
    bf16: bool = False,
    recompute: Recompute = "none",
    sequence_ranks: int = 1,
) -> Any:
    shape = ExampleShape(SOURCE if isinstance(config, T5Config) else 0, TARGET)
    return activation_bytes(
        config,
        VOCAB,
        shape,
        windows=ROWS,
        precision="bf16" if bf16 else "fp32",
        recompute=recompute,
        sequence_ranks=sequence_ranks,
    )


def with_logits(
    config: DecoderConfig | T5Config,
    *,
    bf16: bool = False,
    recompute: Recompute = "none",
    sequence_ranks: int = 1,
) -> int:
    """As estimated with fused attention and the whole logits: what a CPU keeps of a plain decoder."""
    positions, size = ROWS * TARGET // sequence_ranks, 2 if bf16 else 4
    fused, plain = (
        head_bytes(config.d_model, VOCAB, positions, size=size, fused=fused) for fused in (True, False)
    )
    kept = estimate(config, bf16=bf16, recompute=recompute, sequence_ranks=sequence_ranks)
    return kept.fused - fused + plain


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize(
    "changes",
    [{}, GPT, {"mlp": "relu"}, {"moe": MOE}, {"num_layers": 4, "num_stored_layers": 2}, LLAMA_LIKE],
    ids=["llama", "gpt", "relu", "moe", "shared", "options"],
)
def test_activation_bytes_of_a_decoder_equal_those_that_torch_keeps(
    changes: dict[str, Any], bf16: bool
) -> None:
    config = DecoderConfig.model_validate(DECODER | changes)
    assert with_logits(config, bf16=bf16) == pytest.approx(kept_bytes(config, bf16=bf16), rel=0.03)


def test_activation_bytes_with_kept_weights_are_what_torch_keeps_under_dropout_of_attention() -> None:
    config = DecoderConfig.model_validate(DECODER | {"dropout": ALL_SITES})
    assert estimate(config).plain == pytest.approx(kept_bytes(config), rel=0.06)


@pytest.mark.parametrize("size", [2, 4])
def test_activation_bytes_of_a_split_window_are_what_one_of_its_ranks_keeps(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def alone(rows: Tensor, num_sent: list[int], num_received: list[int], group: Any) -> Tensor:
        """An exchange of the right sizes, without the other ranks."""
        return rows[:1].expand(sum(num_received), *rows.shape[1:]).clone()

    monkeypatch.setattr(sequence_parallel, "all_to_all", alone)
    config = DecoderConfig.model_validate(DECODER | {"num_kv_heads": 4})
    found = kept_bytes(config, sequence=SplitSequence(None, rank=size - 1, size=size))
    assert with_logits(config, sequence_ranks=size) == pytest.approx(found, rel=0.03)
    dropping = DecoderConfig.model_validate(DECODER | {"num_kv_heads": 4, "dropout": ALL_SITES})
    found = kept_bytes(dropping, sequence=SplitSequence(None, rank=0, size=size))
    assert estimate(dropping, sequence_ranks=size).plain == pytest.approx(found, rel=0.08)


@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
@pytest.mark.parametrize("dropout", [{}, {"attention": 0.1}], ids=["fused", "dropout"])
def test_activation_bytes_of_relative_positions_are_what_torch_keeps(
    dropout: dict[str, float], bf16: bool
) -> None:
    config = DecoderConfig.model_validate(DECODER | {"positions": "relative", "dropout": dropout})
    kept, estimated = kept_bytes(config, bf16=bf16), estimate(config, bf16=bf16)
    # In fp32 without dropout, torch keeps the weights once.
    assert 0.9 * estimated.plain < kept < 1.02 * estimated.plain
    rope = estimate(DecoderConfig.model_validate(DECODER | {"dropout": dropout}), bf16=bf16)
    pair, width = 2 * 4 * ROWS * TARGET * TARGET, 2 if bf16 else 4
    added = estimated.fused - rope.fused
    assert added > pair * (4 + width if dropout else width)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"mlp": "relu"},
        {"moe": MOE},
        {"dropout": ALL_SITES},
        {"mlp": "swiglu", "relative_bias_per_layer": True},
    ],
)
def test_activation_bytes_of_t5_hold_between_fused_and_plain_attention(changes: dict[str, Any]) -> None:
    config = T5Config.model_validate(T5 | changes)
    assert 0.95 * with_logits(config) < kept_bytes(config) < 1.05 * estimate(config).plain


def test_activation_bytes_on_cuda_count_weights_that_a_sliding_window_keeps() -> None:
    dropped, windowed = {"dropout": {"attention": 0.1}}, {"sliding_window": TARGET - 1}
    plain, drops, window, both = (
        estimate(DecoderConfig.model_validate(DECODER | changes))
        for changes in ({}, dropped, windowed, dropped | windowed)
    )
    assert plain.fused == drops.fused == window.fused
    # Weights in fp32 and as they were dropped, of 2 layers with 4 heads.
    assert both.fused - plain.fused == 2 * 4 * ROWS * TARGET * TARGET * 8


@pytest.mark.parametrize("family", [DECODER, T5], ids=["decoder", "t5"])
def test_activation_bytes_when_recomputed_are_the_inputs_and_one_layer(family: dict[str, Any]) -> None:
    layers = [name for name in family if name.startswith("num_") and name.endswith("layers")]
    one, two, three = (
        (DecoderConfig if family is DECODER else T5Config).model_validate(family | dict.fromkeys(layers, n))
        for n in (1, 2, 3)
    )
    # What more layers add to what is kept is their inputs; the rest of the estimate is one layer's own.
    added = estimate(three, recompute="full").fused - estimate(two, recompute="full").fused
    kept = kept_bytes(three, recompute="full") - kept_bytes(two, recompute="full")
    assert added == pytest.approx(kept, rel=0.02)
    # A recomputed layer holds its attention mask itself, unseen by autograd: T5's bias, as it is and masked.
    heads = one.num_heads if isinstance(one, T5Config) else 0
    masks = 2 * 4 * heads * (SOURCE**2 + TARGET**2)
    inside = with_logits(one, recompute="full") - kept_bytes(one, recompute="full") - masks
    assert 0 < inside <= estimate(two).fused - estimate(one).fused + 2048


class Products(TorchDispatchMode):
    """Adds up the bytes that come out of matrix products and attention."""

    num_bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        made = func(*args, **(kwargs or {}))
        name = func.name().split("::")[-1]
        if name.startswith(("mm", "addmm", "_scaled_dot_product")):
            results = [
                result for result in (made if isinstance(made, tuple) else (made,)) if result is not None
            ]
            self.num_bytes += sum(
                r.numel() * r.element_size() for r in results if isinstance(r, torch.Tensor)
            )
        return made


@pytest.mark.parametrize("changes", [{}, GPT, {"moe": MOE}], ids=["llama", "gpt", "moe"])
def test_activation_bytes_when_products_are_kept_are_theirs_besides(changes: dict[str, Any]) -> None:
    config = DecoderConfig.model_validate(DECODER | changes)
    model = build_model(config, vocab_size=VOCAB, seed=0)
    tokens = torch.randint(VOCAB, (ROWS, TARGET))
    with Products() as products:
        model(tokens)
    of_layers = products.num_bytes - ROWS * TARGET * VOCAB * 4
    added = estimate(config, recompute="selective").fused - estimate(config, recompute="full").fused
    assert added == pytest.approx(of_layers, rel=0.02)


@pytest.mark.parametrize(("stage", "gigabytes"), [(1, 31.4), (2, 16.6), (3, 1.9)])
def test_state_bytes_are_those_of_the_published_example(stage: int, gigabytes: float) -> None:
    # Rajbhandari et al. 2020, figure 1: 7.5 billion parameters on 64 GPUs.
    size = state_bytes(7_500_000_000, stage=stage, world_size=64, precision="fp16")
    assert size is not None
    assert size / 1e9 == pytest.approx(gigabytes, abs=0.05)


def test_state_bytes_are_what_deepspeed_was_measured_to_keep() -> None:
    # On a CPU, one rank, the most bytes of live tensors in two steps, over the parameters.
    measured = {("fp32", 0): 16, ("fp32", 2): 20, ("bf16", 2): 18}
    for (precision, stage), size in measured.items():
        assert state_bytes(1, stage=stage, world_size=1, precision=precision) == size  # type: ignore[arg-type]


def test_bucket_is_the_model_or_deepspeeds_default_on_cuda_and_small_elsewhere() -> None:
    sizes = (100, 10**7, 10**10)
    assert [bucket_elements(n, stage=1, device="cuda") for n in sizes] == [100, 10**7, 5 * 10**8]
    for stage, device in ((0, "cuda"), (3, "cpu")):
        assert [bucket_elements(n, stage=stage, device=device) for n in sizes] == [100, 2**22, 2**22]


def test_buffer_bytes_are_divided_with_the_partition() -> None:
    def buffers(stage: int, ranks: int) -> int:
        return buffer_bytes(800, stage=stage, partition=800 // ranks, precision="bf16", device="cuda")

    # A bucket of 3,200 bytes and its copy, flat gradients in fp32, and at stage 3 gathered weights in bf16.
    assert [buffers(stage, 4) for stage in range(4)] == [3200, 7200, 7200, 3200 + 1600 + 3200]
    assert [buffers(stage, 1) for stage in range(4)] == [3200, 6400, 6400, 6400]


def test_state_bytes_are_none_where_low_precision_does_not_train() -> None:
    assert state_bytes(10, stage=0, world_size=1, precision="bf16") is None


MEASURE = """
import gc, re, sys
from pathlib import Path
import deepspeed
from reptrain.config import load_run_config
from reptrain.distributed.host_memory import release_freed_memory
from reptrain.training.loop import train

def memory(name):
    status = Path("/proc/self/status").read_text()
    return int(re.search(rf"{name}:\\s+(\\d+) kB", status)[1]) * 1024

warm_up, measured = map(Path, sys.argv[1:])
train(load_run_config(warm_up / "config.yaml"), warm_up / "run")
gc.collect()
release_freed_memory()
before = memory("VmRSS")
# Resets the peak.
Path("/proc/self/clear_refs").write_text("5")
train(load_run_config(measured / "config.yaml"), measured / "run")
print(memory("VmHWM") - before)
"""


def added_bytes(warm_up: RunConfig, measured: RunConfig, folder: Path) -> int:
    """The largest memory that training, evaluating and saving adds to a new process.

    Args:
        warm_up: A small run, done first: it loads the code that every run needs.
        measured: The measured run, one per process: the C library may keep memory that a run has freed.
        folder: Folder for the two run folders.
    """
    folders = [folder / name for name in ("warm-up", "measured")]
    for place, config in zip(folders, (warm_up, measured), strict=True):
        place.mkdir()
        (place / "config.yaml").write_text(config.model_dump_json())
    command = [sys.executable, "-c", MEASURE, *map(str, folders)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, capture_output=True, text=True, timeout=380, env=environment)
    assert ended.returncode == 0, ended.stderr
    return int(ended.stdout.splitlines()[-1])


@pytest.mark.timeout(400)
@pytest.mark.skipif(
    not os.access("/proc/self/clear_refs", os.W_OK), reason="measures the peak memory by /proc"
)
@pytest.mark.parametrize(
    ("stage", "layers"),
    [
        pytest.param(2, 1, id="short"),
        *(pytest.param(stage, 8, id=f"stage {stage}", marks=pytest.mark.slow) for stage in range(4)),
    ],
)
def test_bytes_of_a_run_are_those_estimated(stage: int, layers: int, tmp_path: Path, tiny: Any) -> None:
    # Several steps: in the first one the optimizer's state is not there yet beside the reduced gradients.
    settings = [
        *("data.unique_tokens=64", "data.window_tokens=16", "train.batch_windows=2", "train.total_tokens=96"),
        *("evaluate.every_fraction=1", "evaluate.max_windows=2", "checkpoint.every_fraction=1"),
        *("model.num_heads=8", "model.d_model=512", "model.d_ff=4096", f"model.num_layers={layers}"),
    ]
    config = tiny(*settings, f"train.zero_stage={stage}")
    num_parameters = count_parameters(config.model, 512).total
    warm_up = tiny("train.total_tokens=96", f"train.zero_stage={stage}")
    added = added_bytes(warm_up, config, tmp_path)
    state = state_bytes(num_parameters, stage=stage, world_size=1, precision="fp32")
    buffers = buffer_bytes(
        num_parameters, stage=stage, partition=num_parameters, precision="fp32", device="cpu"
    )
    kept = activation_bytes(
        config.model, 512, config.example_shape, windows=2, precision="fp32", recompute="none"
    )
    assert state is not None
    needed = state + buffers + kept.plain
    # How much is retained depends on the C library.
    assert 0.95 * needed <= added <= 1.05 * (needed + retained_bytes(num_parameters, stage=stage)), (
        added / num_parameters,
        needed / num_parameters,
    )
