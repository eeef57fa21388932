"""A decoder of the GPT-2 kind in a short loop of plain torch, as nanoGPT trains one.

Shapes: B rows, T positions, D width, N heads, H width of a head.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from reptrain.bench.measure import Missing
from reptrain.bench.peers.torch_loop import torch_loop
from reptrain.config import RunConfig
from reptrain.config.model import DecoderConfig
from reptrain.sizes import embedding_rows


class _Block(nn.Module):
    def __init__(self, width: int, heads: int, hidden: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.mlp_norm = nn.LayerNorm(width, bias=False), nn.LayerNorm(width, bias=False)
        self.qkv, self.output = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, hidden, bias=False), nn.Linear(hidden, width, bias=False)

    def forward(self, x_BTD: Tensor) -> Tensor:
        qkv_BTD = self.qkv(self.norm(x_BTD)).chunk(3, dim=-1)
        q_BNTH, k_BNTH, v_BNTH = (x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in qkv_BTD)
        mixed_BNTH = F.scaled_dot_product_attention(q_BNTH, k_BNTH, v_BNTH, is_causal=True)
        x_BTD = x_BTD + self.output(mixed_BNTH.transpose(1, 2).flatten(2))
        y_BTD: Tensor = x_BTD + self.down(F.gelu(self.up(self.mlp_norm(x_BTD))))
        return y_BTD


class _GPT(nn.Module):
    def __init__(self, config: DecoderConfig, vocab_size: int, positions: int) -> None:
        super().__init__()
        width = config.d_model
        self.token, self.position = nn.Embedding(vocab_size, width), nn.Embedding(positions, width)
        # The gated MLP of the other models has three matrices, this one two.
        hidden = 3 * config.d_ff // 2
        self.blocks = nn.ModuleList(_Block(width, config.num_heads, hidden) for _ in range(config.num_layers))
        self.norm = nn.LayerNorm(width, bias=False)

    def forward(self, ids_BT: Tensor, targets_BT: Tensor) -> Tensor:
        x_BTD = self.token(ids_BT) + self.position(torch.arange(ids_BT.shape[1]))
        for block in self.blocks:
            x_BTD = block(x_BTD)
        logits_BTV = F.linear(self.norm(x_BTD), self.token.weight)
        return F.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten())


def plain_gpt_loop(config: RunConfig) -> Iterator[float] | Missing:
    """The loss of each step, without end.

    Args:
        config: The run, of a decoder whose sizes the model takes.
    """
    if not isinstance(config.model, DecoderConfig):
        return Missing("a decoder only")
    return _steps(config, config.model)


def _steps(config: RunConfig, sizes: DecoderConfig) -> Iterator[float]:
    torch.manual_seed(0)
    rows, length = config.train.batch_windows, config.window_tokens
    vocab_size = sizes.vocab_size or embedding_rows(sizes, 256)
    model = _GPT(sizes, vocab_size, length)
    draw = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tokens.bin"
        draw.integers(2, vocab_size, 1 << 20).astype(np.uint16).tofile(path)

        def loss_of_batch() -> Tensor:
            stream = np.memmap(path, np.uint16, "r")
            starts = draw.integers(0, len(stream) - length - 1, rows)
            ids_BT = torch.from_numpy(
                np.stack([stream[at : at + length + 1] for at in starts]).astype(np.int64)
            )
            loss: Tensor = model(ids_BT[:, :-1], ids_BT[:, 1:])
            return loss

        yield from torch_loop(model, loss_of_batch, precision=config.train.precision)
