"""Masked diffusion: mask a random fraction of a window's tokens, and predict them from all the others.

Shapes: B rows of a micro-batch, L tokens of a window, N windows.

Source:
    Sahoo et al., "Simple and effective masked diffusion language models", 2024, equation 11 (linear
    schedule); Nie et al., "Large language diffusion models", 2025, equations 3 and 6; Ou et al., "Your
    absorbing discrete diffusion secretly models the conditional distributions of clean data", 2025 (the two
    losses are equivalent).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from reptrain import random
from reptrain.batch.micro_batch import MicroBatch
from reptrain.batch.objectives.example import Example, NoisePlaces, document_segments
from reptrain_kernels.ops.linear_cross_entropy import IGNORE

# Multiples of the inverse golden ratio, modulo 1, are a low-discrepancy sequence.
_GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True)
class MaskedDiffusion:
    """Masks each token with probability t at time t, and weights the loss of masked tokens by 1/t.

    Averaged over t and masks, the weighted nats are an upper bound (negative ELBO) on the nats of the whole
    window. Divided by all tokens of the window, they are comparable with a causal loss.

    The window 11 ... 14 with half of its tokens masked, mask id 99:

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

    With `exact`, the number n of masked tokens is uniform over 1 ... L, and t is n / L. Otherwise each token
    is masked independently. Given n, both draw the masks from the same distribution, and the probability of n
    times its weight is 1 / n for both (the integral over t of C(L, n) t^n (1 - t)^(L - n) / t), so both have
    the same mean. With independent masks, the square of the weight is unbounded as t goes to 0, and a window
    may have no masked token.

    Args:
        mask_id: Id that replaces a masked token.
        exact: Whether to draw the number of masked tokens; False: mask each token independently.
        stratified: Whether the times t of a window are spread evenly over its epochs.
        noise_seed: Seed of the times and masks.
        frozen: Whether a window gets the same masks in every epoch.
        document_eos_id: Id of the token that ends a document; None lets attention cross documents.
    """

    mask_id: int
    exact: bool = True
    stratified: bool = False
    noise_seed: int = 0
    frozen: bool = False
    document_eos_id: int | None = None

    def loss_tokens(self, places: NoisePlaces) -> int:
        """All tokens: the bound covers the whole window."""
        return int(places.length_N.sum())

    def _time(self, places: NoisePlaces) -> np.ndarray:
        """t of each window, float64 in (0, 1]."""
        if not self.stratified or self.frozen:
            return 1 - random.uniform(places.key(self.noise_seed, "time", frozen=self.frozen), 0)
        first_N = random.uniform(places.key(self.noise_seed, "time", frozen=True), 0)
        return 1 - (first_N + places.epoch_N * _GOLDEN) % 1

    def noise(self, places: NoisePlaces, *, width: int) -> dict[str, np.ndarray]:
        """`is_noise_BL`: the masked tokens; `weight_B`: fp32, 1/t."""
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
        """Inputs `tokens_BT`, `is_token_BT`, `prefix_B` (attention is bidirectional) and, with a document
        mask, `segments_BT`."""
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
