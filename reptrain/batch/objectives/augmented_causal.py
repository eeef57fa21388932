"""Causal language modeling with views of a window: a later token as the target, or the reversed window.

Shapes: B rows of a micro-batch, L tokens of a window, N windows.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from reptrain import random
from reptrain.batch.micro_batch import MicroBatch
from reptrain.batch.objectives.example import Example, NoisePlaces
from reptrain.batch.objectives.rows import ids_on
from reptrain.config.objectives import AugmentedCausalConfig
from reptrain_kernels.ops.linear_cross_entropy import IGNORE


@dataclass(frozen=True)
class AugmentedCausal:
    """Each window has a view, an offset of its targets and a direction, which its start token identifies.

    The window 11 ... 14 with the next token as target, with offset 2, and from right to left:

    >>> config = AugmentedCausalConfig(name="augmented_causal", max_offset=2, right_to_left=0.5)
    >>> noise = {"view_B": torch.tensor([0, 1, 2])}
    >>> tokens = torch.arange(11, 15).expand(3, 4)
    >>> batch = MicroBatch(tokens, torch.tensor([4] * 3), *torch.zeros(2, 3), noise)
    >>> example = AugmentedCausal(config, start_ids=(0, 99, 98, 97)).example(batch)
    >>> example.inputs["tokens_BT"].tolist()
    [[0, 11, 12, 13], [99, 11, 12, 13], [98, 14, 13, 12]]
    >>> example.targets_BT.tolist()
    [[11, 12, 13, 14], [12, 13, 14, -100], [14, 13, 12, 11]]

    Args:
        config: The offsets, and the share of windows from right to left.
        start_ids: Start token of each view: left to right with offsets from 1, then right to left.
        noise_seed: Seed of the views.
        frozen: Whether a window has the same view in every epoch.

    Source:
        Chen et al., "Demystifying training-time augmentation for data-constrained language model
        pretraining", arXiv 2606.16246, 2026.
    """

    config: AugmentedCausalConfig
    start_ids: tuple[int, ...]
    noise_seed: int = 0
    frozen: bool = False

    def _views(self, places: NoisePlaces) -> np.ndarray:
        """The view of each window, int64 [N]: its offset - 1, plus the largest offset if right to left."""
        key_N = places.key(self.noise_seed, "view", frozen=self.frozen)
        # A window has at least one target.
        offsets_N = np.clip(places.length_N, 1, self.config.max_offset)
        is_reversed_N = random.uniform(key_N, 1) < self.config.right_to_left
        return random.below(offsets_N, key_N, 0) + self.config.max_offset * is_reversed_N

    def loss_tokens(self, places: NoisePlaces) -> int:
        """The tokens of each window from the first target on."""
        skipped_N = np.where(places.length_N > 0, self._views(places) % self.config.max_offset, 0)
        return int((places.length_N - skipped_N).sum())

    def noise(self, places: NoisePlaces, *, width: int) -> dict[str, np.ndarray]:
        """`view_B`: the view of each window."""
        return {"view_B": self._views(places)}

    def example(self, batch: MicroBatch) -> Example:
        """Inputs `tokens_BT` and `is_token_BT`."""
        view_B, length_B1 = batch.noise["view_B"], batch.length_B[:, None]
        skipped_B, is_reversed_B = view_B % self.config.max_offset, view_B >= self.config.max_offset
        column_L = torch.arange(batch.tokens_BL.shape[1], device=view_B.device)
        is_token_BL = column_L < length_B1
        place_BL = torch.where(is_token_BL & is_reversed_B[:, None], length_B1 - 1 - column_L, column_L)
        read_BL = batch.tokens_BL.gather(1, place_BL)
        start_B1 = ids_on(view_B.device, self.start_ids)[view_B][:, None]
        inputs_BL = torch.cat([start_B1, read_BL[:, :-1]], dim=1).masked_fill(~is_token_BL, self.start_ids[0])
        target_place_BL = column_L + skipped_B[:, None]
        has_target_BL = target_place_BL < length_B1
        targets_BL = read_BL.gather(1, target_place_BL.clamp(max=read_BL.shape[1] - 1))
        return Example(
            {"tokens_BT": inputs_BL, "is_token_BT": is_token_BL},
            targets_BL.masked_fill(~has_target_BL, IGNORE),
            has_target_BL,
            torch.minimum(skipped_B, batch.length_B),
        )
