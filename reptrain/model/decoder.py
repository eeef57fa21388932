"""A decoder-only transformer: RMSNorm, RoPE, SwiGLU, no biases.

Shapes: B rows, T positions, D width of the residual stream, V rows of the vocabulary.
"""

from __future__ import annotations

from torch import Tensor, nn

from reptrain.config.schema import DecoderConfig
from reptrain.model.attention import CausalAttention
from reptrain.model.blocks import run_blocks
from reptrain.model.dropout import Dropout, DropoutContext, Site
from reptrain.model.mlp import GatedMLP
from reptrain.model.norm import RMSNorm
from reptrain.model.rope import Rotation, rotation
from reptrain.model.segments import same_segment
from reptrain.sizes import embedding_rows


class Block(nn.Module):
    """Attention, then the MLP, each normalized before and added to the residual stream.

    Args:
        config: The model.
        layer: Number of the block, which keys the dropout.
    """

    def __init__(self, config: DecoderConfig, layer: int) -> None:
        super().__init__()
        rate = config.dropout.residual
        self.attention_norm = RMSNorm(config.d_model, config.norm_eps)
        self.attention = CausalAttention(config, layer)
        self.attention_dropout = Dropout(rate, Site.ATTENTION_RESIDUAL.number(layer))
        self.mlp_norm = RMSNorm(config.d_model, config.norm_eps)
        self.mlp = GatedMLP(config, layer)
        self.mlp_dropout = Dropout(rate, Site.MLP_RESIDUAL.number(layer))

    def forward(
        self, x_BTD: Tensor, rotation: Rotation, visible_B1TT: Tensor | None, key_B: Tensor | None
    ) -> Tensor:
        """One layer; the arguments are those of the attention."""
        mixed_BTD = self.attention(self.attention_norm(x_BTD), rotation, visible_B1TT, key_B)
        x_BTD = x_BTD + self.attention_dropout(mixed_BTD, key_B)
        transformed_BTD = self.mlp(self.mlp_norm(x_BTD), key_B)
        return x_BTD + self.mlp_dropout(transformed_BTD, key_B)


class Decoder(nn.Module):
    """The Llama family. Its weights are set by `build_model`.

    Args:
        config: The model.
        vocab_size: Ids of the tokenizer.

    Raises:
        ConfigError: If the configured embedding is smaller than the vocabulary.

    Source:
        Touvron et al., "LLaMA: Open and efficient foundation language models", 2023.
    """

    def __init__(self, config: DecoderConfig, *, vocab_size: int) -> None:
        super().__init__()
        self.config = config
        self.checkpoint_blocks = False
        rows = embedding_rows(config, vocab_size)
        self.embedding = nn.Embedding(rows, config.d_model)
        self.embedding_dropout = Dropout(config.dropout.embedding, Site.EMBEDDING.number(0))
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.num_layers))
        self.norm = RMSNorm(config.d_model, config.norm_eps)
        self.head = nn.Linear(config.d_model, rows, bias=False)
        self.tie_head()

    def tie_head(self) -> None:
        """Share the embedding with the head where the configuration asks for it."""
        if self.config.tie_embeddings:
            self.head.weight = self.embedding.weight

    def forward(
        self,
        tokens_BT: Tensor,
        *,
        segments_BT: Tensor | None = None,
        dropout: DropoutContext | None = None,
    ) -> Tensor:
        """Logits of the token that follows each position.

        Args:
            tokens_BT: int64, the inputs.
            segments_BT: int64, the number of each position's document, 0 for padding: a position attends
                within its own. None: to all before it.
            dropout: What keys the masks; None drops nothing, and nothing is dropped in evaluation mode.

        Returns:
            logits_BTV, in the dtype of the weights or of autocast.
        """
        key_B = dropout.key_B if dropout is not None and self.training else None
        rotary = rotation(tokens_BT.shape[1], self.config.head_dim, self.config.rope_theta, tokens_BT.device)
        x_BTD = self.embedding_dropout(self.embedding(tokens_BT), key_B)
        visible_B1TT = None if segments_BT is None else same_segment(segments_BT, segments_BT).tril()[:, None]
        recompute = self.checkpoint_blocks and self.training
        x_BTD = run_blocks(self.blocks, x_BTD, rotary, visible_B1TT, key_B, recompute=recompute)
        return self.head(self.norm(x_BTD))
