"""An encoder-decoder transformer: T5 1.1 and 1.0.

Shapes: B rows, S positions of the encoder, T positions of the decoder (in a stack: of that stack), H heads,
D width of the residual stream, V rows of the vocabulary.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, nn

from reptrain.config.model import MoEConfig, Recompute, StackShape, T5Config
from reptrain.model.attention_mask import cross_mask, self_mask
from reptrain.model.blocks import run_layers, sparse_layers
from reptrain.model.cache import Cache, LayerCache
from reptrain.model.dropout import BranchDropout, Dropout, DropoutContext, LayerKeys, Site, layer_keys
from reptrain.model.head import Distribution, Head
from reptrain.model.input_digest import Witness, row_digests
from reptrain.model.norm import RMSNorm
from reptrain.model.relative_bias import RelativeBias
from reptrain.model.router import RoutedTokens
from reptrain.model.sequence import WHOLE_SEQUENCE, WholeSequence
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
    sequence: WholeSequence = WHOLE_SEQUENCE
    """Which of the encoder's positions the states are."""


class T5Block(nn.Module):
    """The parts that layers of encoder and decoder share: self-attention and MLP, pre-norm.

    Args:
        config: The model.
        sparse: Configuration of a sparse MLP; None: a dense MLP.
        causal: Whether self-attention is causal.
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
        self.mlp = build_mlp(config, sparse)
        self.mlp_dropout = BranchDropout(rates.residual, rates.path, Site.MLP_RESIDUAL, Site.MLP_PATH)

    def mix(
        self,
        x_BTD: Tensor,
        mask: AttentionMask,
        sequence: WholeSequence,
        keys: LayerKeys | None,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """The branch of the layer's self-attention; a layer with its own bias adds it to the mask."""
        if self.relative_bias is not None:
            mask = self.relative_bias(mask, sequence)
        normed_BTD = self.attention_norm(x_BTD)
        return self.attention(normed_BTD, normed_BTD, mask, keys, cache, sequence, sequence)

    def transform(
        self, x_BTD: Tensor, branch_BTD: Tensor, drops: Drops, keys: LayerKeys | None, routed: RoutedTokens
    ) -> tuple[Tensor, LayerRouting | None]:
        """Add the branch before the MLP to the residual stream, then apply the MLP."""
        x_BTD, normed_BTD = self.mlp_norm(x_BTD, branch_BTD, drops)
        transformed_BTD, routing = transform(self.mlp, normed_BTD, keys, routed)
        return self.mlp_dropout(x_BTD, transformed_BTD, keys), routing


class EncoderBlock(T5Block):
    """A layer of the encoder: self-attention, then the MLP, each with a residual add."""

    def forward(
        self,
        x_BTD: Tensor,
        keys: LayerKeys | None,
        routed: RoutedTokens,
        mask: AttentionMask,
        sequence: WholeSequence,
    ) -> tuple[Tensor, LayerRouting | None]:
        """One layer (see `run_layers`)."""
        mixed_BTD = self.mix(x_BTD, mask, sequence, keys)
        return self.transform(x_BTD, mixed_BTD, self.attention_dropout.drops(keys), keys, routed)


class DecoderBlock(T5Block):
    """A layer of the decoder: self-attention, cross-attention, then the MLP, each with a residual add."""

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
        keys: LayerKeys | None,
        routed: RoutedTokens,
        mask: AttentionMask,
        sequence: WholeSequence,
        source: Source,
        cache: LayerCache | None = None,
    ) -> tuple[Tensor, LayerRouting | None]:
        """One layer (see `run_layers`)."""
        mixed_BTD = self.mix(x_BTD, mask, sequence, keys, cache)
        x_BTD, normed_BTD = self.cross_norm(x_BTD, mixed_BTD, self.attention_dropout.drops(keys))
        read_BTD = self.cross_attention(
            normed_BTD,
            source.states_BSD,
            source.mask,
            keys,
            None if cache is None else cache.cross,
            sequence,
            source.sequence,
        )
        return self.transform(x_BTD, read_BTD, self.cross_dropout.drops(keys), keys, routed)


