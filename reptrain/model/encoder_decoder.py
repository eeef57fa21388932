"""An encoder-decoder transformer: T5 1.1 and 1.0.

Shapes: B rows, S positions of the encoder, T positions of the decoder (in a stack: its own), H heads,
D width of the residual stream, V rows of the vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn

from reptrain.config.model import MoEConfig, Recompute, StackShape, T5Config
from reptrain.model.attention_mask import cross_mask, self_mask
from reptrain.model.blocks import run_layers, sparse_layers
from reptrain.model.cache import Cache, LayerCache
from reptrain.model.dropout import BranchDropout, Dropout, DropoutContext, Site, site_keys
from reptrain.model.head import Head
from reptrain.model.norm import RMSNorm
from reptrain.model.relative_bias import RelativeBias
from reptrain.model.router import RoutedTokens
from reptrain.model.sparse import LayerRouting, Routing, SparseMLP, build_mlp, transform
from reptrain.model.t5_attention import T5Attention
from reptrain.sizes import embedding_rows
from reptrain_kernels.ops.attention import AttentionMask
from reptrain_kernels.ops.linear_cross_entropy import Loss, Targets
from reptrain_kernels.ops.norm import Drops


class Source(NamedTuple):
    """The encoder's output, as the decoder attends to it."""

    states_BSD: Tensor
    mask: AttentionMask


