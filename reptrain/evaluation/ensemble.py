"""Ensembles: several models scored as one, by the weighted mean of their probabilities.

Shapes: B rows, T positions, V ids, K members, N scored tokens.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from reptrain.checkpoint.step_folder import step_folders
from reptrain.errors import RunError
from reptrain.evaluation.evaluate import ScoredRun, with_evaluation
from reptrain.evaluation.sets import evaluation_sets
from reptrain.plan.cycles import cycle_ends
from reptrain.runs.folder import RunFolder
from reptrain_kernels.ops.linear_cross_entropy import Loss, Targets, cross_entropy

_MAX_UPDATES, _SMALLEST_GAIN_NATS = 10_000, 1e-9


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
    >>> Ensemble([Fixed(0.5, 0.5), Fixed(0.9, 0.1)], [0.75, 0.25])().exp()
    tensor([[[0.6000, 0.4000]]])

    Args:
        members: Models with the same inputs and the same ids.
        weights: Weight of each member, positive, with sum 1; None: equal weights.
    """

    def __init__(self, members: Sequence[nn.Module], weights: Sequence[float] | None = None) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.weights = [1 / len(members)] * len(members) if weights is None else [*weights]

    def forward(self, *, targets: Targets | None = None, **inputs: Any) -> Tensor | Loss:
        """Logarithm of the mean probability, fp32 logits_BTV, or the loss of targets.

        Args:
            targets: A target for each position; None returns the logits.
            inputs: Keyword arguments of every member.
        """
        total_BTV: Tensor | None = None
        for member, weight in zip(self.members, self.weights, strict=True):
            log_BTV = member(**inputs).float().log_softmax(-1) + math.log(weight)
            total_BTV = log_BTV if total_BTV is None else torch.logaddexp(total_BTV, log_BTV)
        assert total_BTV is not None
        return total_BTV if targets is None else cross_entropy(total_BTV, targets)


def ensemble_of(runs: Sequence[ScoredRun], weights: Sequence[float] | None = None) -> ScoredRun:
    """The ensemble of several runs, as a run that can be scored.

    The runs must have the same model family, examples and text. If all had the same training subset, the
    ensemble has a probe too.

    Args:
        runs: The members. Checkpoints of one run count as runs.
        weights: Weight of each member, with sum 1; None: equal weights. A member with weight 0 is left out.

    Raises:
        RunError: If their families, examples, held-out texts or ids differ.
    """
    _check_same(runs)
    given = [1 / len(runs)] * len(runs) if weights is None else weights
    members = [(run, weight) for run, weight in zip(runs, given, strict=True) if weight > 0]
    first = runs[0]
    same_subsets = len({_subsets(run) for run in runs}) == 1
    return replace(
        first,
        path=Path(" + ".join(member_names(runs))),
        step=max(run.step for run in runs),
        model=Ensemble([run.model for run, _ in members], [weight for _, weight in members]).eval(),
        sources={
            name: (store, subset if same_subsets else None) for name, (store, subset) in first.sources.items()
        },
    )


def member_names(runs: Sequence[ScoredRun]) -> list[str]:
    """Path of each run, or of its checkpoint if several are from one run."""
    paths = [str(run.path) for run in runs]
    if len({*paths}) == len(paths):
        return paths
    return [f"{run.path}/checkpoints/step-{run.step}" for run in runs]


def snapshot_steps(path: Path) -> list[int]:
    """Steps of the checkpoints at the ends of a run's cycles, oldest first.

    Raises:
        RunError: If its learning rate is not cyclic, or a checkpoint is missing.
    """
    folder = RunFolder.open(path)
    saved = step_folders(folder.checkpoints)
    ends = cycle_ends(folder.config.schedule, folder.plan.mixture_plan(), folder.plan.step_plan())
    ends = [step for step in ends if step <= max(saved, default=0)]
    missing = [step for step in ends if step not in saved]
    if not ends or missing:
        got = f"no checkpoint of step {', '.join(map(str, missing))}" if missing else "no end of a cycle"
        raise RunError(
            f"run {path}",
            got=got,
            rule="must have a checkpoint at the end of each cycle of a cyclic learning rate",
            remedy="Train with schedule.name=cyclic and checkpoint.at_cycle_ends=true.",
        )
    return ends


@torch.no_grad()
def learned_weights(runs: Sequence[ScoredRun], *, max_windows: int | None = None) -> list[float]:
    """Weights of the members that maximize the likelihood of the `select` split under the first run's
    objective.

    Args:
        runs: The members.
        max_windows: As evaluate.max_windows; None: the first run's value.

    Raises:
        RunError: As `ensemble_of` does.
    """
    _check_same(runs)
    first = runs[0]
    sets = evaluation_sets(
        with_evaluation(first.config, max_windows=max_windows),
        first.sources,
        first.tokenizer,
        world=first.world,
        micro_batch_windows=first.rows,
        only=("select",),
    )
    nats_KN: list[list[Tensor]] = [[] for _ in runs]
    weights_N: list[Tensor] = []
    for one in sets:
        for micro_batch in one.micro_batches:
            example = one.objective.example(micro_batch.to(first.world.device))
            asked = Targets(example.targets_BT, wants_correct=False)
            for run, parts in zip(runs, nats_KN, strict=True):
                loss = run.model(**example.inputs, targets=asked)
                parts.append(loss.nats[example.is_scored_BT])
            weights_N.append(example.weighted(torch.ones_like(loss.nats))[example.is_scored_BT])
    nats = torch.stack([torch.cat(parts) for parts in nats_KN])
    return fit_weights(-nats, torch.cat(weights_N))


def fit_weights(log_KN: Tensor, weight_N: Tensor) -> list[float]:
    """Mixture weights that maximize the weighted log-likelihood, by expectation maximization.

    The problem is convex, and each update raises the likelihood.

    >>> fit_weights(torch.tensor([[0.9, 0.9, 0.1], [0.1, 0.1, 0.9]]).log(), torch.ones(3))
    [0.7083, 0.2917]

    Args:
        log_KN: Log-probability that each member gives to each token.
        weight_N: Weight of each token.

    Returns:
        K weights with sum 1, rounded to 4 digits; those below 0.0001 are 0.

    Source:
        Dempster et al., "Maximum likelihood from incomplete data via the EM algorithm", 1977.
    """
    log_KN, weight_N = log_KN.double(), weight_N.double() / weight_N.double().sum()
    share_K = torch.full((len(log_KN),), 1 / len(log_KN), dtype=torch.float64, device=log_KN.device)
    last = -math.inf
    for _ in range(_MAX_UPDATES):
        joint_KN = log_KN + share_K.log()[:, None]
        total_N = joint_KN.logsumexp(0)
        mean = float(weight_N @ total_N)
        if mean - last < _SMALLEST_GAIN_NATS:
            break
        last, share_K = mean, (joint_KN - total_N).exp() @ weight_N
    rounded = [round(share, 4) for share in share_K.tolist()]
    # The largest weight takes the rounding, so that the sum is 1.
    largest = rounded.index(max(rounded))
    rounded[largest] = round(1 - sum(rounded[:largest] + rounded[largest + 1 :]), 4)
    return rounded


def _check_same(runs: Sequence[ScoredRun]) -> None:
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
