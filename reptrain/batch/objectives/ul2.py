"""UL2: span corruption in one of several ways, drawn for each window, and told by a mode token.

B: rows; D: denoisers; L: raw tokens of a window; S: positions of the inputs; T: positions of the targets.

Source:
    Tay et al., "UL2: Unifying language learning paradigms", 2022, section 3.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch

from reptrain import random
from reptrain.batch.objectives.example import Example, Int64s, NoisePlaces
from reptrain.batch.objectives.spans import draw_spans, hide_spans
from reptrain.config.objectives import MODES, ExampleShape, UL2Config

if TYPE_CHECKING:
    from reptrain.batch.collate import MicroBatch


@dataclass(frozen=True)
class UL2:
    """A mixture of denoisers over the run's one raw window.

    The window 11 ... 18 in mode S (the second of R, S and X), its last two tokens hidden, mode tokens 97, 96
    and 95, sentinels 99 and 98, EOS 1, start token 0. Inputs and targets have room for the largest denoiser:

    >>> from reptrain.batch.collate import MicroBatch
    >>> hidden = torch.tensor([[False] * 6 + [True] * 2])
    >>> noise = {"is_noise_BL": hidden, "mode_B": torch.tensor([1])}
    >>> batch = MicroBatch(torch.arange(11, 19)[None], torch.tensor([8]), *torch.zeros(2, 1), noise)
    >>> denoisers = [{"mode": "S", "noise_density": 0.25}, {"mode": "X", "noise_density": 0.5}]
    >>> config = UL2Config(name="ul2", denoisers=denoisers)
    >>> objective = UL2(config, (99, 98), (97, 96, 95), eos_id=1, start_id=0, window_tokens=8)
    >>> example = objective.example(batch)
    >>> example.inputs["source_BS"].tolist()
    [[96, 11, 12, 13, 14, 15, 16, 99, 1]]
    >>> example.targets_BT.tolist()
    [[99, 17, 18, 1, -100, -100]]

    A decoder alone reads the inputs bidirectionally, and in the same row behind them the targets:

    >>> from dataclasses import replace
    >>> example = replace(objective, in_one_row=True).example(batch)
    >>> example.inputs["tokens_BT"].tolist(), example.inputs["prefix_B"].tolist()
    ([[96, 11, 12, 13, 14, 15, 16, 99, 1, 0, 99, 17, 18, 0, 0]], [9])

    Args:
        config: The denoisers.
        sentinel_ids: In the order of use; at least as many as a full window has spans.
        mode_ids: The tokens of the modes R, S and X.
        eos_id: Ends inputs and targets.
        start_id: The decoder's first input.
        window_tokens: Tokens of the longest window, which gives S and T.
        noise_seed: Keys denoisers and spans.
        frozen: Whether a window is corrupted alike in every epoch.
        in_one_row: Whether the targets stand behind the inputs, for a decoder alone.
    """

    config: UL2Config
    sentinel_ids: tuple[int, ...]
    mode_ids: tuple[int, int, int]
    eos_id: int
    start_id: int
    window_tokens: int
    noise_seed: int = 0
    frozen: bool = False
    in_one_row: bool = False

    @cached_property
    def _widths(self) -> ExampleShape:
        return self.config.shape(self.window_tokens, "t5")

    @cached_property
    def _edges(self) -> np.ndarray:
        """Of the denoisers' shares of [0, 1), but the last."""
        weights = np.array([denoiser.weight for denoiser in self.config.denoisers])
        return np.cumsum(weights)[:-1] / weights.sum()

    def _denoiser(self, places: NoisePlaces) -> Int64s:
        key_N = places.key(self.noise_seed, "denoiser", frozen=self.frozen)
        return np.searchsorted(self._edges, random.uniform(key_N, 0), side="right").astype(np.int64)

    def _counts(self, denoiser_N: Int64s, length_N: Int64s) -> Int64s:
        """Hidden tokens, spans and targets of each window, int64 [N, 3]."""
        pairs, which_N = np.unique(np.stack([denoiser_N, length_N], 1), axis=0, return_inverse=True)
        counts = [
            self.config.denoisers[denoiser].spans(length) if length else None
            for denoiser, length in pairs.tolist()
        ]
        table = [(c.noise, c.spans, c.targets) if c else (0, 0, 0) for c in counts]
        return np.array(table, dtype=np.int64).reshape(-1, 3)[which_N.reshape(-1)]

    def loss_tokens(self, places: NoisePlaces) -> int:
        """Hidden tokens, a sentinel for each span, and EOS, as each window's denoiser makes them."""
        return int(self._counts(self._denoiser(places), places.length_N)[:, 2].sum())

    def noise(self, places: NoisePlaces, *, width: int) -> dict[str, np.ndarray]:
        """`is_noise_BL`: which tokens are hidden; `mode_B`: the place of each window's mode in R, S, X."""
        denoiser_B = self._denoiser(places)
        noise_B, spans_B, _ = self._counts(denoiser_B, places.length_N).T
        is_noise_BL = draw_spans(
            places, noise_B, spans_B, noise_seed=self.noise_seed, frozen=self.frozen, width=width
        )
        mode_D = np.array([MODES.index(denoiser.mode) for denoiser in self.config.denoisers])
        return {"is_noise_BL": is_noise_BL, "mode_B": mode_D[denoiser_B]}

    def example(self, batch: MicroBatch) -> Example:
        """Inputs of an encoder-decoder or of a decoder (see `Rows`)."""
        rows = hide_spans(
            batch,
            sentinel_ids=self.sentinel_ids,
            eos_id=self.eos_id,
            document_eos_id=None,
            input_width=self._widths.input_tokens - 1,
            target_width=self._widths.target_tokens,
        )
        is_window_B = (batch.length_B > 0).long()
        mode_B = torch.tensor(self.mode_ids, device=is_window_B.device)[batch.noise["mode_B"]]
        rows = rows._replace(
            source_BS=torch.cat([(mode_B * is_window_B)[:, None], rows.source_BS], 1),
            source_segments_BS=torch.cat([is_window_B[:, None], rows.source_segments_BS], 1),
        )
        if self.in_one_row:
            return rows.for_decoder(start_id=self.start_id, document_mask=False)
        return rows.for_encoder_decoder(start_id=self.start_id)
