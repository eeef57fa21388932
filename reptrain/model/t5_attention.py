"""T5's attention: unscaled scores with a bias, to the same sequence or to another.

Shapes: B rows, T query positions, S key positions, D width of the residual stream, H heads,
N width of a head.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from reptrain.config.model import T5Config
from reptrain.model.attention_mask import Sight, attend
from reptrain.model.cache import CrossCache, LayerCache
from reptrain.model.dropout import Dropout, Site


class T5Attention(nn.Module):
    """Attention whose scores are not divided by sqrt(N): the initial weights see to their size.

    Args:
        config: The model.
        site: Where the weights' dropout falls.

    Source:
        Raffel et al. 2020, section 2.1.
    """

    def __init__(self, config: T5Config, site: Site) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        width = config.num_heads * config.head_dim
        self.query = nn.Linear(config.d_model, width, bias=False)
        self.key = nn.Linear(config.d_model, width, bias=False)
        self.value = nn.Linear(config.d_model, width, bias=False)
        self.output = nn.Linear(width, config.d_model, bias=False)
        self.dropout = Dropout(config.dropout.attention, site)

    def forward(
        self,
        x_BTD: Tensor,
        read_BSD: Tensor,
        bias_BHTS: Tensor | Sight,
        keys_PB: Tensor | None,
        cache: LayerCache | CrossCache | None = None,
    ) -> Tensor:
        """Gather from ``read_BSD`` what each position of ``x_BTD`` asks for.

        Args:
            x_BTD: Asks.
            read_BSD: Is read; ``x_BTD`` itself in self-attention.
            bias_BHTS: Added to the scores, -inf where nothing may be read; every position reads something. Or
                the same by structure, for the fused operation.
            keys_PB: Dropout keys of the layer's sites; None drops nothing.
            cache: Of what was read before; ``bias_BHTS`` is then for all of it.
        """
        q_BHTN = self._heads(self.query(x_BTD))
        if cache is None:
            k_BHSN, v_BHSN = self._read(read_BSD)
        else:
            k_BHSN, v_BHSN = cache.extend(lambda: self._read(read_BSD))
        if isinstance(bias_BHTS, Sight):
            y_BHTN = attend(
                q_BHTN, k_BHSN, v_BHSN, bias_BHTS, scale=1.0, dropout=self.dropout, keys_PB=keys_PB
            )
        elif keys_PB is None or not self.dropout.is_on:
            y_BHTN = F.scaled_dot_product_attention(q_BHTN, k_BHSN, v_BHSN, attn_mask=bias_BHTS, scale=1.0)
        else:
            score_BHTS = (q_BHTN @ k_BHSN.transpose(-1, -2)).float() + bias_BHTS
            weight_BHTS = score_BHTS.softmax(-1).to(v_BHSN.dtype)
            y_BHTN = self.dropout.forward_heads(weight_BHTS, keys_PB) @ v_BHSN
        return self.output(y_BHTN.transpose(1, 2).flatten(2))

    def _read(self, read_BSD: Tensor) -> tuple[Tensor, Tensor]:
        return self._heads(self.key(read_BSD)), self._heads(self.value(read_BSD))

    def _heads(self, x_BTD: Tensor) -> Tensor:
        return x_BTD.unflatten(-1, (-1, self.head_dim)).transpose(1, 2)