class Stack(nn.Module):
    """The encoder or the decoder, from embeddings to normalized states.

    Args:
        config: The model.
        shape: Shape of the stack.
        block: Class of its layers.
        first_layer: Index of its first layer in the whole model, which keys the dropout masks.
        causal: Whether self-attention is causal.
    """

    def __init__(
        self,
        config: T5Config,
        shape: StackShape,
        block: type[EncoderBlock] | type[DecoderBlock],
        *,
        first_layer: int,
        causal: bool,
    ) -> None:
        super().__init__()
        self.shape = shape
        self.first_layer = first_layer
        self.num_heads = config.num_heads
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
        sequence: WholeSequence = WHOLE_SEQUENCE,
        key_B: Tensor | None = None,
        num_targets_B: Tensor | None = None,
        recompute: Recompute = "none",
        cache: Cache | None = None,
    ) -> tuple[Tensor, list[LayerRouting]]:
        """Apply all layers (see `run_layers`).

        Args:
            x_BTD: Embeddings, of this rank's positions.
            segments_BT: int64, segment of each position, 0 for padding; attention stays within a segment.
            source: Inputs of cross-attention, for the decoder only.
            sequence: Which positions are those of this rank.
            key_B: int64, dropout key of each row; None: no dropout.
            num_targets_B: int64, number of targets in each row; None: no router losses.
            recompute: Which activations the backward pass recomputes.
            cache: The decoder's cache of previous positions.

        Returns:
            Normalized states, and the routing of each sparse layer.
        """
        if cache is not None:
            cache.advance(segments_BT > 0)
        mask = self_mask(segments_BT, causal=self.causal, cache=cache)
        if self.relative_bias is not None:
            mask = self.relative_bias(mask, sequence)
        # Dropout outside of the layers uses the keys of the first one.
        keys = layer_keys(key_B, self.first_layer, self.shape.num_layers, self.num_heads)
        keys = sequence.keys(keys, x_BTD.device)
        x_BTD, layers = run_layers(
            self.blocks,
            self.embedding_dropout(x_BTD, keys[0]),
            mask,
            sequence,
            *source,
            keys=keys,
            routed=RoutedTokens(segments_BT > 0, num_targets_B),
            shape=self.shape,
            recompute=recompute,
            cache=cache,
        )
        return self.output_dropout(self.norm(x_BTD), keys[0]), layers


