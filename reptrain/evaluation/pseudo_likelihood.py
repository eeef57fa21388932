"""Pseudo-log-likelihood of texts: each token is predicted from all the others.

Shapes: N tokens of a text, B rows of a forward pass, L columns of a row.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from reptrain.batch.micro_batch import MicroBatch
from reptrain.batch.objectives import build_objective
from reptrain.errors import RunError
from reptrain.evaluation.evaluate import ScoredRun
from reptrain_kernels.ops.linear_cross_entropy import Targets

OBJECTIVES = ("span_corruption", "masked_diffusion")
"""Objectives under which a single token can be hidden."""


class PseudoLikelihood:
    """Scores texts under a run's own objective, with one token hidden at a time.

    span_corruption replaces the token by a sentinel, masked_diffusion by the mask.

    Args:
        run: The run.

    Raises:
        RunError: If its objective cannot hide a single token.

    Source:
        Salazar et al., "Masked language model scoring", 2020.
    """

    def __init__(self, run: ScoredRun) -> None:
        name = run.config.objective.name
        if name not in OBJECTIVES:
            raise RunError(
                f"run {run.path}",
                got=f"objective.name {name}",
                rule=f"must have the objective {' or '.join(OBJECTIVES)} for a pseudo-log-likelihood",
                remedy="Leave --pseudo out: lm-eval then scores its log-likelihood.",
            )
        self._run = run
        self._objective = build_objective(run.config, run.tokenizer, noise_seed=0)

    @torch.no_grad()
    def nats(self, ids: Sequence[int], first: int = 0) -> float:
        """Sum of the nats of each token, given all others.

        Args:
            ids: The tokens of the text. Of one longer than the run's window, the last tokens that fit are
                used.
            first: First token to score; those before it are context.
        """
        ids = list(ids)
        cut = max(0, len(ids) - self._run.config.window_tokens)
        text_N = torch.tensor(ids[cut:], dtype=torch.int64)
        hidden = range(max(first - cut, 0), len(text_N))
        rows = self._run.rows
        total = 0.0
        for begin in range(hidden.start, hidden.stop, rows):
            total += self._row_nats(text_N, range(begin, min(begin + rows, hidden.stop)))
        return total

    def _row_nats(self, text_N: Tensor, hidden: range) -> float:
        """Nats of some tokens, each hidden in a row of its own; further rows are empty."""
        count, rows, length = len(hidden), self._run.rows, len(text_N)
        width = self._run.config.window_tokens
        tokens_BL = torch.zeros(rows, width, dtype=torch.int64)
        tokens_BL[:count, :length] = text_N
        is_noise_BL = torch.zeros(rows, width, dtype=torch.bool)
        is_noise_BL[torch.arange(count), torch.tensor(hidden)] = True
        row_B = torch.arange(rows)
        batch = MicroBatch(
            tokens_BL,
            torch.where(row_B < count, length, 0),
            torch.zeros(rows, dtype=torch.int64),
            row_B,
            {"is_noise_BL": is_noise_BL, "weight_B": torch.ones(rows)},
        )
        example = self._objective.example(batch.to(self._run.world.device))
        loss = self._run.model(**example.inputs, targets=Targets(example.targets_BT, wants_correct=False))
        return float((loss.nats.double() * example.is_raw_BT).sum())