class EncoderBlock(nn.Module):
    """Attention, then the MLP, each normalized before and added to the residual stream.

    Args:
        config: The model.
        sparse: How the MLP is sparse; None where it is dense.
        causal: Whether its self-attention is.
    """

    def __init__(self, config: T5Config, sparse: MoEConfig | None, *, causal: bool) -> None:
        super().__init__()
        rates = config.dropout
        self.relative_bias = None
        if config.relative_bias_per_layer:
            self.relative_bias = RelativeBias(config, bidirectional=not causal)
        self.attention_norm = RMSNorm(config.d_model, config.norm_eps)
        self.attention = T5Attention(config, Site.ATTENTION_WEIGHTS)
        self.attention_dropout = BranchDropout(
            rates.residual, rates.path, Site.ATTENTION_RESIDUAL, Site.ATTENTION_PATH
        )
        self.mlp_norm = RMSNorm(config.d_model, config.norm_eps)
        self.mlp = build_mlp(
            config.d_model,
            config.d_ff,
            activation=config.mlp,
            sparse=sparse,
            dropout=rates.mlp,
            expert_dropout=rates.expert,
        )
        self.mlp_dropout = BranchDropout(rates.residual, rates.path, Site.MLP_RESIDUAL, Site.MLP_PATH)

    def forward(
        self, x_BTD: Tensor, keys_PB: Tensor | None, routed: RoutedTokens, mask: AttentionMask
    ) -> tuple[Tensor, LayerRouting | None]:
        """One layer (see `run_layers`)."""
        mixed_BTD = self.mix(x_BTD, mask, keys_PB)
        return self.transform(x_BTD, mixed_BTD, self.attention_dropout.drops(keys_PB), keys_PB, routed)

    def mix(
        self,
        x_BTD: Tensor,
        mask: AttentionMask,
        keys_PB: Tensor | None,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """The branch of the layer's self-attention; a layer with its own bias adds it to the mask."""
        if self.relative_bias is not None:
            mask = self.relative_bias(mask)
        normed_BTD = self.attention_norm(x_BTD)
        return self.attention(normed_BTD, normed_BTD, mask, keys_PB, cache)

    def transform(
        self, x_BTD: Tensor, branch_BTD: Tensor, drops: Drops, keys_PB: Tensor | None, routed: RoutedTokens
    ) -> tuple[Tensor, LayerRouting | None]:
        """The layer's MLP, of the stream that a branch joins before."""
        x_BTD, normed_BTD = self.mlp_norm(x_BTD, branch_BTD, drops)
        transformed_BTD, routing = transform(self.mlp, normed_BTD, keys_PB, routed)
        return self.mlp_dropout(x_BTD, transformed_BTD, keys_PB), routing


class DecoderBlock(EncoderBlock):
    """As the encoder's, and between its two parts it reads the encoder's states."""

    def __init__(self, config: T5Config, sparse: MoEConfig | None, *, causal: bool) -> None:
        super().__init__(config, sparse, causal=causal)
        self.cross_norm = RMSNorm(config.d_model, config.norm_eps)
        self.cross_attention = T5Attention(config, Site.CROSS_WEIGHTS)
        self.cross_dropout = BranchDropout(
            config.dropout.residual, config.dropout.path, Site.CROSS_RESIDUAL, Site.CROSS_PATH
        )

    def forward(
        self,
        x_BTD: Tensor,
        keys_PB: Tensor | None,
        routed: RoutedTokens,
        mask: AttentionMask,
        source: Source,
        cache: LayerCache | None = None,
    ) -> tuple[Tensor, LayerRouting | None]:
        """One layer (see `run_layers`)."""
        mixed_BTD = self.mix(x_BTD, mask, keys_PB, cache)
        x_BTD, normed_BTD = self.cross_norm(x_BTD, mixed_BTD, self.attention_dropout.drops(keys_PB))
        read_BTD = self.cross_attention(
            normed_BTD,
            source.states_BSD,
            source.mask,
            keys_PB,
            None if cache is None else cache.cross,
        )
        return self.transform(x_BTD, read_BTD, self.cross_dropout.drops(keys_PB), keys_PB, routed)


class Stack(nn.Module):
    """The layers of the encoder or of the decoder, from embeddings to normalized states.

    Args:
        config: The model.
        shape: Of the stack.
        block: Class of its layers.
        first_layer: Number of its first layer in the whole model, which keys the dropout.
        causal: Whether a position reads itself and those before it only.
    """

    def __init__(
        self,
        config: T5Config,
        shape: StackShape,
        block: type[EncoderBlock],
        *,
        first_layer: int,
        causal: bool,
    ) -> None:
        super().__init__()
        self.shape = shape
        self.first_layer = first_layer
        self.causal = causal
        self.relative_bias = None
        if not config.relative_bias_per_layer:
            self.relative_bias = RelativeBias(config, bidirectional=not causal)
        self.embedding_dropout = Dropout(config.dropout.embedding, Site.EMBEDDING)
        self.blocks = nn.ModuleList(
            block(config, shape.sparse(layer), causal=causal) for layer in range(shape.stored)
        )
        self.norm = RMSNorm(config.d_model, config.norm_eps)
        self.output_dropout = Dropout(config.dropout.residual, Site.STACK_OUTPUT)

    def forward(
        self,
        x_BTD: Tensor,
        segments_BT: Tensor,
        *source: Source,
        key_B: Tensor | None,
        num_targets_B: Tensor | None,
        recompute: Recompute,
        cache: Cache | None = None,
    ) -> tuple[Tensor, list[LayerRouting]]:
        """All layers (see `run_layers`); the decoder is given its source."""
        if cache is not None:
            cache.advance(segments_BT > 0)
        mask = self_mask(segments_BT, causal=self.causal, cache=cache)
        if self.relative_bias is not None:
            mask = self.relative_bias(mask)
        # What belongs to no layer is keyed as the first one's.
        keys_PB = site_keys(key_B, self.first_layer)
        x_BTD, layers = run_layers(
            self.blocks,
            self.embedding_dropout(x_BTD, keys_PB),
            mask,
            *source,
            key_B=key_B,
            routed=RoutedTokens(segments_BT > 0, num_targets_B),
            shape=self.shape,
            first_layer=self.first_layer,
            recompute=recompute,
            cache=cache,
        )
        return self.output_dropout(self.norm(x_BTD), keys_PB), layers


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
        self.recompute: Recompute = "none"
        rows = embedding_rows(config, vocab_size)
        self.embedding = nn.Embedding(rows, config.d_model)
        self.encoder = Stack(config, config.encoder, EncoderBlock, first_layer=0, causal=False)
        self.decoder = Stack(
            config, config.decoder, DecoderBlock, first_layer=config.num_encoder_layers, causal=True
        )
        self.head = Head(config.d_model, rows)
        self.tie_head()

    def tie_head(self) -> None:
        """Share the embedding with the head where the configuration asks for it."""
        if self.config.tie_embeddings:
            self.head.weight = self.embedding.weight

    def sparse_layers(self) -> list[tuple[str, SparseMLP]]:
        """The sparse MLPs by their layer, in the order in which they run: a shared one several times."""
        stacks = {"encoder": self.encoder, "decoder": self.decoder}
        return [
            (f"{name} {layer}", mlp)
            for name, stack in stacks.items()
            for layer, mlp in sparse_layers(stack.blocks, stack.shape)
        ]

    def forward(
        self,
        source_BS: Tensor,
        inputs_BT: Tensor,
        *,
        source_segments_BS: Tensor,
        segments_BT: Tensor,
        dropout: DropoutContext | None = None,
        routing: Routing | None = None,
        targets: Targets | None = None,
    ) -> Tensor | Loss:
        """Logits of the target at each position of the decoder, or what the targets lose by them.

        Args:
            source_BS: int64, read by the encoder.
            inputs_BT: int64, the targets shifted right.
            source_segments_BS: Segments of ``source_BS`` (see `reptrain.model.segments`).
            segments_BT: Segments of ``inputs_BT``. Where one has no source, nothing is read.
            dropout: What keys the masks; None drops nothing, and nothing is dropped in evaluation mode.
            routing: Filled with what the routers did, the encoder's first.
            targets: One for each position of the decoder.

        Returns:
            logits_BTV, in the dtype of the weights or of autocast; with targets their loss.
        """
        key_B = dropout.key_B if dropout is not None and self.training else None
        common = {
            "key_B": key_B,
            "num_targets_B": None if routing is None else routing.num_targets_B,
            "recompute": self.recompute if self.training else "none",
        }
        states_BSD, layers = self.encoder(self.embedding(source_BS), source_segments_BS, **common)
        source = Source(states_BSD, cross_mask(segments_BT, source_segments_BS))
        x_BTD, more_layers = self.decoder(self.embedding(inputs_BT), segments_BT, source, **common)
        if routing is not None:
            routing.fill(layers + more_layers)
        return self._score(x_BTD, targets)

    def encode(self, source_BS: Tensor, source_segments_BS: Tensor) -> Tensor:
        """What the decoder reads of the source, states_BSD, in evaluation mode."""
        states_BSD, _ = self.encoder(
            self.embedding(source_BS), source_segments_BS, key_B=None, num_targets_B=None, recompute="none"
        )
        return states_BSD

    def decode(
        self,
        inputs_BT: Tensor,
        segments_BT: Tensor,
        states_BSD: Tensor,
        source_segments_BS: Tensor,
        *,
        cache: Cache,
    ) -> Tensor:
        """Logits of the target at each row's last token, logits_B1V, in evaluation mode.

        Args:
            inputs_BT: int64, the next inputs of the decoder; padding may only stand behind.
            segments_BT: 1 for tokens, 0 for padding.
            states_BSD: Of `encode`.
            source_segments_BS: As given to `encode`, of 1 and 0.
            cache: Of the inputs before these, to which it adds these.
        """
        source = Source(states_BSD, cross_mask(segments_BT, source_segments_BS))
        x_BTD, _ = self.decoder(
            self.embedding(inputs_BT),
            segments_BT,
            source,
            key_B=None,
            num_targets_B=None,
            recompute="none",
            cache=cache,
        )
        return self._score(cache.last(x_BTD))

    def _score(self, x_BTD: Tensor, targets: Targets | None = None) -> Tensor | Loss:
        # A tied head meets an embedding of unit variance.
        scale = self.config.d_model**-0.5 if self.config.tie_embeddings else 1.0
        return self.head(x_BTD * scale, targets)
