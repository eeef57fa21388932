"""T5's relative position bias: a learned number for each head and bucket of distances.

Shapes: H heads, T query positions, S = T key positions, R = 2 T - 1 offsets between them.

Source:
    Raffel et al., "Exploring the limits of transfer learning with a unified text-to-text transformer",
    2020, section 2.1; the buckets are those of its published code.
"""

from __future__ import annotations

from bisect import bisect_left

import torch
from torch import Tensor, nn

from reptrain.config.model import T5Config
from reptrain.model.sequence import WHOLE_SEQUENCE, WholeSequence
from reptrain_kernels.ops.attention import AttentionMask


class Buckets:
    """Distances in buckets: one each for the small, then wider ones at equal steps of the logarithm.

    >>> Buckets(num_buckets=8, max_distance=16, bidirectional=False)(torch.arange(-18, 2)).tolist()
    [7, 7, 7, 7, 7, 7, 7, 6, 6, 6, 6, 5, 5, 4, 4, 3, 2, 1, 0, 0]

    Args:
        num_buckets: Of both directions together.
        max_distance: From here on, all share the last bucket.
        bidirectional: Spend half the buckets on keys after the query; otherwise these are in bucket 0.
    """

    def __init__(self, *, num_buckets: int, max_distance: int, bidirectional: bool) -> None:
        self.per_direction = num_buckets // 2 if bidirectional else num_buckets
        self.bidirectional = bidirectional
        self.exact = self.per_direction // 2
        wide = self.per_direction - self.exact
        # Bucket exact + j begins at the least n with log(n / exact) / log(max / exact) >= j / wide. In whole
        # numbers, since a rounded logarithm could move an edge from device to device.
        self.edges = tuple(
            self.exact
            + bisect_left(
                range(self.exact, max_distance),
                max_distance**j * self.exact ** (wide - j),
                key=lambda n: n**wide,
            )
            for j in range(1, wide)
        )

    @property
    def end(self) -> int:
        """The distance from which on all offsets of a direction share a bucket."""
        return self.edges[-1] if self.edges else self.exact

    def __call__(self, offset_R: Tensor) -> Tensor:
        """The bucket of each offset, key position minus query position, int64."""
        distance_R = offset_R.abs() if self.bidirectional else (-offset_R).clamp(min=0)
        bucket_R = distance_R.clamp(max=self.exact)
        for edge in self.edges:
            bucket_R = bucket_R + (distance_R >= edge)
        return bucket_R + (offset_R > 0) * self.per_direction if self.bidirectional else bucket_R


class RelativeBias(nn.Module):
    """A table of biases, shared by the self-attention of all layers of a stack, or of one layer.

    Args:
        config: The model.
        bidirectional: Whether keys after the query are distinguished by their distance.
    """

    def __init__(self, config: T5Config, *, bidirectional: bool) -> None:
        super().__init__()
        self.buckets = Buckets(
            num_buckets=config.relative_buckets,
            max_distance=config.relative_max_distance,
            bidirectional=bidirectional,
        )
        self.table = nn.Embedding(config.relative_buckets, config.num_heads)

    def forward(self, mask: AttentionMask, sequence: WholeSequence = WHOLE_SEQUENCE) -> AttentionMask:
        """The mask with the bias of each head and offset.

        Args:
            mask: Prepared for the device (see `prepare_mask`).
            sequence: Which heads the rank computes.
        """
        # A dense mask needs every offset. Triton takes the offsets up to the last bucket's first.
        reach = self.buckets.end if mask.dense is None else mask.dense.mask.shape[-1] - 1
        offset_R = torch.arange(-reach, reach + 1, device=self.table.weight.device)
        return mask.with_bias(sequence.own_heads(self.table(self.buckets(offset_R)).T))
