"""An encoder-decoder transformer: T5 1.1 and 1.0.

Shapes: B rows, S positions of the encoder, T positions of the decoder (in a stack: its own), H heads,
D width of the residual stream, V rows of the vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from reptrain.config.schema import T5Config
from reptrain.model.blocks import run_blocks
from reptrain.model.dropout import Dropout, DropoutContext, Site
from reptrain.model.norm import RMSNorm
from reptrain.model.relative_bias import RelativeBias
from reptrain.model.segments import same_segment
from reptrain.model.t5_attention import T5Attention
from reptrain.model.t5_mlp import T5MLP
from reptrain.sizes import embedding_rows


class Source(NamedTuple):
    """What the decoder reads of the encoder."""

    states_BSD: Tensor
    bias_B1TS: Tensor
    """-inf where a position may not read; 0 all along where it finds nothing to read."""
    found_BT1: Tensor
    """Whether a position finds anything to read; where not, cross-attention gives zeros."""


def read_source(states_BSD: Tensor, source_segments_BS: Tensor, segments_BT: Tensor) -> Source:
    """Let each position of the decoder read the encoder's positions of its own segment."""
    visible_BTS = same_segment(segments_BT, source_segments_BS)
    found_BT1 = visible_BTS.any(-1, keepdim=True)
    hidden_B1TS = (~visible_BTS & found_BT1)[:, None]
    bias_B1TS = states_BSD.new_zeros(hidden_B1TS.shape).masked_fill(hidden_B1TS, -torch.inf)
    return Source(states_BSD, bias_B1TS, found_BT1)


class EncoderBlock(nn.Module):
    """Attention, then the MLP, each normalized before and added to the residual stream.

    Args:
        config: The model.
        layer: Number of the block in the whole model, which keys the dropout.
    """

    def __init__(self, config: T5Config, layer: int) -> None:
        super().__init__()
        rate = config.dropout.residual
        self.attention_norm = RMSNorm(config.d_model, config.norm_eps)
        self.attention = T5Attention(config, Site.ATTENTION_WEIGHTS.number(layer))
        self.attention_dropout = Dropout(rate, Site.ATTENTION_RESIDUAL.number(layer))
        self.mlp_norm = RMSNorm(config.d_model, config.norm_eps)
        self.mlp = T5MLP(config, layer)
        self.mlp_dropout = Dropout(rate, Site.MLP_RESIDUAL.number(layer))

    def forward(self, x_BTD: Tensor, bias_BHTT: Tensor, key_B: Tensor | None) -> Tensor:
        """One layer; ``key_B`` are the rows' dropout keys, None drops nothing."""
        return self.transform(self.mix(x_BTD, bias_BHTT, key_B), key_B)

    def mix(self, x_BTD: Tensor, bias_BHTT: Tensor, key_B: Tensor | None) -> Tensor:
        """The layer's self-attention."""
        normed_BTD = self.attention_norm(x_BTD)
        mixed_BTD = self.attention(normed_BTD, normed_BTD, bias_BHTT, key_B)
        return x_BTD + self.attention_dropout(mixed_BTD, key_B)

    def transform(self, x_BTD: Tensor, key_B: Tensor | None) -> Tensor:
        """The layer's MLP."""
        return x_BTD + self.mlp_dropout(self.mlp(self.mlp_norm(x_BTD), key_B), key_B)


class DecoderBlock(EncoderBlock):
    """As the encoder's, and between its two parts it reads the encoder's states."""

    def __init__(self, config: T5Config, layer: int) -> None:
        super().__init__(config, layer)
        self.cross_norm = RMSNorm(config.d_model, config.norm_eps)
        self.cross_attention = T5Attention(config, Site.CROSS_WEIGHTS.number(layer))
        self.cross_dropout = Dropout(config.dropout.residual, Site.CROSS_RESIDUAL.number(layer))

    def forward(self, x_BTD: Tensor, bias_BHTT: Tensor, key_B: Tensor | None, source: Source) -> Tensor:
        """One layer; ``key_B`` are the rows' dropout keys, None drops nothing."""
        x_BTD = self.mix(x_BTD, bias_BHTT, key_B)
        read_BTD = self.cross_attention(self.cross_norm(x_BTD), source.states_BSD, source.bias_B1TS, key_B)
        x_BTD = x_BTD + self.cross_dropout(read_BTD * source.found_BT1, key_B)
        return self.transform(x_BTD, key_B)


