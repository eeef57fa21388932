"""Memorization: the share of training windows that the model continues verbatim, by number of exposures.

A greedy continuation of k tokens equals the text if and only if the model ranks each of these k tokens first,
given the text before it (by induction over k). One forward pass over the true text decides this, without
generating.

Shapes: N windows, B rows, L tokens of prompt and continuation, T positions, V ids.

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
from reptrain.plan import Subset, source_stream
from reptrain.runs.folder import RunFolder

Int64s = npt.NDArray[np.int64]


class Memorized(NamedTuple):
    """Memorization of the windows with one number of exposures."""

    run: str
    step: int
    """Completed steps of the weights."""
    set: str
    """train, or select for held-out text; in a mixture followed by the source."""
    exposures: int
    """Number of times that the model was trained on these windows."""
    windows: int
    """Number of windows."""
    reproduced: int
    """Windows whose continuation the model reproduces."""

    @property
    def share(self) -> float:
        """Share of reproduced windows."""
        return self.reproduced / self.windows


def memorized(
    run: ScoredRun, *, prefix_tokens: int, continuation_tokens: int, max_windows: int
) -> list[Memorized]:
    """Measure memorization on windows spread evenly over each training subset and each select split.

    The continuation is predicted under the run's objective: causal LM and prefix LM continue the prompt; span
    corruption, and UL2 in mode S, fill a span at the end of the input; denoising reconstructs the input, in
    which the continuation is masked; diffusion unmasks it from left to right.

    Args:
        run: The run.
        prefix_tokens: Tokens of the prompt, at the start of the window.
        continuation_tokens: Tokens of the continuation, after the prompt.
        max_windows: Maximum number of windows of each subset.

    Raises:
        ConfigError: If prompt and continuation are longer than a window.
    """
    total_tokens = prefix_tokens + continuation_tokens
    if min(prefix_tokens, continuation_tokens) < 1 or total_tokens > run.config.window_tokens:
        raise ConfigError(
            "prompt and continuation",
            got=f"{prefix_tokens} and {continuation_tokens} tokens",
            rule=f"must be at least one each, and fit a window of the run, {run.config.window_tokens} tokens",
            remedy="Lower --prefix-tokens or --continuation-tokens.",
        )
    objective = _continuation_objective(run, prefix_tokens, continuation_tokens)
    rows = []
    for index, (name, (store, subset)) in enumerate(run.sources.items()):
        suffix = f"/{name}" if len(run.sources) > 1 else ""
        parts = [("select", Subset.open(store, split="select"), False)]
        if subset is not None:
            parts.insert(0, ("train", subset, True))
        for kind, part, is_trained in parts:
            start_N = _starts(part, run.config.window_tokens, total_tokens, max_windows)
            exposures_N = exposures(run, index, part, start_N) if is_trained else np.zeros_like(start_N)
            reproduced_N = _reproduced(run, part, objective, start_N, prefix_tokens, total_tokens)
            for times in np.unique(exposures_N):
                chosen_N = exposures_N == times
                counts = int(chosen_N.sum()), int(reproduced_N[chosen_N].sum())
                rows.append(Memorized(str(run.path), run.step, f"{kind}{suffix}", int(times), *counts))
    return rows


def _starts(part: Subset, window_tokens: int, total_tokens: int, max_windows: int) -> Int64s:
    """First tokens of evenly spread windows that have room for prompt and continuation."""
    room = max(0, (part.unique_tokens - total_tokens) // window_tokens + 1)
    count = min(max_windows, room)
    return np.arange(count, dtype=np.int64) * room // max(count, 1) * window_tokens


def exposures(run: ScoredRun, source: int, subset: Subset, start_N: Int64s) -> Int64s:
    """Exposures of the tokens at these positions of a source's subset, before the run's step.

    Args:
        run: The run.
        source: Index of the source.
        subset: The source's subset.
        start_N: Positions in the stream of the source's subset.
    """
    folder = RunFolder.open(run.path)
    mixture = folder.plan.mixture_plan()
    plan = mixture.plans[source]
    consumed = min(run.step * folder.plan.batch_windows, mixture.total_windows)
    local = mixture.interleaving.counts_before(consumed)[source]
    stream = source_stream(subset, plan)
    whole, rest = divmod(local, plan.windows_per_epoch)
    open_epochs = range(whole, whole + (rest > 0))
    if plan.order == "mixed":
        whole, open_epochs = 0, range(-(-plan.total_windows // plan.windows_per_epoch))
    times_N = np.full_like(start_N, whole)
    for epoch in open_epochs:
        epoch_N = np.full_like(start_N, epoch)
        times_N += plan.indices_of(stream.in_epoch(start_N, epoch), epoch_N) < local
    records = [record for record in folder.ledger.records() if record.step < run.step]
    applied = {record.step for record in records if record.applied}
    for record in {record.step: record for record in records if record.step not in applied}.values():
        windows = mixture.locate(np.arange(record.first_index, record.first_index + record.windows))
        _, first_B = mixture.noise_place(windows)
        end_B = first_B + windows.length
        for epoch in np.unique(windows.epoch[windows.source == source]).tolist():
            is_own_B = (windows.source == source) & (windows.epoch == epoch)
            position_N = stream.in_epoch(start_N, epoch)[:, None]
            times_N -= ((first_B[is_own_B] <= position_N) & (position_N < end_B[is_own_B])).sum(1)
    return times_N


def _continuation_objective(run: ScoredRun, prefix_tokens: int, continuation_tokens: int) -> Objective:
    """The run's objective, set to predict the whole continuation and nothing else."""
    objective = run.config.objective.for_continuation(prefix_tokens, continuation_tokens)
    data = run.config.data.model_copy(update={"window_tokens": prefix_tokens + continuation_tokens})
    config = run.config.model_copy(update={"data": data, "objective": objective})
    return build_objective(config, run.tokenizer, noise_seed=0)


