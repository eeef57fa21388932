"""Causal self-attention with grouped queries.

Shapes: B rows, T query positions, S key positions, D width of the residual stream,
H query heads, K key-value heads, G = H / K queries of a group, N width of a head.
"""

from __future__ import annotations

from torch import Tensor, nn

from reptrain.config.model import DecoderConfig
from reptrain.model.cache import LayerCache
from reptrain.model.dropout import Dropout, LayerKeys, Site
from reptrain.model.relative_positions import Distances, RelativePositions
from reptrain.model.rope import Rotation
from reptrain.model.sequence import WHOLE_SEQUENCE, WholeSequence
from reptrain_kernels.ops.attention import AttentionMask, attention
from reptrain_kernels.ops.rope import rotate


class CausalAttention(nn.Module):
    """Self-attention of a decoder.

    Args:
        config: The model.

    Source:
        Vaswani et al., "Attention is all you need", 2017; Ainslie et al., "GQA", 2023 (grouped queries);
        `reptrain.model.relative_positions`.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.head_dim = config.head_width
        width, kv_width = config.num_heads * self.head_dim, config.kv_heads * self.head_dim
        biased = config.attention_biases
        self.query = nn.Linear(config.d_model, width, bias=biased != "none")
        self.key = nn.Linear(config.d_model, kv_width, bias=biased != "none")
        self.value = nn.Linear(config.d_model, kv_width, bias=biased != "none")
        self.output = nn.Linear(width, config.d_model, bias=biased == "all")
        self.relative = RelativePositions(config) if config.positions == "relative" else None
        self.dropout = Dropout(config.dropout.attention, Site.ATTENTION_WEIGHTS)

    def forward(
        self,
        x_BTD: Tensor,
        places: Rotation | Distances | None,
        mask: AttentionMask,
        keys: LayerKeys | None,
        cache: LayerCache | None = None,
        sequence: WholeSequence = WHOLE_SEQUENCE,
    ) -> Tensor:
        """Mix positions, y_BTD.

        Args:
            x_BTD: Normalized residual stream.
            places: The rotation of each position, or the distances of relative positions; None: neither.
            mask: Which positions each position attends to; dense with relative positions.
            keys: Dropout keys of the layer; None drops nothing.
            cache: Keys and values of earlier positions; ``mask`` is then over all cached positions.
            sequence: Which positions ``x_BTD`` has; ``mask`` is over all of them.
        """
        q_BTHN, k_BSKN = self._split_heads(self.query(x_BTD)), self._split_heads(self.key(x_BTD))
        if isinstance(places, Rotation):
            q_BTHN, k_BSKN = rotate(q_BTHN, k_BSKN, places.cos_TM, places.sin_TM)
        heads = sequence.to_heads(q_BTHN, k_BSKN, self._split_heads(self.value(x_BTD)))
        q_BHTN, k_BKSN, v_BKSN = (x.transpose(1, 2) for x in heads)
        if cache is not None:
            k_BKSN, v_BKSN = cache.extend(lambda: (k_BKSN, v_BKSN))
        if self.relative is not None and isinstance(places, Distances):
            q_BHTN, mask = self.relative(q_BHTN, places, mask, sequence)
        y_BHTN = attention(
            q_BHTN,
            k_BKSN,
            v_BKSN,
            scale=self.head_dim**-0.5,
            mask=mask,
            key_BH=self.dropout.head_keys(keys),
            rate=self.dropout.rate_2,
        )
        return self.output(sequence.to_positions(y_BHTN.transpose(1, 2)).flatten(2))

    def _split_heads(self, x_BTD: Tensor) -> Tensor:
        return x_BTD.unflatten(-1, (-1, self.head_dim))
