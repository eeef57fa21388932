"""A decoder of LitGPT in a loop like that of its `pretrain`, without Fabric."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from reptrain.bench.measure import Missing, installed
from reptrain.bench.peers.torch_loop import torch_loop
from reptrain.config import RunConfig
from reptrain.config.model import DecoderConfig
from reptrain.sizes import embedding_rows


def litgpt_loop(config: RunConfig) -> Iterator[float] | Missing:
    """The loss of each step on random tokens, without end.

    Args:
        config: The run, of a decoder of the Llama family.
    """
    if not isinstance(config.model, DecoderConfig):
        return Missing("a decoder only")
    if any(installed(package) is None for package in ("litgpt", "lightning")):
        return Missing("not installed")
    return _steps(config, config.model)


def _steps(config: RunConfig, sizes: DecoderConfig) -> Iterator[float]:
    from litgpt.utils import chunked_cross_entropy

    torch.manual_seed(0)
    length = config.window_tokens
    vocab_size = sizes.vocab_size or embedding_rows(sizes, 256)
    model = _model(sizes, vocab_size, length)
    ids_BT = torch.randint(2, vocab_size, (config.train.batch_windows, length + 1))

    def loss_of_batch() -> torch.Tensor:
        loss: torch.Tensor = chunked_cross_entropy(model(ids_BT[:, :-1]), ids_BT[:, 1:])
        return loss

    return torch_loop(model, loss_of_batch, precision=config.train.precision)


def _model(sizes: DecoderConfig, vocab_size: int, positions: int) -> torch.nn.Module:
    from litgpt import GPT, Config

    model = GPT(
        Config(
            name="bench",
            block_size=positions,
            n_layer=sizes.num_layers,
            n_head=sizes.num_heads,
            n_query_groups=sizes.kv_heads,
            n_embd=sizes.d_model,
            intermediate_size=sizes.d_ff,
            vocab_size=vocab_size,
            padded_vocab_size=vocab_size,
            rotary_percentage=1.0,
            parallel_residual=False,
            bias=False,
            norm_class_name="RMSNorm",
            mlp_class_name="LLaMAMLP",
        )
    )
    if sizes.tie_embeddings:
        model.transformer.wte.weight = model.lm_head.weight
    return model
