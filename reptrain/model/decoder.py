"""A decoder-only transformer: the Llama family, and by its options the GPT family.

Shapes: B rows, T positions, D width of the residual stream, V rows of the vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from reptrain.config.model import DecoderConfig, MoEConfig, Recompute
from reptrain.model.attention import CausalAttention
from reptrain.model.attention_mask import decoder_mask
from reptrain.model.blocks import run_layers, sparse_layers
from reptrain.model.cache import Cache, LayerCache
from reptrain.model.dropout import BranchDropout, Dropout, DropoutContext, LayerKeys, Site, layer_keys
from reptrain.model.head import Distribution, Head
from reptrain.model.input_digest import Witness, row_digests
from reptrain.model.norm import build_norm
from reptrain.model.relative_positions import Distances, distances
from reptrain.model.rope import Rotation, rotation
from reptrain.model.router import RoutedTokens
from reptrain.model.segments import positions_in_segment
from reptrain.model.sequence import WHOLE_SEQUENCE, WholeSequence
from reptrain.model.sparse import LayerRouting, Routing, SparseMLP, build_mlp, transform
from reptrain.sizes import embedding_rows
from reptrain_kernels.ops.attention import AttentionMask
from reptrain_kernels.ops.linear_cross_entropy import Loss, Targets


class Block(nn.Module):
    """A pre-norm layer: self-attention, then the MLP, each with a residual add; or both in parallel (PaLM).

    Args:
        config: The model.
        sparse: Configuration of a sparse MLP; None: a dense MLP.
    """

    def __init__(self, config: DecoderConfig, sparse: MoEConfig | None) -> None:
        super().__init__()
        rates = config.dropout
        self.attention_norm = build_norm(config)
        self.attention = CausalAttention(config)
        self.attention_dropout = BranchDropout(
            rates.residual, rates.path, Site.ATTENTION_RESIDUAL, Site.ATTENTION_PATH
        )
        self.mlp_norm = None if config.parallel_block else build_norm(config)
        self.mlp = build_mlp(config, sparse, bias=config.has_mlp_bias)
        self.mlp_dropout = BranchDropout(rates.residual, rates.path, Site.MLP_RESIDUAL, Site.MLP_PATH)

    def forward(
        self,
        x_BTD: Tensor,
        keys: LayerKeys | None,
        routed: RoutedTokens,
        places: Rotation | Distances | None,
        mask: AttentionMask,
        sequence: WholeSequence = WHOLE_SEQUENCE,
        cache: LayerCache | None = None,
    ) -> tuple[Tensor, LayerRouting | None]:
        """One layer (see `run_layers`); the last arguments are those of the attention."""
        normed_BTD = self.attention_norm(x_BTD)
        mixed_BTD = self.attention(normed_BTD, places, mask, keys, cache, sequence)
        if self.mlp_norm is None:
            x_BTD = self.attention_dropout(x_BTD, mixed_BTD, keys)
        else:
            x_BTD, normed_BTD = self.mlp_norm(x_BTD, mixed_BTD, self.attention_dropout.drops(keys))
        transformed_BTD, routing = transform(self.mlp, normed_BTD, keys, routed)
        return self.mlp_dropout(x_BTD, transformed_BTD, keys), routing


class Decoder(nn.Module):
    """A decoder-only transformer. `build_model` initializes its weights.

    Args:
        config: The model.
        vocab_size: Number of ids of the tokenizer.

    Raises:
        ConfigError: If the configured embedding is smaller than the vocabulary.

    Source:
        Touvron et al., "LLaMA: Open and efficient foundation language models", 2023; Radford et al.,
        "Language models are unsupervised multitask learners", 2019 (learned positions, LayerNorm, GELU); Rae
        et al., "Scaling language models", 2021 (Gopher: RMSNorm, relative positions).
    """

    def __init__(self, config: DecoderConfig, *, vocab_size: int) -> None:
        super().__init__()
        self.config = config
        self.recompute: Recompute = "none"
        self.sequence = WHOLE_SEQUENCE
        rows = embedding_rows(config, vocab_size)
        self.embedding = nn.Embedding(rows, config.d_model)
        self.position_embedding = None
        if config.max_positions is not None:
            self.position_embedding = nn.Embedding(config.max_positions, config.d_model)
        self.embedding_dropout = Dropout(config.dropout.embedding, Site.EMBEDDING)
        self.blocks = nn.ModuleList(
            Block(config, config.stack.sparse(layer)) for layer in range(config.stack.stored)
        )
        self.norm = build_norm(config)
        self.head = Head(config.d_model, rows)
        self.tie_head()

    def tie_head(self) -> None:
        """Share the embedding with the head if the configuration ties them."""
        if self.config.tie_embeddings:
            self.head.weight = self.embedding.weight

    def sparse_layers(self) -> list[tuple[str, SparseMLP]]:
        """Layer name and MLP of each sparse layer, in execution order; shared MLPs repeat."""
        return sparse_layers(self.blocks, self.config.stack)

    def forward(
        self,
        tokens_BT: Tensor,
        *,
        segments_BT: Tensor | None = None,
        prefix_B: Tensor | None = None,
        is_token_BT: Tensor | None = None,
        dropout: DropoutContext | None = None,
        routing: Routing | None = None,
        cache: Cache | None = None,
        targets: Targets | None = None,
        loss_factor: Tensor | None = None,
        witness: Witness | None = None,
        imitated: Distribution | None = None,
    ) -> Tensor | Loss:
        """Logits of the next token at each position, or the loss of the targets.

        Args:
            tokens_BT: int64, inputs.
            segments_BT: int64, document index of each position, 0 for padding: a position attends within its
                document, and positions count from the document's start. None: one document per row.
            prefix_B: int64, prefix length: all positions attend to a row's first so many; the length of the
                row makes attention bidirectional. None: causal attention.
            is_token_BT: bool, False for padding, which sparse layers do not route; None: no padding.
            dropout: Keys of the dropout masks; None: no dropout. Evaluation mode never drops.
            routing: Filled with the losses and statistics of the routers.
            cache: The cache of previous positions, to which this call adds its own. Needs ``is_token_BT``,
                with padding at the end only; excludes ``segments_BT`` and ``targets``. A prefix must be in
                the first call.
            targets: The target of each position; None returns logits.
            loss_factor: float64 scalar on the host, multiplies the targets' weights; None: 1.
            witness: Filled with the input digest; needs ``targets``.
            imitated: A distribution that the loss imitates too; needs ``targets``.

        Returns:
            logits_BTV, in the dtype of the weights or of autocast; with a cache, logits_B1V of each row's
            last token; with targets, their loss. Under sequence parallelism, the logits and the loss are
            those of this rank's positions.
        """
        if is_token_BT is None:
            is_token_BT = torch.ones_like(tokens_BT, dtype=torch.bool)
        position_BT = None if segments_BT is None else positions_in_segment(segments_BT)
        num_positions = tokens_BT.shape[1]
        if cache is not None:
            cache.advance(is_token_BT)
            position_BT, num_positions = cache.position_BT, cache.num_columns
        mask = decoder_mask(tokens_BT, segments_BT, prefix_B, self.config.sliding_window, cache)
        if self.config.positions == "relative":
            mask = mask.made_dense(tokens_BT.shape[1], num_positions, tokens_BT.device)
        sequence = self.sequence.of(tokens_BT.shape[1])
        tokens_BT, targets = sequence.part(tokens_BT), sequence.targets(targets)
        x_BTD, places = self._embed(tokens_BT, position_BT, num_positions, sequence)
        if self.config.positions == "relative":
            has_later_keys = prefix_B is not None
            places = distances(
                self.config, num_positions, x_BTD.device, has_later_keys=has_later_keys, cache=cache
            )
        key_B = dropout.key_B if dropout is not None and self.training else None
        keys = layer_keys(key_B, 0, self.config.stack.num_layers, self.config.num_heads)
        keys = sequence.keys(keys, tokens_BT.device)
        x_BTD, layers = run_layers(
            self.blocks,
            # Dropout outside of the layers uses the keys of the first one.
            self.embedding_dropout(x_BTD, keys[0]),
            places,
            mask,
            sequence,
            keys=keys,
            routed=RoutedTokens(is_token_BT, None if routing is None else routing.num_targets_B),
            shape=self.config.stack,
            recompute=self.recompute if self.training else "none",
            cache=cache,
        )
        if routing is not None:
            routing.fill(layers)
        if witness is not None and targets is not None:
            _fill(witness, tokens_BT, is_token_BT, mask, targets, sequence)
        states_BTD = self.norm(x_BTD if cache is None else cache.last(x_BTD))
        if self.config.mup_base_width is not None:
            states_BTD = states_BTD / self.config.mup_ratio
        return sequence.of_all_positions(
            self.head(states_BTD, targets, loss_factor, sequence.imitated(imitated))
        )

    def _embed(
        self, tokens_BT: Tensor, position_BT: Tensor | None, num_positions: int, sequence: WholeSequence
    ) -> tuple[Tensor, Rotation | Distances | None]:
        """Embed tokens and learned positions; the second result is the rotary angles, None without RoPE.

        Args:
            tokens_BT: int64, inputs: those of this rank.
            position_BT: int64, position of each token of the sequence; None: 0 ... num_positions - 1.
            num_positions: One more than the largest position.
            sequence: Which positions are those of this rank.
        """
        x_BTD = self.embedding(tokens_BT)
        position_BT = sequence.part(position_BT)
        if self.position_embedding is not None:
            position_PD = self.position_embedding.weight[:num_positions]
            if position_BT is None:
                return x_BTD + sequence.part(position_PD, 0), None
            return x_BTD + position_PD[position_BT], None
        config = self.config
        if config.positions != "rope":
            return x_BTD, None
        angles = rotation(
            num_positions, config.head_width, config.rope_theta, tokens_BT.device, config.rope_scaling
        )
        if position_BT is None:
            return x_BTD, Rotation(*(sequence.part(angle_TM, 0) for angle_TM in angles))
        return x_BTD, Rotation(angles.cos_TM[position_BT], angles.sin_TM[position_BT])


def _fill(
    witness: Witness,
    tokens_BT: Tensor,
    is_token_BT: Tensor,
    mask: AttentionMask,
    targets: Targets,
    sequence: WholeSequence,
) -> None:
    """Fill the witness. The tokens and targets are those of this rank, the rest is of the whole sequence."""
    digest_B = row_digests(
        witness.index_B,
        tokens_BT,
        position_T=sequence.positions(tokens_BT.device),
        is_token_BT=sequence.part(is_token_BT),
        causal=mask.causal,
        segments_BT=sequence.part(mask.segments_BT),
        prefix_B=None if mask.prefix_BT is None else mask.prefix_BT[:, 0],
        targets=targets,
    )
    witness.fill(digest_B, targets=targets.target)
