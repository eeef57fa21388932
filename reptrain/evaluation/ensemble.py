"""Ensembles: several models scored as one, by the mean of their probabilities.

Shapes: B rows, T positions, V ids.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from reptrain.errors import RunError
from reptrain.evaluation.evaluate import ScoredRun
from reptrain_kernels.ops.linear_cross_entropy import Loss, Targets, cross_entropy


class Ensemble(nn.Module):
    """Averages the members' probabilities of each token; its logits are the logarithm of the average.

    >>> class Fixed(nn.Module):
    ...     def __init__(self, *probabilities):
    ...         super().__init__()
    ...         self.logits = torch.tensor([[probabilities]]).log() + 3.0
    ...     def forward(self):
    ...         return self.logits
    >>> Ensemble([Fixed(0.5, 0.5), Fixed(0.9, 0.1)])().exp()
    tensor([[[0.7000, 0.3000]]])

    Args:
        members: Models with the same inputs and the same ids.
    """

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, *, targets: Targets | None = None, **inputs: Any) -> Tensor | Loss:
        """Logarithm of the mean probability, fp32 logits_BTV, or the loss of targets.

        Args:
            targets: A target for each position; None returns the logits.
            inputs: Keyword arguments of every member.
        """
        total_BTV: Tensor | None = None
        for member in self.members:
            log_BTV = member(**inputs).float().log_softmax(-1)
            total_BTV = log_BTV if total_BTV is None else torch.logaddexp(total_BTV, log_BTV)
        assert total_BTV is not None
        logits_BTV = total_BTV - math.log(len(self.members))
        return logits_BTV if targets is None else cross_entropy(logits_BTV, targets)


def ensemble_of(runs: Sequence[ScoredRun]) -> ScoredRun:
    """The ensemble of several runs, as a run that can be scored.

    The runs must have the same model family, examples and text. If all had the same training subset, the
    ensemble has a probe too.

    Raises:
        RunError: If their families, examples, held-out texts or ids differ.
    """
    first, *others = runs
    for other in others:
        for name, value in _SAME.items():
            if value(other) != value(first):
                raise RunError(
                    f"run {other.path}",
                    got=f"{name} {value(other)}",
                    rule=f"must have {name} {value(first)}, as {first.path}, to be averaged with it",
                    remedy="Leave it out.",
                )
    same_subsets = len({_subsets(run) for run in runs}) == 1
    return replace(
        first,
        path=Path(" + ".join(str(run.path) for run in runs)),
        step=max(run.step for run in runs),
        model=Ensemble([run.model for run in runs]).eval(),
        sources={
            name: (store, subset if same_subsets else None) for name, (store, subset) in first.sources.items()
        },
    )


_SAME: dict[str, Callable[[ScoredRun], Any]] = {
    "model.family": lambda run: run.config.model.family,
    "objective": lambda run: run.config.objective.model_dump(exclude={"noise"}),
    "data.window_tokens": lambda run: run.config.window_tokens,
    "data.document_mask": lambda run: run.config.data.document_mask,
    "a tokenizer with fingerprint": lambda run: run.tokenizer.fingerprint,
    "embedding rows": lambda run: run.model.embedding.weight.shape[0],
    "stores": lambda run: {name: store.fingerprint for name, (store, _) in run.sources.items()},
    "windows per forward pass": lambda run: run.rows,
}


def _subsets(run: ScoredRun) -> tuple[Any, ...]:
    return tuple(
        (name, None if subset is None else subset.fingerprint)
        for name, (_, subset) in sorted(run.sources.items())
    )
