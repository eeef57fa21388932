"""Build micro-batches from the windows of a token stream.

Shapes: B rows of a micro-batch, L tokens of a window, N windows.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from reptrain.batch.micro_batch import MicroBatch
from reptrain.batch.objectives.example import Int64s, NoisePlaces, Objective
from reptrain.plan import EpochPlan, MixturePlan, Stream, Subset
from reptrain.plan.epochs import Windows

__all__ = ["MicroBatch", "collate", "collate_windows", "places_of"]


def collate(
    stream: Stream | Subset,
    plan: MixturePlan | EpochPlan,
    objective: Objective,
    global_index_B: Int64s,
    row_B: Int64s,
    *,
    noise_place_B: Int64s | None = None,
) -> MicroBatch:
    """Build the micro-batch of the windows at the given global indices.

    Example:
        A subset of the tokens 5 to 14 with window_tokens 4. Global index 2 is the short last window, and
        [2, -1] gives tokens_BL [[13, 14, 0, 0], [0, 0, 0, 0]], length_B [2, 0] and start_B [8, 0].

    Args:
        stream: The tokens.
        plan: Maps global indices to windows.
        objective: Draws the noise.
        global_index_B: int64, -1 for a padding row.
        row_B: int64, index of each row in the step's global batch.
        noise_place_B: int64, the key of each row's noise besides its epoch; None: its source and its start.

    Returns:
        The micro-batch, on the CPU.
    """
    is_window_B = global_index_B >= 0
    windows = plan.locate(np.where(is_window_B, global_index_B, 0))
    index_B = np.where(is_window_B, np.arange(global_index_B.size), -1)
    return collate_windows(stream, plan, objective, windows, index_B, row_B, noise_place_B=noise_place_B)


def collate_windows(
    stream: Stream | Subset,
    plan: MixturePlan | EpochPlan,
    objective: Objective,
    windows: Windows,
    index_B: Int64s,
    row_B: Int64s,
    *,
    noise_place_B: Int64s | None = None,
) -> MicroBatch:
    """`collate` for windows that have already been located.

    Args:
        stream: The tokens.
        plan: The plan of the windows.
        objective: Draws the noise.
        windows: N windows.
        index_B: int64, index in ``windows`` of each row's window, -1 for a padding row.
        row_B: int64, index of each row in the step's global batch.
        noise_place_B: int64, the key of each row's noise besides its epoch; None: its source and its start.

    Returns:
        The micro-batch, on the CPU.
    """
    is_window_B = index_B >= 0
    # A padding row is an empty window at position 0.
    windows = Windows(*(np.where(is_window_B, values[index_B], 0) for values in windows))
    start_B, length_B = windows.start, windows.length
    tokens_BL, _ = stream.tokens(start_B, length_B, plan.window_tokens)
    seed_B, place_B = plan.noise_place(windows)
    if noise_place_B is not None:
        seed_B, place_B = np.zeros_like(noise_place_B), noise_place_B
    places = NoisePlaces(seed_B, windows.epoch, place_B, length_B)
    noise = objective.noise(places, width=plan.window_tokens)
    return MicroBatch(
        _tensor(tokens_BL),
        _tensor(length_B),
        _tensor(start_B),
        _tensor(row_B),
        {name: _tensor(values) for name, values in noise.items()},
    )


def places_of(plan: MixturePlan | EpochPlan, windows: Windows) -> NoisePlaces:
    """The noise keys of located windows, int64 [N]."""
    seed_N, start_N = plan.noise_place(windows)
    return NoisePlaces(seed_N, windows.epoch, start_N, windows.length)


def _tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array))