class EncoderDecoder(nn.Module):
    """T5. `build_model` initializes its weights.

    Args:
        config: The model.
        vocab_size: Number of ids of the tokenizer.

    Raises:
        ConfigError: If the configured embedding is smaller than the vocabulary.

    Source:
        Raffel et al., "Exploring the limits of transfer learning with a unified text-to-text
        transformer", 2020, and the authors' release of version 1.1.
    """

    def __init__(self, config: T5Config, *, vocab_size: int) -> None:
        super().__init__()
        self.config = config
        self.recompute: Recompute = "none"
        self.sequence = WHOLE_SEQUENCE
        rows = embedding_rows(config, vocab_size)
        self.embedding = nn.Embedding(rows, config.d_model)
        self.encoder = Stack(config, config.encoder, EncoderBlock, first_layer=0, causal=False)
        self.decoder = Stack(
            config, config.decoder, DecoderBlock, first_layer=config.num_encoder_layers, causal=True
        )
        self.head = Head(config.d_model, rows)
        self.tie_head()

    def tie_head(self) -> None:
        """Share the embedding with the head if the configuration ties them."""
        if self.config.tie_embeddings:
            self.head.weight = self.embedding.weight

    def sparse_layers(self) -> list[tuple[str, SparseMLP]]:
        """Layer name and MLP of each sparse layer, in execution order; shared MLPs repeat."""
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
        loss_factor: Tensor | None = None,
        witness: Witness | None = None,
        imitated: Distribution | None = None,
    ) -> Tensor | Loss:
        """Logits of the target at each position of the decoder, or the loss of the targets.

        Args:
            source_BS: int64, inputs of the encoder.
            inputs_BT: int64, inputs of the decoder: the targets shifted right.
            source_segments_BS: int64, segments of ``source_BS`` (see `reptrain.model.segments`).
            segments_BT: int64, segments of ``inputs_BT``; cross-attention outputs 0 in one without a source.
            dropout: Keys of the dropout masks; None: no dropout. Evaluation mode never drops.
            routing: Filled with the losses and statistics of the routers, the encoder's first.
            targets: The target of each position of the decoder; None returns logits.
            loss_factor: float64 scalar on the host, multiplies the targets' weights; None: 1.
            witness: Filled with the input digest; needs ``targets``.
            imitated: A distribution that the loss imitates too; needs ``targets``.

        Returns:
            logits_BTV, in the dtype of the weights or of autocast; with targets, their loss. Under sequence
            parallelism, the logits and the loss are those of this rank's positions.
        """
        key_B = dropout.key_B if dropout is not None and self.training else None
        options: dict[str, Any] = {
            "key_B": key_B,
            "num_targets_B": None if routing is None else routing.num_targets_B,
            "recompute": self.recompute if self.training else "none",
        }
        source_sequence, sequence = self.sequence.of(source_BS.shape[1]), self.sequence.of(inputs_BT.shape[1])
        source_BS, inputs_BT = source_sequence.part(source_BS), sequence.part(inputs_BT)
        targets = sequence.targets(targets)
        states_BSD, layers = self.encoder(
            self.embedding(source_BS), source_segments_BS, sequence=source_sequence, **options
        )
        source = Source(states_BSD, cross_mask(segments_BT, source_segments_BS), source_sequence)
        x_BTD, more_layers = self.decoder(
            self.embedding(inputs_BT), segments_BT, source, sequence=sequence, **options
        )
        if routing is not None:
            routing.fill(layers + more_layers)
        if witness is not None and targets is not None:
            source_B = _digests(
                witness, source_BS, source_segments_BS, source_sequence, causal=self.encoder.causal
            )
            digest_B = _digests(
                witness, inputs_BT, segments_BT, sequence, causal=self.decoder.causal, targets=targets
            )
            witness.fill(source_B, digest_B, targets=targets.target)
        scored = self._score(x_BTD, targets, loss_factor, sequence.imitated(imitated))
        return sequence.of_all_positions(scored)

    def encode(self, source_BS: Tensor, source_segments_BS: Tensor) -> Tensor:
        """The encoder's states, states_BSD, without dropout.

        Args:
            source_BS: int64, inputs of the encoder.
            source_segments_BS: int64, 1 for tokens, 0 for padding.
        """
        states_BSD, _ = self.encoder(self.embedding(source_BS), source_segments_BS)
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
        """Logits of the target at each row's last token, logits_B1V, without dropout.

        Args:
            inputs_BT: int64, next inputs of the decoder, with padding at the end only.
            segments_BT: int64, 1 for tokens, 0 for padding.
            states_BSD: Output of `encode`.
            source_segments_BS: int64, the segments passed to `encode`.
            cache: The cache of previous inputs, to which this call adds its own.
        """
        source = Source(states_BSD, cross_mask(segments_BT, source_segments_BS))
        x_BTD, _ = self.decoder(self.embedding(inputs_BT), segments_BT, source, cache=cache)
        return self._score(cache.last(x_BTD))

    def _score(
        self,
        x_BTD: Tensor,
        targets: Targets | None = None,
        loss_factor: Tensor | None = None,
        imitated: Distribution | None = None,
    ) -> Tensor | Loss:
        # A tied head has the embedding's unit variance.
        scale = self.config.d_model**-0.5 if self.config.tie_embeddings else 1.0
        return self.head(x_BTD * scale, targets, loss_factor, imitated)


def _digests(
    witness: Witness,
    id_BT: Tensor,
    segments_BT: Tensor,
    sequence: WholeSequence,
    *,
    causal: bool,
    targets: Targets | None = None,
) -> Tensor:
    """`row_digests` of a stack's inputs: this rank's ids, and the segments of all positions."""
    segments_BT = sequence.part(segments_BT)
    return row_digests(
        witness.index_B,
        id_BT,
        position_T=sequence.positions(id_BT.device),
        is_token_BT=segments_BT > 0,
        causal=causal,
        segments_BT=segments_BT,
        targets=targets,
    )
