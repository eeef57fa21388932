"""T5's attention: unscaled scores with a bias, to the same sequence or to another.

Shapes: B rows, T query positions, S key positions, D width of the residual stream, H heads,
N width of a head.
"""

from __future__ import annotations

from torch import Tensor, nn

from reptrain.config.model import T5Config
from reptrain.model.cache import CrossCache, LayerCache
from reptrain.model.dropout import Dropout, LayerKeys, Site
from reptrain.model.sequence import WHOLE_SEQUENCE, WholeSequence
from reptrain_kernels.ops.attention import AttentionMask, attention


class T5Attention(nn.Module):
    """Attention whose scores are not divided by sqrt(N): the initialization scales them.

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
        source_BSD: Tensor,
        mask: AttentionMask,
        keys: LayerKeys | None,
        cache: LayerCache | CrossCache | None = None,
        sequence: WholeSequence = WHOLE_SEQUENCE,
        source_sequence: WholeSequence = WHOLE_SEQUENCE,
    ) -> Tensor:
        """Attend from ``x_BTD`` to ``source_BSD``, y_BTD.

        Args:
            x_BTD: Gives the queries.
            source_BSD: Gives the keys and values; ``x_BTD`` itself in self-attention.
            mask: Which positions of the source each position attends to, and the bias of the scores.
            keys: Dropout keys of the layer; None drops nothing.
            cache: Keys and values of earlier positions; ``mask`` is then over all cached positions.
            sequence: Which positions ``x_BTD`` has; ``mask`` is over all of them.
            source_sequence: Which positions ``source_BSD`` has.
        """
        (q_BHTN,) = self._heads(sequence, self.query(x_BTD))

        def keys_values() -> tuple[Tensor, Tensor]:
            k_BHSN, v_BHSN = self._heads(source_sequence, self.key(source_BSD), self.value(source_BSD))
            return k_BHSN, v_BHSN

        k_BHSN, v_BHSN = keys_values() if cache is None else cache.extend(keys_values)
        y_BHTN = attention(
            q_BHTN,
            k_BHSN,
            v_BHSN,
            scale=1.0,
            mask=mask,
            key_BH=self.dropout.head_keys(keys),
            rate=self.dropout.rate_2,
        )
        return self.output(sequence.to_positions(y_BHTN.transpose(1, 2)).flatten(2))

    def _heads(self, sequence: WholeSequence, *x_BTD: Tensor) -> list[Tensor]:
        heads = sequence.to_heads(*(x.unflatten(-1, (-1, self.head_dim)) for x in x_BTD))
        return [x_BTHN.transpose(1, 2) for x_BTHN in heads]
