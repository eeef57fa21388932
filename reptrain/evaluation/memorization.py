"""Memorization: how many training windows the model goes on with word for word, by how often it saw them.

A greedy continuation of k tokens is the text's own exactly where, given the text so far, each of the k tokens
is the one that the model ranks first: by induction over the k. So one forward pass over the true text tells
it, without generating.

Shapes: B rows, L tokens of a stretch (the prompt and its continuation), T positions, V vocabulary.

Source:
    Carlini et al., "Quantifying memorization across neural language models", 2023, definition 3.1.
"""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from reptrain.batch.collate import MicroBatch
from reptrain.batch.objectives import MaskedDiffusion, NoisePlaces, Objective, build_objective
from reptrain.errors import ConfigError
from reptrain.evaluation.evaluate import ScoredRun
from reptrain.plan import Subset
from reptrain.runs.folder import RunFolder

Int64s = npt.NDArray[np.int64]


class Memorized(NamedTuple):
    """Windows of one kind."""

    run: str
    step: int
    """Steps completed by the weights that were asked."""
    set: str
    """train, or of held-out text select; in a mixture followed by the source."""
    exposures: int
    """How often the model had been trained on them."""
    windows: int
    """How many were asked for."""
    reproduced: int
    """Those whose continuation is the text's own."""

    @property
    def share(self) -> float:
        """Of the windows."""
        return self.reproduced / self.windows


def memorized(
    run: ScoredRun, *, prefix_tokens: int, continuation_tokens: int, max_windows: int
) -> list[Memorized]:
    """Ask for the continuations of windows spread evenly over each subset, and over the select set.

    A decoder goes on behind the prompt, or, under prefix LM, reads it as its prefix; the decoder of an
    encoder-decoder under span corruption fills in a hidden span at the end; under UL2 it does so in mode S.
    Denoising writes prompt and continuation, of which the continuation is masked.
    Diffusion unmasks from left to right.

    Args:
        run: The run.
        prefix_tokens: Of the prompt: the first of a window.
        continuation_tokens: Tokens behind it that are asked for.
        max_windows: Windows asked for of each subset.

    Raises:
        ConfigError: If prompt and continuation are longer than a window.
    """
    stretch = prefix_tokens + continuation_tokens
    if min(prefix_tokens, continuation_tokens) < 1 or stretch > run.config.window_tokens:
        raise ConfigError(
            "prompt and continuation",
            got=f"{prefix_tokens} and {continuation_tokens} tokens",
            rule=f"must be at least one each, and fit a window of the run, {run.config.window_tokens} tokens",
            remedy="Lower --prefix-tokens or --continuation-tokens.",
        )
    objective = _asking(run, prefix_tokens, continuation_tokens)
    rows = []
    for place, (name, (store, subset)) in enumerate(run.sources.items()):
        suffix = f"/{name}" if len(run.sources) > 1 else ""
        parts = [("select", Subset.open(store, split="select"), False)]
        if subset is not None:
            parts.insert(0, ("train", subset, True))
        for kind, part, is_trained in parts:
            start_N = _starts(part, run.config.window_tokens, stretch, max_windows)
            times_N = exposures(run, place, start_N) if is_trained else np.zeros_like(start_N)
            right_N = _reproduced(run, part, objective, start_N, prefix_tokens, stretch)
            for times in np.unique(times_N):
                asked = times_N == times
                counts = int(asked.sum()), int(right_N[asked].sum())
                rows.append(Memorized(str(run.path), run.step, f"{kind}{suffix}", int(times), *counts))
    return rows


