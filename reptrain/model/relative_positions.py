"""Relative positions of Transformer-XL: the scores of a query depend on its distance to each key.

    score[t, s] = (query[t] + u) . key[s] + (query[t] + v) . W R[t - s]

R[d] is the sinusoidal encoding of distance d; u, v and W belong to the layer.

Shapes: B rows, T queries, S keys, D width of the residual stream, H query heads, N width of a head,
R distances, in descending order.

Source:
    Dai et al., "Transformer-XL: Attentive language models beyond a fixed-length context", 2019, section 3.3.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from reptrain.config.model import DecoderConfig
from reptrain.model.cache import Cache
from reptrain.model.sequence import WHOLE_SEQUENCE, WholeSequence
from reptrain_kernels.ops.attention import AttentionMask

_BASE = 10_000.0


class Distances(NamedTuple):
    """The distances between queries and keys, shared by all layers."""

    encoding_RD: Tensor
    """fp32: encoding of the distances S - 1, S - 2, ..."""
    place_BTS: Tensor | None
    """int64: place of each pair's distance among the R; None: queries and keys are at 0 to T - 1."""


def distances(
    config: DecoderConfig,
    num_keys: int,
    device: torch.device,
    *,
    has_later_keys: bool = False,
    cache: Cache | None = None,
) -> Distances:
    """The distances of a forward pass.

    Args:
        config: The model.
        num_keys: S.
        device: Where it runs.
        has_later_keys: Whether a query may attend to keys after it.
        cache: Gives the positions of the queries; None: those of the keys.
    """
    # Distance -1 is always among them: `_by_key` needs one more than S.
    lowest = -max(1, num_keys - 1) if has_later_keys else -1
    distance_R = torch.arange(num_keys - 1, lowest - 1, -1, device=device)
    place_BTS = None
    if cache is not None:
        distance_BTS = cache.position_BT[..., None] - torch.arange(num_keys, device=device)
        place_BTS = (num_keys - 1 - distance_BTS).clamp(max=len(distance_R) - 1)
    return Distances(sinusoids(distance_R, config.d_model), place_BTS)


def sinusoids(distance_R: Tensor, width: int) -> Tensor:
    """Encoding of each distance, fp32 [R, D]: sines, then cosines, at width / 2 frequencies.

    Args:
        distance_R: int64, also negative.
        width: D, even.
    """
    power_M = torch.arange(0, width, 2, device=distance_R.device, dtype=torch.float32) / width
    angle_RM = distance_R[:, None].float() * _BASE**-power_M
    return torch.cat([angle_RM.sin(), angle_RM.cos()], dim=-1)


class RelativePositions(nn.Module):
    """The two vectors and the projection of distances of one layer.

    Args:
        config: The model.
    """

    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.head_dim = config.head_width
        width = config.num_heads * config.head_width
        self.content_bias = nn.Parameter(torch.empty(width))
        self.position_bias = nn.Parameter(torch.empty(width))
        self.key = nn.Linear(config.d_model, width, bias=False)

    def forward(
        self,
        q_BHTN: Tensor,
        distances: Distances,
        mask: AttentionMask,
        sequence: WholeSequence = WHOLE_SEQUENCE,
    ) -> tuple[Tensor, AttentionMask]:
        """The queries for the products with keys, and the mask with the scores of the distances.

        Args:
            q_BHTN: Queries.
            distances: Between the queries and the keys.
            mask: Dense (see `AttentionMask.made_dense`).
            sequence: Which heads the queries have.
        """
        # Under autocast the queries are in a lower precision than the vectors.
        content_H1N, position_H1N = (
            sequence.own_heads(bias.to(q_BHTN.dtype).view(-1, 1, self.head_dim))
            for bias in (self.content_bias, self.position_bias)
        )
        encoding_RD = distances.encoding_RD.to(self.key.weight.dtype)
        key_RHN = sequence.own_heads(self.key(encoding_RD).unflatten(-1, (-1, self.head_dim)), 1)
        shifted_BHTN = (q_BHTN + position_H1N) * self.head_dim**-0.5
        score_BHTR = torch.einsum("bhtn,rhn->bhtr", shifted_BHTN, key_RHN)
        return q_BHTN + content_H1N, mask.with_scores(_by_key(score_BHTR, distances.place_BTS))


def _by_key(score_BHTR: Tensor, place_BTS: Tensor | None) -> Tensor:
    """The score of each key, score_BHTS, from those of the distances.

    Without places S = T, and query t finds key s at the place s + T - 1 - t: each row starts one place
    earlier than the row above. Entries of distances below the lowest one are those of other pairs, and the
    mask hides them.

    Example:
        T = 2, R = 3, distances 1, 0, -1, scores [[a, b, c], [d, e, f]]: [[b, c], [d, e]].
    """
    if place_BTS is not None:
        place_BHTS = place_BTS[:, None].expand(-1, score_BHTR.shape[1], -1, -1)
        return score_BHTR.gather(-1, place_BHTS)
    T, R = score_BHTR.shape[-2:]
    flat = score_BHTR.flatten(-2).narrow(-1, T - 1, T * (R - 1))
    return flat.unflatten(-1, (T, R - 1))[..., :T]
