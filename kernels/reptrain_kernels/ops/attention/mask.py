"""The attention mask: the keys that a query attends to, and the bias of the scores.

Shapes: B rows, T queries, S keys, H heads, R = 2 E + 1 offsets from -E to E.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class DenseMask(NamedTuple):
    """A mask as a tensor over queries and keys."""

    mask: Tensor
    """bool [B or 1, 1, T, S], True where a query attends; or floating point [B or 1, H, T, S], added to the
    scores, -inf where a query does not attend. A query without keys attends to all, to avoid NaN."""
    has_keys_B1T1: Tensor | None = None
    """bool: False for a query without keys, whose output is zero; None: all True."""


class AttentionMask(NamedTuple):
    """Which keys each query attends to: those that every rule allows.

    It has methods and no properties, which torch 2.10 cannot compile in a named tuple.
    """

    causal: bool = False
    """Allows keys up to the query's position."""
    segments_BT: Tensor | None = None
    """Integers: a query attends to keys of its own segment; None: no rule."""
    segments_BS: Tensor | None = None
    """Integers: the keys' segments; None: the same as the queries'."""
    prefix_BT: Tensor | None = None
    """Integers: a causal query also attends to keys at positions below this one."""
    sliding_window: int | None = None
    """Allows keys fewer than this many positions away; None: no rule. Not in Triton."""
    position_BT: Tensor | None = None
    """int64: the queries' positions among the keys (of a cache); None: 0 to T - 1. Not in Triton."""
    bias_HR: Tensor | None = None
    """Added to the score of each offset, key position minus query position, from -E to E. Offsets beyond E
    use the end values."""
    score_BHTS: Tensor | None = None
    """Added to the score of each query and key, -inf where a query does not attend (see `with_scores`). Not
    in Triton."""
    dense: DenseMask | None = None
    """All of the above as a tensor, which layers share (see `prepare_mask`); None: built in each call."""

    def key_segments(self) -> Tensor | None:
        """The keys' segments, integers [B, S], or None."""
        return self.segments_BT if self.segments_BS is None else self.segments_BS

    def is_plain(self) -> bool:
        """Whether no rule but `causal` is set, and no bias."""
        return all(field is None for field in self[1:])

    def has_kernel(self) -> bool:
        """Whether the Triton kernels support these rules."""
        return self.sliding_window is None and self.position_BT is None and self.score_BHTS is None

    def without_idle_window(self, num_positions: int) -> AttentionMask:
        """The same mask, without a sliding window that covers all of ``num_positions``."""
        if self.sliding_window is None or self.sliding_window < num_positions:
            return self
        return self._replace(sliding_window=None)

    def allowed(self, num_queries: int, num_keys: int, device: torch.device) -> Tensor:
        """Whether each query attends to each key, bool [B or 1, T, S].

        Example:
            Causal, 3 queries and keys, a prefix of 2 for all: [[[True, True, False], [True, True, False],
            [True, True, True]]].
        """
        key_S = torch.arange(num_keys, device=device)
        position_BT = self.position_BT
        if position_BT is None:
            position_BT = torch.arange(num_queries, device=device)[None]
        allowed_BTS = torch.ones(1, num_queries, num_keys, dtype=torch.bool, device=device)
        if self.causal:
            allowed_BTS = key_S <= position_BT[..., None]
            if self.prefix_BT is not None:
                allowed_BTS = allowed_BTS | (key_S < self.prefix_BT[..., None])
        segments_BS = self.key_segments()
        if self.segments_BT is not None and segments_BS is not None:
            allowed_BTS = allowed_BTS & (self.segments_BT[..., None] == segments_BS[:, None])
        if self.sliding_window is not None:
            allowed_BTS = allowed_BTS & ((position_BT[..., None] - key_S).abs() < self.sliding_window)
        return allowed_BTS

    def build_dense(self, num_queries: int, num_keys: int, device: torch.device) -> DenseMask:
        """The mask as a tensor, with the bias."""
        allowed_BTS = self.allowed(num_queries, num_keys, device)
        has_keys_B1T1 = None
        has_own_key = self.position_BT is not None or num_queries == num_keys
        if self.segments_BS is not None or not (has_own_key or self.sliding_window is None):
            has_keys_BT1 = allowed_BTS.any(-1, keepdim=True)
            allowed_BTS = allowed_BTS | ~has_keys_BT1
            has_keys_B1T1 = has_keys_BT1[:, None]
        dense = DenseMask(allowed_BTS[:, None], has_keys_B1T1)
        return dense if self.bias_HR is None else self._add_bias(dense, self.bias_HR)

    def with_bias(self, bias_HR: Tensor) -> AttentionMask:
        """The same mask, dense or not, with a bias.

        Args:
            bias_HR: See the field; the mask must have none yet.
        """
        if self.dense is None:
            return self._replace(bias_HR=bias_HR)
        return self._replace(dense=self._add_bias(self.dense, bias_HR))

    def made_dense(self, num_queries: int, num_keys: int, device: torch.device) -> AttentionMask:
        """The same mask as a tensor, whichever implementation runs."""
        if self.dense is not None:
            return self
        return self._replace(dense=self.build_dense(num_queries, num_keys, device))

    def with_scores(self, score_BHTS: Tensor) -> AttentionMask:
        """The same mask with a term of the score for each row, head, query and key.

        Args:
            score_BHTS: The term, finite. The mask must be dense, without a bias.
        """
        assert self.dense is not None and self.dense.mask.dtype == torch.bool
        score_BHTS = torch.where(self.dense.mask, score_BHTS, -torch.inf)
        return self._replace(score_BHTS=score_BHTS, dense=self.dense._replace(mask=score_BHTS))

    def _add_bias(self, dense: DenseMask, bias_HR: Tensor) -> DenseMask:
        bias_BHTS = spread_bias(bias_HR, *dense.mask.shape[-2:], self.position_BT)
        return dense._replace(mask=torch.where(dense.mask, bias_BHTS, -torch.inf))


NO_MASK = AttentionMask()


def spread_bias(
    bias_HR: Tensor, num_queries: int, num_keys: int, position_BT: Tensor | None = None
) -> Tensor:
    """The bias of each query and key, bias_HTS, the same along each diagonal; with positions bias_BHTS.

    Example:
        R = 3, bias [[5, 6, 7]], T = S = 3: [[[6, 7, 7], [5, 6, 7], [5, 5, 6]]].
    """
    end = bias_HR.shape[1] // 2
    if position_BT is None and end == max(num_queries, num_keys) - 1 and num_queries == num_keys:
        # A view: no gather, and a gradient that is summed along diagonals.
        return bias_HR.unfold(1, num_keys, 1).flip(1)
    key_S = torch.arange(num_keys, device=bias_HR.device)
    if position_BT is None:
        position_BT = torch.arange(num_queries, device=bias_HR.device)
        return bias_HR[:, (key_S - position_BT[:, None]).clamp(-end, end) + end]
    return bias_HR[:, (key_S - position_BT[..., None]).clamp(-end, end) + end].movedim(0, 1)