class Stack(nn.Module):
    """The blocks of the encoder or of the decoder, from embeddings to normalized states.

    Args:
        config: The model.
        blocks: Its layers.
        first_layer: Number of its first layer in the whole model, which keys the dropout.
        causal: Whether a position reads itself and those before it only.
    """

    def __init__(
        self, config: T5Config, blocks: list[EncoderBlock], *, first_layer: int, causal: bool
    ) -> None:
        super().__init__()
        self.causal = causal
        self.relative_bias = RelativeBias(config, bidirectional=not causal)
        self.embedding_dropout = Dropout(config.dropout.embedding, Site.EMBEDDING.number(first_layer))
        self.blocks = nn.ModuleList(blocks)
        self.norm = RMSNorm(config.d_model, config.norm_eps)
        self.output_dropout = Dropout(config.dropout.residual, Site.STACK_OUTPUT.number(first_layer))

    def forward(
        self, x_BTD: Tensor, segments_BT: Tensor, key_B: Tensor | None, *source: Source, recompute: bool
    ) -> Tensor:
        """All layers; ``recompute`` the activations of the blocks in the backward pass."""
        visible_BTT = same_segment(segments_BT, segments_BT)
        if self.causal:
            visible_BTT = visible_BTT.tril()
        bias_HTT = self.relative_bias(x_BTD.shape[1], x_BTD.device)
        bias_BHTT = torch.where(visible_BTT[:, None], bias_HTT, -torch.inf)
        x_BTD = self.embedding_dropout(x_BTD, key_B)
        x_BTD = run_blocks(self.blocks, x_BTD, bias_BHTT, key_B, *source, recompute=recompute)
        return self.output_dropout(self.norm(x_BTD), key_B)


class EncoderDecoder(nn.Module):
    """T5. Its weights are set by `build_model`.

    Args:
        config: The model.
        vocab_size: Ids of the tokenizer.

    Raises:
        ConfigError: If the configured embedding is smaller than the vocabulary.

    Source:
        Raffel et al., "Exploring the limits of transfer learning with a unified text-to-text
        transformer", 2020, and the authors' later release 1.1.
    """

    def __init__(self, config: T5Config, *, vocab_size: int) -> None:
        super().__init__()
        self.config = config
        self.checkpoint_blocks = False
        rows = embedding_rows(config, vocab_size)
        middle, end = config.num_encoder_layers, config.num_encoder_layers + config.num_decoder_layers
        self.embedding = nn.Embedding(rows, config.d_model)
        self.encoder = Stack(
            config, [EncoderBlock(config, layer) for layer in range(middle)], first_layer=0, causal=False
        )
        self.decoder = Stack(
            config,
            [DecoderBlock(config, layer) for layer in range(middle, end)],
            first_layer=middle,
            causal=True,
        )
        self.head = nn.Linear(config.d_model, rows, bias=False)
        self.tie_head()

    def tie_head(self) -> None:
        """Share the embedding with the head where the configuration asks for it."""
        if self.config.tie_embeddings:
            self.head.weight = self.embedding.weight

    def forward(
        self,
        source_BS: Tensor,
        inputs_BT: Tensor,
        *,
        source_segments_BS: Tensor,
        segments_BT: Tensor,
        dropout: DropoutContext | None = None,
    ) -> Tensor:
        """Logits of the target at each position of the decoder.

        Args:
            source_BS: int64, read by the encoder.
            inputs_BT: int64, the targets shifted right.
            source_segments_BS: Segments of ``source_BS`` (see `reptrain.model.segments`).
            segments_BT: Segments of ``inputs_BT``. Where one has no source, nothing is read.
            dropout: What keys the masks; None drops nothing, and nothing is dropped in evaluation mode.

        Returns:
            logits_BTV, in the dtype of the weights or of autocast.
        """
        key_B = dropout.key_B if dropout is not None and self.training else None
        recompute = self.checkpoint_blocks and self.training
        states_BSD = self.encoder(self.embedding(source_BS), source_segments_BS, key_B, recompute=recompute)
        source = read_source(states_BSD, source_segments_BS, segments_BT)
        x_BTD = self.decoder(self.embedding(inputs_BT), segments_BT, key_B, source, recompute=recompute)
        # A tied head meets an embedding of unit variance.
        scale = self.config.d_model**-0.5 if self.config.tie_embeddings else 1.0
        return self.head(x_BTD * scale)
