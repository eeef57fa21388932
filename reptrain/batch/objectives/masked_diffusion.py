"""Masked diffusion: a random share of a window's tokens is masked, and predicted from all the others.

B: rows; L: tokens of a window.

Source:
    Sahoo et al., "Simple and effective masked diffusion language models", 2024, equation 11 (linear
    schedule); Nie et al., "Large language diffusion models", 2025, equations 3 and 6; Ou et al., "Your
    absorbing discrete diffusion secretly models the conditional distributions of clean data", 2025 (that the
    two are one).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from reptrain import random
from reptrain.batch.objectives.example import IGNORE, Example, NoisePlaces, document_segments

if TYPE_CHECKING:
    from reptrain.batch.collate import MicroBatch

# Multiples of the golden ratio's inverse are spread over [0, 1) as evenly as a sequence without an end can.
_GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True)
class MaskedDiffusion:
    """The absorbing state is a mask id. At time t a token is masked with probability t; the nats of what is
    masked times 1/t are, on average over t and masks, a bound (ELBO) of the nats of the whole window: divided
    by its tokens, masked or not, they compare with causal's.

    The window 11 ... 14 with half of its tokens masked, mask id 99:

    >>> from reptrain.batch.collate import MicroBatch
    >>> hidden = torch.tensor([[False, True, False, True]])
    >>> noise = {"is_noise_BL": hidden, "weight_B": torch.tensor([2.0])}
    >>> batch = MicroBatch(torch.arange(11, 15)[None], torch.tensor([4]), *torch.zeros(2, 1), noise)
    >>> example = MaskedDiffusion(mask_id=99).example(batch)
    >>> example.inputs["tokens_BT"].tolist(), example.inputs["prefix_B"].tolist()
    ([[11, 99, 13, 99]], [4])
    >>> example.targets_BT.tolist(), example.weight_BT.tolist()
    ([[-100, 12, -100, 14]], [[2.0, 2.0, 2.0, 2.0]])
    >>> example.loss_tokens_B.tolist()
    [4]

    With `exact` a number n of tokens is masked, from 1 to L all alike likely, and t is n / L. Given n, masks
    of both kinds are distributed alike, and the chance of n times its weight is 1 / n for both: the integral
    over t of C(L, n) t^n (1 - t)^(L - n) / t. So both have one mean. With `independent` the weight's square
    grows without bound as t falls, and no token may be masked at all.

    Args:
        mask_id: Stands for what is masked.
        exact: Whether a number of tokens is masked, or each by chance.
        stratified: Whether a window's t of its epochs are spread evenly.
        noise_seed: Keys times and masks.
        frozen: Whether a window has the same masks in every epoch.
        document_eos_id: The token that ends a document; None lets attention cross documents.
    """

    mask_id: int
    exact: bool = True
    stratified: bool = False
    noise_seed: int = 0
    frozen: bool = False
    document_eos_id: int | None = None

    def loss_tokens(self, places: NoisePlaces) -> int:
        """All tokens: the bound is that of the whole window."""
        return int(places.length_N.sum())

    def _time(self, places: NoisePlaces) -> np.ndarray:
        """t of each window, float64 in (0, 1]."""
        if not self.stratified or self.frozen:
            return 1 - random.uniform(places.key(self.noise_seed, "time", frozen=self.frozen), 0)
        first_N = random.uniform(places.key(self.noise_seed, "time", frozen=True), 0)
        return 1 - (first_N + places.epoch_N * _GOLDEN) % 1

    def noise(self, places: NoisePlaces, *, width: int) -> dict[str, np.ndarray]:
        """`is_noise_BL`: which tokens are masked; `weight_B`: 1/t, fp32."""
        time_B, length_B = self._time(places), places.length_N
        key_B = places.key(self.noise_seed, "masks", frozen=self.frozen)
        is_token_BL = np.arange(width) < length_B[:, None]
        if not self.exact:
            is_noise_BL = is_token_BL & (random.uniform(key_B[:, None], np.arange(width)) < time_B[:, None])
            return {"is_noise_BL": is_noise_BL, "weight_B": (1 / time_B).astype(np.float32)}
        masked_B = np.ceil(time_B * length_B).astype(np.int64)
        drawn_BL = random.uint64(key_B[:, None], np.arange(width)) >> np.uint64(1)
        order_BL = np.argsort(np.where(is_token_BL, drawn_BL, np.uint64(2**63)), axis=1, kind="stable")
        is_noise_BL = np.zeros((len(length_B), width), dtype=np.bool_)
        np.put_along_axis(is_noise_BL, order_BL, np.arange(width) < masked_B[:, None], axis=1)
        weight_B = length_B / np.maximum(masked_B, 1)
        return {"is_noise_BL": is_noise_BL, "weight_B": weight_B.astype(np.float32)}

    def example(self, batch: MicroBatch) -> Example:
        """Inputs of a decoder that attends to all positions: `tokens_BT`, `is_token_BT`, `prefix_B` and,
        under a document mask, `segments_BT`."""
        tokens_BL, is_noise_BL = batch.tokens_BL, batch.noise["is_noise_BL"]
        segments_BL = document_segments(tokens_BL, batch.length_B, eos_id=self.document_eos_id)
        inputs = {
            "tokens_BT": tokens_BL.masked_fill(is_noise_BL, self.mask_id),
            "is_token_BT": segments_BL > 0,
            "prefix_B": batch.length_B,
        }
        if self.document_eos_id is not None:
            inputs["segments_BT"] = segments_BL
        return Example(
            inputs,
            tokens_BL.masked_fill(~is_noise_BL, IGNORE),
            is_noise_BL,
            batch.length_B - is_noise_BL.sum(1),
            weight_BT=batch.noise["weight_B"][:, None].expand(tokens_BL.shape),
            bounded_B=batch.length_B,
        )
