"""T5's relative position bias: a learned number for each head and bucket of distances.

Shapes: H heads, T query positions, S = T key positions, R = 2 T - 1 offsets between them.

Source:
    Raffel et al., "Exploring the limits of transfer learning with a unified text-to-text transformer",
    2020, section 2.1; the buckets are those of its published code.
"""

from __future__ import annotations

from bisect import bisect_left
from typing import NamedTuple

import torch
from torch import Tensor, nn

from reptrain.config.model import T5Config
from reptrain.model.attention_mask import Sight, is_fused
from reptrain.model.segments import same_segment
from reptrain_kernels.ops.attention import Mask, offset_bias


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


class Places(NamedTuple):
    """Which positions of a stack attend to which: what a table of biases is applied to."""

    segments_BT: Tensor
    """A position attends within its own segment."""
    causal: bool
    """And of it only to itself and what is before."""
    position_BT: Tensor | None = None
    """With a cache: where the new positions lie in it."""
    visible_B1TP: Tensor | None = None
    """With a cache: which of its positions each new one attends to."""


class RelativeBias(nn.Module):
    """A table of biases, shared by the self-attention of all layers of a stack, or of one layer.

    Args:
        config: The model.
        bidirectional: Whether keys after the query are told apart by their distance.
    """

    def __init__(self, config: T5Config, *, bidirectional: bool) -> None:
        super().__init__()
        self.buckets = Buckets(
            num_buckets=config.relative_buckets,
            max_distance=config.relative_max_distance,
            bidirectional=bidirectional,
        )
        self.table = nn.Embedding(config.relative_buckets, config.num_heads)

    def forward(self, num_positions: int, device: torch.device) -> Tensor:
        """What is added to the scores, bias_HTS: the same along each diagonal."""
        offset_R = torch.arange(1 - num_positions, num_positions, device=device)
        bias_HR = self.table(self.buckets(offset_R)).T
        return bias_HR.unfold(1, num_positions, 1).flip(1)

    def at(self, places: Places) -> Tensor | Sight:
        """What positions add to each other's scores (see `within`)."""
        if places.position_BT is None or places.visible_B1TP is None:
            return self.within(places.segments_BT, causal=places.causal)
        bias_BHTP = self.between(places.position_BT, places.visible_B1TP.shape[-1])
        return torch.where(places.visible_B1TP, bias_BHTP, -torch.inf)

    def within(self, segments_BT: Tensor, *, causal: bool) -> Tensor | Sight:
        """What a stack's positions add to each other's scores, bias_BHTT with -inf where one may not read.

        Or the same by structure, where models on the device attend by the fused operation.

        Args:
            segments_BT: A position reads its own segment.
            causal: And of it only itself and what is before.
        """
        if is_fused(segments_BT.device):
            end = self.buckets.end
            bucket_R = self.buckets(torch.arange(-end, end + 1, device=segments_BT.device))
            mask = Mask(causal=causal, segments_BT=segments_BT)
            return Sight(mask, offset_bias(self.table.weight, bucket_R))
        visible_BTT = same_segment(segments_BT, segments_BT)
        if causal:
            visible_BTT = visible_BTT.tril()
        bias_HTT = self(segments_BT.shape[1], segments_BT.device)
        return torch.where(visible_BTT[:, None], bias_HTT, -torch.inf)

    def between(self, position_BT: Tensor, num_keys: int) -> Tensor:
        """The same for queries at given positions, bias_BHTS, with keys at 0 ... num_keys - 1."""
        offset_BTS = torch.arange(num_keys, device=position_BT.device) - position_BT[..., None]
        return self.table(self.buckets(offset_BTS)).movedim(-1, 1)