def _starts(part: Subset, window_tokens: int, stretch: int, max_windows: int) -> Int64s:
    """Where windows begin, spread evenly, that have room for prompt and continuation."""
    room = max(0, (part.unique_tokens - stretch) // window_tokens + 1)
    count = min(max_windows, room)
    return np.arange(count, dtype=np.int64) * room // max(count, 1) * window_tokens


def exposures(run: ScoredRun, source: int, start_N: Int64s) -> Int64s:
    """How often the tokens at these positions of a source's subset were trained on before the run's step."""
    folder = RunFolder.open(run.path)
    mixture = folder.plan.mixture_plan()
    plan = mixture.plans[source]
    consumed = min(run.step * folder.plan.batch_windows, mixture.total_windows)
    local = mixture.interleaving.counts_before(consumed)[source]
    epoch = np.arange(-(-plan.total_windows // plan.windows_per_epoch), dtype=np.int64)
    times_N = np.array(
        [(plan.indices_of(int(start), epoch) < local).sum() for start in start_N], dtype=np.int64
    )
    records = [record for record in folder.ledger.records() if record.step < run.step]
    applied = {record.step for record in records if record.applied}
    for record in {record.step: record for record in records if record.step not in applied}.values():
        found = mixture.locate(np.arange(record.first_index, record.first_index + record.windows))
        _, place_B = mixture.noise_place(found)
        here = found.source == source
        covers = (place_B[here] <= start_N[:, None]) & (start_N[:, None] < (place_B + found.length)[here])
        times_N -= covers.sum(1)
    return times_N


def _asking(run: ScoredRun, prompt: int, asked: int) -> Objective:
    """The run's objective, with all behind the prompt to be predicted."""
    stretch = prompt + asked
    objective = run.config.objective.for_continuation(prompt, asked)
    data = run.config.data.model_copy(update={"window_tokens": stretch})
    config = run.config.model_copy(update={"data": data, "objective": objective})
    return build_objective(config, run.tokenizer, noise_seed=0)


@torch.no_grad()
def _reproduced(
    run: ScoredRun, part: Subset, objective: Objective, start_N: Int64s, prompt: int, stretch: int
) -> npt.NDArray[np.bool_]:
    """Whether each continuation is the text's own, bool [N]."""
    found = [np.zeros(0, dtype=np.bool_)]
    for first in range(0, len(start_N), run.rows):
        start_B = start_N[first : first + run.rows]
        length_B = np.full_like(start_B, stretch)
        tokens_BL, _ = part.tokens(start_B, length_B, stretch)
        places = NoisePlaces(np.zeros_like(start_B), np.zeros_like(start_B), start_B, length_B)
        noise = objective.noise(places, width=stretch)
        row_B = np.arange(len(start_B))
        batch = MicroBatch(
            *(torch.from_numpy(array) for array in (tokens_BL, length_B, start_B, row_B)),
            {name: torch.from_numpy(np.ascontiguousarray(drawn)) for name, drawn in noise.items()},
        ).to(run.world.device)
        if isinstance(objective, MaskedDiffusion):
            right_B = _unmasked(run, objective, batch, prompt)
        else:
            example = objective.example(batch)
            right_B = _all_right(
                run.model(**example.inputs), example.targets_BT, example.is_raw_BT, stretch - prompt
            )
        found.append(right_B.cpu().numpy())
    return np.concatenate(found)


def _all_right(logits_BTV: Tensor, targets_BT: Tensor, is_raw_BT: Tensor, asked: int) -> Tensor:
    """Whether the last ``asked`` of the window's own tokens are all ranked first, bool [B]."""
    behind_BT = is_raw_BT.long().flip(1).cumsum(1).flip(1)
    is_asked_BT = is_raw_BT & (behind_BT <= asked)
    return ~(is_asked_BT & (logits_BTV.argmax(-1) != targets_BT)).any(1)


def _unmasked(run: ScoredRun, objective: MaskedDiffusion, batch: MicroBatch, prompt: int) -> Tensor:
    """The same for diffusion, one token after the other, with all behind it masked."""
    right_B = torch.ones_like(batch.length_B, dtype=torch.bool)
    column_L = torch.arange(batch.tokens_BL.shape[1], device=right_B.device)
    for place in range(prompt, len(column_L)):
        is_noise_BL = (column_L >= place).expand_as(batch.tokens_BL)
        masked = replace(batch, noise=batch.noise | {"is_noise_BL": is_noise_BL})
        logits_BTV = run.model(**objective.example(masked).inputs)
        right_B &= logits_BTV[:, place].argmax(-1) == batch.tokens_BL[:, place]
    return right_B