@torch.no_grad()
def _reproduced(
    run: ScoredRun, part: Subset, objective: Objective, start_N: Int64s, prefix_tokens: int, total_tokens: int
) -> npt.NDArray[np.bool_]:
    """Whether the model reproduces each continuation, bool [N]."""
    results = [np.zeros(0, dtype=np.bool_)]
    for first in range(0, len(start_N), run.rows):
        start_B = start_N[first : first + run.rows]
        length_B = np.full_like(start_B, total_tokens)
        tokens_BL, _ = part.tokens(start_B, length_B, total_tokens)
        places = NoisePlaces(np.zeros_like(start_B), np.zeros_like(start_B), start_B, length_B)
        noise = objective.noise(places, width=total_tokens)
        row_B = np.arange(len(start_B))
        batch = MicroBatch(
            torch.from_numpy(tokens_BL),
            torch.from_numpy(length_B),
            torch.from_numpy(start_B),
            torch.from_numpy(row_B),
            {name: torch.from_numpy(np.ascontiguousarray(drawn)) for name, drawn in noise.items()},
        ).to(run.world.device)
        if isinstance(objective, MaskedDiffusion):
            correct_B = _correct_unmasking(run, objective, batch, prefix_tokens)
        else:
            example = objective.example(batch)
            correct_B = _correct_continuation(
                run.model(**example.inputs),
                example.targets_BT,
                example.is_raw_BT,
                total_tokens - prefix_tokens,
            )
        results.append(correct_B.cpu().numpy())
    return np.concatenate(results)


def _correct_continuation(
    logits_BTV: Tensor, targets_BT: Tensor, is_raw_BT: Tensor, continuation_tokens: int
) -> Tensor:
    """Whether the last ``continuation_tokens`` of the window's own tokens are all ranked first, bool [B]."""
    remaining_BT = is_raw_BT.long().flip(1).cumsum(1).flip(1)
    is_continuation_BT = is_raw_BT & (remaining_BT <= continuation_tokens)
    return ~(is_continuation_BT & (logits_BTV.argmax(-1) != targets_BT)).any(1)


def _correct_unmasking(
    run: ScoredRun, objective: MaskedDiffusion, batch: MicroBatch, prefix_tokens: int
) -> Tensor:
    """The same for diffusion: predict one token after the other, with the token and all after it masked."""
    correct_B = torch.ones_like(batch.length_B, dtype=torch.bool)
    column_L = torch.arange(batch.tokens_BL.shape[1], device=correct_B.device)
    for position in range(prefix_tokens, len(column_L)):
        is_noise_BL = (column_L >= position).expand_as(batch.tokens_BL)
        masked = replace(batch, noise=batch.noise | {"is_noise_BL": is_noise_BL})
        logits_BTV = run.model(**objective.example(masked).inputs)
        correct_B &= logits_BTV[:, position].argmax(-1) == batch.tokens_BL[:, position]
    return correct_B
