"""The key-value cache of a decoder.

Position p of a row is in column p of its caches, whatever the other rows hold: shorter prompts are padded at
their end, the attention mask hides the padding, and the row's next token overwrites it.

Shapes: B rows, T new positions, P columns, K key-value heads, N width of a head, D width of the residual
stream.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

KeysValues = tuple[Tensor, Tensor]


class Cache:
    """The cache of all layers for one batch of rows; the model's forward pass fills it.

    Args:
        num_layers: Number of layers that run, shared ones counted each time.
        num_rows: B.
        num_positions: Most positions of a row: the largest P.
        device: Device of the model.
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
        """The last token of each row among the new positions, [B, 1, D]."""
        return x_BTD.gather(1, self._last_B[:, None, None].expand(-1, 1, x_BTD.shape[2]))


class LayerCache:
    """The keys and values of one layer.

    Args:
        cache: The cache of all layers, which holds the new positions.
    """

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._buffers: KeysValues | None = None
        self.cross = CrossCache()

    def extend(self, compute: Callable[[], KeysValues]) -> KeysValues:
        """Append the keys and values of the new positions.

        Args:
            compute: Returns keys and values of the new positions, [B, K, T, N] each.

        Returns:
            Keys and values of all positions so far, [B, K, P, N] each.
        """
        new = compute()
        if self._buffers is None:
            shape = (*new[0].shape[:2], self._cache.num_positions, new[0].shape[3])
            self._buffers = new[0].new_zeros(shape), new[1].new_zeros(shape)
        index_B1T1 = self._cache.position_BT[:, None, :, None]
        for buffer, added in zip(self._buffers, new, strict=True):
            buffer.scatter_(2, index_B1T1.expand_as(added), added)
        keys, values = self._buffers
        return keys[:, :, : self._cache.num_columns], values[:, :, : self._cache.num_columns]


class CrossCache:
    """The keys and values of the encoder's states, which do not change."""

    def __init__(self) -> None:
        self._buffers: KeysValues | None = None

    def extend(self, compute: Callable[[], KeysValues]) -> KeysValues:
        """Return the keys and values; the first call computes them."""
        if self._buffers is None:
            self._buffers = compute()
        return self._buffers
