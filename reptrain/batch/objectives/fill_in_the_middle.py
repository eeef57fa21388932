"""Fill-in-the-middle: move the middle of a window to its end, so that a causal decoder learns to infill.

Shapes: B rows of a micro-batch, L raw tokens of a window, T = L + 4 positions, N windows.

Source:
    Bavarian et al., "Efficient training of language models to fill in the middle", 2022, section 3 and
    appendix D (the order SPM in which the middle follows the prefix).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from reptrain import random
from reptrain.batch.micro_batch import MicroBatch
from reptrain.batch.objectives.example import Example, NoisePlaces, shift_right
from reptrain.batch.objectives.rows import ids_on, scatter
from reptrain.config.objectives import FillInTheMiddleConfig
from reptrain_kernels.ops.linear_cross_entropy import IGNORE


class MiddleIds(NamedTuple):
    """Ids of the sentinels before the three parts."""

    prefix: int
    suffix: int
    middle: int


@dataclass(frozen=True)
class FillInTheMiddle:
    """Splits some windows into prefix, middle and suffix, and reorders them:

        PSM:  PRE prefix SUF suffix MID middle EOS
        SPM:  PRE SUF suffix MID prefix middle EOS

    The window 11 ... 16 split after 12 and 14 as PSM, as SPM and not at all, sentinels 97, 98 and 99, EOS 1,
    start token 0:

    >>> noise = {"cuts_B2": torch.tensor([[2, 4]] * 3), "order_B": torch.tensor([1, 2, 0])}
    >>> tokens = torch.arange(11, 17).expand(3, 6)
    >>> batch = MicroBatch(tokens, torch.tensor([6] * 3), *torch.zeros(2, 3), noise)
    >>> config = FillInTheMiddleConfig(name="fill_in_the_middle")
    >>> objective = FillInTheMiddle(config, MiddleIds(97, 98, 99), eos_id=1, start_id=0, window_tokens=6)
    >>> for row in objective.example(batch).targets_BT.tolist():
    ...     print(row)
    [97, 11, 12, 98, 15, 16, 99, 13, 14, 1]
    [97, 98, 15, 16, 99, 11, 12, 13, 14, 1]
    [11, 12, 13, 14, 15, 16, -100, -100, -100, -100]

    Every token of a row, sentinels included, is predicted from the tokens before it.

    Args:
        config: The fraction of windows to split, and of SPM among them.
        ids: Ids of the sentinels.
        eos_id: Id of the token that ends the middle.
        start_id: Id of the first input.
        window_tokens: Tokens of the longest window, which sets T.
        noise_seed: Seed of the splits and orders.
        frozen: Whether a window is split the same way in every epoch.
    """

    config: FillInTheMiddleConfig
    ids: MiddleIds
    eos_id: int
    start_id: int
    window_tokens: int
    noise_seed: int = 0
    frozen: bool = False

    def _order(self, places: NoisePlaces) -> np.ndarray:
        """The order of each window: 0 not split, 1 PSM, 2 SPM; int64 [N]."""
        key_N = places.key(self.noise_seed, "order of the parts", frozen=self.frozen)
        is_split_N = (random.uniform(key_N, 0) < self.config.rate) & (places.length_N > 0)
        return is_split_N * np.where(random.uniform(key_N, 1) < self.config.spm_fraction, 2, 1)

    def loss_tokens(self, places: NoisePlaces) -> int:
        """All tokens, and four more for each split window: three sentinels and EOS."""
        return int(places.length_N.sum() + 4 * (self._order(places) > 0).sum())

    def noise(self, places: NoisePlaces, *, width: int) -> dict[str, np.ndarray]:
        """`order_B`: 0 not split, 1 PSM, 2 SPM; `cuts_B2`: where the middle and the suffix begin, 0 to L."""
        key_B = places.key(self.noise_seed, "cuts", frozen=self.frozen)
        bound_B1 = places.length_N[:, None] + 1
        cuts_B2 = np.sort(random.below(bound_B1, key_B[:, None], np.arange(2)), axis=1)
        return {"order_B": self._order(places), "cuts_B2": cuts_B2}

    def example(self, batch: MicroBatch) -> Example:
        """Inputs of a decoder: `tokens_BT` and `is_token_BT`."""
        length_B1, order_B1 = batch.length_B[:, None], batch.noise["order_B"][:, None]
        first_B1, second_B1 = batch.noise["cuts_B2"][:, :1], batch.noise["cuts_B2"][:, 1:]
        column_L = torch.arange(batch.tokens_BL.shape[1], device=length_B1.device)
        suffix_B1 = length_B1 - second_B1
        in_prefix_BL, in_suffix_BL = column_L < first_B1, column_L >= second_B1
        # A part moves right by the sentinels and parts now before it, left by the parts now after it.
        psm_BL = torch.where(
            in_prefix_BL, 1, torch.where(in_suffix_BL, first_B1 - second_B1 + 2, suffix_B1 + 3)
        )
        spm_BL = torch.where(in_suffix_BL, 2 - second_B1, suffix_B1 + 3)
        moved_BL = torch.where(order_B1 == 2, spm_BL, psm_BL) * (order_B1 > 0)
        is_token_BL = column_L < length_B1
        place_BL = torch.where(is_token_BL, column_L + moved_BL, -1)

        is_psm_B1 = order_B1 == 1
        suffix_place_B1 = torch.where(is_psm_B1, first_B1 + 1, 1)
        middle_place_B1 = torch.where(is_psm_B1, first_B1 + 1, 1) + suffix_B1 + 1
        added_place_B4 = torch.cat(
            [torch.zeros_like(length_B1), suffix_place_B1, middle_place_B1, length_B1 + 3], 1
        )
        added_place_B4 = torch.where(order_B1 > 0, added_place_B4, -1)
        added_B4 = ids_on(length_B1.device, (*self.ids, self.eos_id)).expand(len(length_B1), 4)

        width = self.config.shape(self.window_tokens, "decoder").target_tokens
        place, values = torch.cat([place_BL, added_place_B4], 1), torch.cat([batch.tokens_BL, added_B4], 1)
        targets_BT = scatter(place, values, width, fill=IGNORE)
        is_token_BT = targets_BT != IGNORE
        inputs_BT = shift_right(targets_BT, is_token_BT.long(), start_id=self.start_id)
        return Example(
            {"tokens_BT": inputs_BT, "is_token_BT": is_token_BT},
            targets_BT,
            scatter(place_BL, is_token_BL, width, fill=False),
            torch.zeros_like(batch.length_B),
        )
