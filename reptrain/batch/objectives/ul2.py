"""UL2: span corruption by one of several denoisers, drawn for each window and marked by a mode token.

Shapes: B rows of a micro-batch, D denoisers, L raw tokens of a window, S positions of the inputs, T positions
of the targets, N windows.

Source:
    Tay et al., "UL2: Unifying language learning paradigms", 2022, section 3.1.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch

from reptrain import random
from reptrain.batch.micro_batch import MicroBatch
from reptrain.batch.objectives.example import Example, Int64s, NoisePlaces
from reptrain.batch.objectives.rows import ids_on
from reptrain.batch.objectives.spans import draw_spans, hide_spans
from reptrain.config.objectives import MODES, ExampleShape, UL2Config


@dataclass(frozen=True)
class UL2:
    """A mixture of denoisers, all over windows of the same length.

    The window 11 ... 18 in mode S (the second of R, S and X) with its last two tokens hidden, mode tokens 97,
    96 and 95, sentinels 99 and 98, EOS 1, start token 0. The widths are those of the largest denoiser:

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

    For a decoder-only model, one row holds the inputs, as a bidirectional prefix, and then the targets:

    >>> from dataclasses import replace
    >>> example = replace(objective, in_one_row=True).example(batch)
    >>> example.inputs["tokens_BT"].tolist(), example.inputs["prefix_B"].tolist()
    ([[96, 11, 12, 13, 14, 15, 16, 99, 1, 0, 99, 17, 18, 0, 0]], [9])

    Args:
        config: The denoisers and their weights.
        sentinel_ids: Ids of the sentinels, in the order of use; at least one per span of a full window.
        mode_ids: Ids of the mode tokens R, S and X.
        eos_id: Id of the token that ends inputs and targets.
        start_id: Id of the decoder's first input.
        window_tokens: Tokens of the longest window, which sets S and T.
        noise_seed: Seed of the denoisers and spans.
        frozen: Whether a window is corrupted the same way in every epoch.
        in_one_row: Whether one row holds inputs and targets, for a decoder-only model.
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
    def _edges(self) -> npt.NDArray[np.float64]:
        """Upper ends of the denoisers' intervals in [0, 1), except the last."""
        weights = np.array([denoiser.weight for denoiser in self.config.denoisers])
        edges: npt.NDArray[np.float64] = np.cumsum(weights)[:-1] / weights.sum()
        return edges

    def _denoiser(self, places: NoisePlaces) -> Int64s:
        """Index of each window's denoiser, int64 [N]."""
        key_N = places.key(self.noise_seed, "denoiser", frozen=self.frozen)
        return np.searchsorted(self._edges, random.uniform(key_N, 0), side="right").astype(np.int64)

    def _counts(self, denoiser_N: Int64s, length_N: Int64s) -> Int64s:
        """Numbers of hidden tokens, spans and targets of each window, int64 [N, 3]."""
        pairs, index_N = np.unique(length_N * len(self.config.denoisers) + denoiser_N, return_inverse=True)
        counts = [
            self.config.denoisers[denoiser].spans(length) if length else None
            for length, denoiser in (divmod(pair, len(self.config.denoisers)) for pair in pairs.tolist())
        ]
        table: Int64s = np.array(
            [(c.noise, c.spans, c.targets) if c else (0, 0, 0) for c in counts], dtype=np.int64
        )
        return table.reshape(-1, 3)[index_N]

    def loss_tokens(self, places: NoisePlaces) -> int:
        """Hidden tokens, one sentinel per span, and EOS, by each window's denoiser."""
        return int(self._counts(self._denoiser(places), places.length_N)[:, 2].sum())

    def noise(self, places: NoisePlaces, *, width: int) -> dict[str, np.ndarray]:
        """`is_noise_BL`: the hidden tokens; `mode_B`: index of each window's mode in (R, S, X)."""
        denoiser_B = self._denoiser(places)
        noise_B, spans_B, _ = self._counts(denoiser_B, places.length_N).T
        is_noise_BL = draw_spans(
            places, noise_B, spans_B, noise_seed=self.noise_seed, frozen=self.frozen, width=width
        )
        mode_D = np.array([MODES.index(denoiser.mode) for denoiser in self.config.denoisers])
        return {"is_noise_BL": is_noise_BL, "mode_B": mode_D[denoiser_B]}

    def example(self, batch: MicroBatch) -> Example:
        """Inputs of an encoder-decoder or of a decoder-only model (see `Rows`)."""
        rows = hide_spans(
            batch,
            sentinel_ids=self.sentinel_ids,
            eos_id=self.eos_id,
            document_eos_id=None,
            input_width=self._widths.input_tokens - 1,
            target_width=self._widths.target_tokens,
        )
        is_window_B = (batch.length_B > 0).long()
        mode_B = ids_on(is_window_B.device, self.mode_ids)[batch.noise["mode_B"]]
        rows = rows._replace(
            source_BS=torch.cat([(mode_B * is_window_B)[:, None], rows.source_BS], 1),
            source_segments_BS=torch.cat([is_window_B[:, None], rows.source_segments_BS], 1),
        )
        if self.in_one_row:
            return rows.for_decoder(start_id=self.start_id, document_mask=False)
        return rows.for_encoder_decoder(start_id=self.start_id)
