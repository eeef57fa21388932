"""One training step of tiny models, with each fused operation in Triton, against the plain path; takes names.

Prints {model: {"calls": {operation: number}, "loss": difference, "grad": the largest relative error of a
parameter's gradient}} as JSON.
"""

from __future__ import annotations

import json
import sys
from typing import Any

import interpreted

interpreted.prepare()

import torch  # noqa: E402
from tolerances import relative_error  # noqa: E402

from reptrain.config.model import DecoderConfig, T5Config  # noqa: E402
from reptrain.model import DropoutContext, Routing, build_model  # noqa: E402
from reptrain_kernels.implementation import assume  # noqa: E402
from reptrain_kernels.ops.attention import triton as attention_triton  # noqa: E402
from reptrain_kernels.ops.attention.tiles import Tiles  # noqa: E402
from reptrain_kernels.ops.gated import triton as gated_triton  # noqa: E402
from reptrain_kernels.ops.grouped import tiles as grouped_tiles  # noqa: E402
from reptrain_kernels.ops.grouped import triton as grouped_triton  # noqa: E402
from reptrain_kernels.ops.linear_cross_entropy import Targets  # noqa: E402
from reptrain_kernels.ops.linear_cross_entropy import triton as linear_cross_entropy_triton  # noqa: E402
from reptrain_kernels.ops.norm import triton as norm_triton  # noqa: E402
from reptrain_kernels.ops.permute import triton as permute_triton  # noqa: E402
from reptrain_kernels.ops.rope import triton as rope_triton  # noqa: E402
from reptrain_kernels.ops.router import triton as router_triton  # noqa: E402

# What is counted: an operation's forward pass, by its place in a module.
OPERATIONS = {
    "attention": (attention_triton, "attention_forward"),
    "gated": (gated_triton, "gated_forward"),
    "norm": (norm_triton, "norm_forward"),
    "join": (norm_triton, "join_forward"),
    "rotate": (rope_triton, "rotate_both"),
    "route": (router_triton, "route"),
    "sort": (permute_triton, "sort"),
    "dispatch": (permute_triton, "dispatch"),
    "experts": (grouped_triton, "grouped_mlp"),
    "combine": (permute_triton, "combine"),
    "launches": (grouped_triton, "launch_rows"),
    "loss": (linear_cross_entropy_triton, "linear_cross_entropy_forward"),
}
VOCAB, S, T = 31, 20, 17
RATES = {"embedding": 0.1, "attention": 0.2, "residual": 0.1, "mlp": 0.1, "path": 0.1, "expert": 0.2}
SOURCE = torch.tensor([[1] * 9 + [2] * 7 + [0] * 4])
TARGET = torch.tensor([[1] * 6 + [2] * 5 + [3] * 3 + [0] * 3])


def cases() -> dict[str, tuple[Any, dict[str, Any]]]:
    """Configurations and inputs: documents and padding, and targets of a document that has no source."""
    t5 = {"family": "t5", "d_model": 16, "num_heads": 2, "head_dim": 12, "d_ff": 24, "dropout": RATES}
    t5 |= {"relative_buckets": 8, "relative_max_distance": 16}
    decoder = {"d_model": 16, "num_heads": 4, "num_kv_heads": 2, "d_ff": 24, "num_layers": 2}
    decoder |= {"dropout": RATES}
    source_BS, tokens_BT = torch.randint(VOCAB, (1, S)), torch.randint(VOCAB, (1, T))
    of_t5 = {
        "source_BS": source_BS,
        "inputs_BT": tokens_BT,
        "source_segments_BS": SOURCE,
        "segments_BT": TARGET,
    }
    of_decoder = {"tokens_BT": tokens_BT, "segments_BT": TARGET}
    one_each = {"num_encoder_layers": 1, "num_decoder_layers": 1}
    relu = {"mlp": "relu", "moe": {"num_experts": 3, "top_k": 1, "capacity_factor": 1.0}}
    gated = {"num_experts": 4, "score": "sigmoid", "shared_d_ff": 8, "jitter": 0.1, "bias_rate": 0.01}
    one = {"num_layers": 1, "moe": gated}
    return {
        "t5": (T5Config.model_validate(t5 | {"num_encoder_layers": 1, "num_decoder_layers": 2}), of_t5),
        "decoder": (DecoderConfig.model_validate(decoder), of_decoder),
        "sparse_t5": (T5Config.model_validate(t5 | one_each | relu), of_t5),
        # The attention kernel has no sliding window: torch attends, with a mask.
        "windowed_decoder": (
            DecoderConfig.model_validate(decoder | {"num_layers": 1, "sliding_window": 4}),
            of_decoder,
        ),
        "t5_with_biases_by_layer": (
            T5Config.model_validate(t5 | one_each | {"relative_bias_per_layer": True, "mlp": "swiglu"}),
            of_t5,
        ),
        "sparse_decoder": (
            DecoderConfig.model_validate(decoder | one),
            of_decoder,
        ),
    }


def plain(config: Any) -> Any:
    """The same model with one product for each expert."""
    if config.moe is None:
        return config
    return config.model_copy(update={"moe": config.moe.model_copy(update={"backend": "loop"})})


def step(config: Any, inputs: dict[str, Any]) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """The loss and every parameter's gradient."""
    model = build_model(config, vocab_size=VOCAB, seed=3)
    # Products with weights, of dense and of sparse layers, are kept in one of the models.
    model.recompute = "selective" if config.moe is not None and config.moe.shared_d_ff else "full"
    context, routing = DropoutContext(seed=1, step=2, row_B=torch.arange(1)), Routing(torch.tensor([T]))
    number = torch.tensor(0.1, dtype=torch.float64)
    targets = Targets(torch.arange(T)[None] % VOCAB, torch.full((1, T), 1 / T), number, number)
    loss = model(**inputs, dropout=context, routing=routing, targets=targets).loss
    loss = loss if routing.loss_nats is None else loss + routing.loss_nats / T
    loss.backward()
    return loss.detach(), {name: p.grad for name, p in model.named_parameters()}


def count_calls(name: str, counts: dict[str, int]) -> None:
    """From now on each call of an operation adds one to its count."""
    module, attribute = OPERATIONS[name]
    forward = getattr(module, attribute)

    def counted(*arguments: Any, **keywords: Any) -> Any:
        counts[name] = counts.get(name, 0) + 1
        return forward(*arguments, **keywords)

    setattr(module, attribute, counted)


def compared(config: Any, inputs: dict[str, Any], calls: dict[str, int]) -> dict[str, Any]:
    """The Triton path against the plain one."""
    loss, grads = step(plain(config), inputs)
    assert not calls
    with assume(impl="triton"):
        fused_loss, fused_grads = step(config, inputs)
    counted = dict(calls)
    calls.clear()
    return {
        "calls": counted,
        "loss": abs(loss - fused_loss).item(),
        "grad": max(relative_error(fused_grads[name], grad, grad) for name, grad in grads.items()),
    }


if __name__ == "__main__":
    torch.manual_seed(0)
    attention_triton.attention_tiles = lambda *_: Tiles(16, 16, 4, 1)
    grouped_triton.grouped_tiles = lambda *_: grouped_tiles.Tiles(16, 16, 16, 4, 1)
    counts: dict[str, int] = {}
    for name in OPERATIONS:
        count_calls(name, counts)
    known = cases()
    print(json.dumps({name: compared(*known[name], counts) for name in sys.argv[1:]}))
