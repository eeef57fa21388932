"""What a decoder keeps of the positions it has read, so that the next one is one step.

A row's position p lies in column p of its caches, whatever the other rows do: prompts of different lengths
are padded behind, what stands there is never visible, and the row's next token takes the place.

Shapes: B rows, T new positions, P columns, K key-value heads, H heads, N width of a head.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

KeysValues = tuple[Tensor, Tensor]


class Cache:
    """Of one batch of rows; passed to a model's forward pass, which fills it.

    Args:
        num_layers: Layers that run; shared ones as often as they do.
        num_rows: B.
        num_positions: The largest P.
        device: Of the model.
    """

    def __init__(self, num_layers: int, num_rows: int, num_positions: int, device: torch.device) -> None:
        self.num_positions = num_positions
        self.num_columns = 0
        self.length_B = torch.zeros(num_rows, dtype=torch.int64, device=device)
        self.position_BT = self.length_B[:, None]
        self._last_B = self.length_B
        self.layers = [LayerCache(self) for _ in range(num_layers)]

    def advance(self, is_token_BT: Tensor) -> None:
        """Make room for new positions, and set ``position_BT`` and ``num_columns``.

        Args:
            is_token_BT: bool, False for padding, which follows a row's tokens.
        """
        new = torch.arange(is_token_BT.shape[1], device=is_token_BT.device)
        # A row that has ended may stand at the end of its columns.
        self.position_BT = (self.length_B[:, None] + new).clamp(max=self.num_positions - 1)
        new_B = is_token_BT.sum(1)
        self.length_B = self.length_B + new_B
        self._last_B = (new_B - 1).clamp(min=0)
        self.num_columns = min(self.num_columns + len(new), self.num_positions)

    def last(self, x_BTD: Tensor) -> Tensor:
        """Of new positions the last token of each row, [B, 1, D]."""
        return x_BTD.gather(1, self._last_B[:, None, None].expand(-1, 1, x_BTD.shape[2]))


class LayerCache:
    """Keys and values of one layer.

    Args:
        cache: Says where the new positions are.
    """

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._kept: KeysValues | None = None
        self.cross = CrossCache()

    def extend(self, make: Callable[[], KeysValues]) -> KeysValues:
        """Keep the keys and values of the new positions, [B, K, T, N]; all so far, [B, K, P, N]."""
        new = make()
        if self._kept is None:
            shape = (*new[0].shape[:2], self._cache.num_positions, new[0].shape[3])
            self._kept = new[0].new_zeros(shape), new[1].new_zeros(shape)
        index_B1T1 = self._cache.position_BT[:, None, :, None]
        for kept, found in zip(self._kept, new, strict=True):
            kept.scatter_(2, index_B1T1.expand_as(found), found)
        keys, values = self._kept
        return keys[:, :, : self._cache.num_columns], values[:, :, : self._cache.num_columns]


class CrossCache:
    """Keys and values of what the encoder gave, which stay the same."""

    def __init__(self) -> None:
        self._kept: KeysValues | None = None

    def extend(self, make: Callable[[], KeysValues]) -> KeysValues:
        """Make them the first time."""
        if self._kept is None:
            self._kept = make()
        return self._kept
