"""Causal self-attention with grouped queries.

Shapes: B rows, T query positions, S key positions, D width of the residual stream,
H query heads, K key-value heads, G = H / K queries of a group, N width of a head.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reptrain.config.model import DecoderConfig
from reptrain.model.attention_mask import Sight, attend
from reptrain.model.cache import LayerCache
from reptrain.model.dropout import Dropout, Site
from reptrain.model.rope import Rotation
from reptrain_kernels.ops.rope import rotate


class CausalAttention(nn.Module):
    """Each position attends to itself and those before it, or to some of these.

    Args:
        config: The model.

    Source:
        Vaswani et al., "Attention is all you need", 2017; Ainslie et al., "GQA", 2023 (grouped queries).
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.head_dim, self.group = config.head_width, config.num_heads // config.kv_heads
        width, kv_width = config.num_heads * self.head_dim, config.kv_heads * self.head_dim
        biased = config.attention_biases
        self.query = nn.Linear(config.d_model, width, bias=biased != "none")
        self.key = nn.Linear(config.d_model, kv_width, bias=biased != "none")
        self.value = nn.Linear(config.d_model, kv_width, bias=biased != "none")
        self.output = nn.Linear(width, config.d_model, bias=biased == "all")
        self.dropout = Dropout(config.dropout.attention, Site.ATTENTION_WEIGHTS)

    def forward(
        self,
        x_BTD: Tensor,
        rotation: Rotation | None,
        visible_B1TS: Tensor | Sight | None,
        keys_PB: Tensor | None,
        cache: LayerCache | None = None,
    ) -> Tensor:
        """Mix positions.

        Args:
            x_BTD: The positions.
            rotation: Of each position; None turns nothing.
            visible_B1TS: bool, what each position may read of itself and those before it; None: all. Or the
                same by structure, for the fused operation.
            keys_PB: Dropout keys of the layer's sites; None drops nothing.
            cache: Of the positions read before; ``visible_B1TS`` is then over all of them.
        """
        q_BTHN, k_BSKN = self._split_heads(self.query(x_BTD)), self._split_heads(self.key(x_BTD))
        if rotation is not None:
            q_BTHN, k_BSKN = rotate(q_BTHN, k_BSKN, rotation.cos_TM, rotation.sin_TM)
        q_BHTN, k_BKSN = q_BTHN.transpose(1, 2), k_BSKN.transpose(1, 2)
        v_BKSN = self._split_heads(self.value(x_BTD)).transpose(1, 2)
        if cache is not None:
            k_BKSN, v_BKSN = cache.extend(lambda: (k_BKSN, v_BKSN))
        if isinstance(visible_B1TS, Sight):
            y_BHTN = attend(
                q_BHTN,
                k_BKSN,
                v_BKSN,
                visible_B1TS,
                scale=self.head_dim**-0.5,
                dropout=self.dropout,
                keys_PB=keys_PB,
            )
        elif keys_PB is None or not self.dropout.is_on:
            if visible_B1TS is not None and q_BHTN.device.type != "cpu":
                # With fewer heads of keys and a mask, torch on CUDA has no kernel that keeps no weights.
                k_BKSN, v_BKSN = self._for_each_query_head(k_BKSN), self._for_each_query_head(v_BKSN)
            y_BHTN = F.scaled_dot_product_attention(
                q_BHTN,
                k_BKSN,
                v_BKSN,
                attn_mask=visible_B1TS,
                is_causal=visible_B1TS is None,
                enable_gqa=True,
            )
        else:
            y_BHTN = self._attend_with_dropout(q_BHTN, k_BKSN, v_BKSN, visible_B1TS, keys_PB)
        return self.output(y_BHTN.transpose(1, 2).flatten(2))

    def _for_each_query_head(self, x_BKSN: Tensor) -> Tensor:
        return x_BKSN.repeat_interleave(self.group, dim=1)

    def _split_heads(self, x_BTD: Tensor) -> Tensor:
        return x_BTD.unflatten(-1, (-1, self.head_dim))

    def _attend_with_dropout(
        self, q_BHTN: Tensor, k_BKSN: Tensor, v_BKSN: Tensor, visible_B1TS: Tensor | None, keys_PB: Tensor
    ) -> Tensor:
        """Attention with its weights spelled out, so that the counter can drop them."""
        k_BHSN, v_BHSN = self._for_each_query_head(k_BKSN), self._for_each_query_head(v_BKSN)
        score_BHTS = (q_BHTN @ k_BHSN.transpose(-1, -2)).float() * self.head_dim**-0.5
        if visible_B1TS is None:
            visible_B1TS = torch.ones_like(score_BHTS[:1, :1], dtype=torch.bool).tril()
        weight_BHTS = score_BHTS.masked_fill(~visible_B1TS, -torch.inf).softmax(-1).to(v_BHSN.dtype)
        return self.dropout.forward_heads(weight_BHTS, keys_PB) @ v_BHSN
