"""The routers of a sparse model at its checkpoints: agreement with the last one, dead experts, knock-outs.

Shapes: B rows, T positions, K experts per token, N tokens of the probe, E experts, L sparse layers in
execution order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from reptrain.checkpoint.step_folder import step_folders
from reptrain.errors import RunError
from reptrain.evaluation.evaluate import ScoredRun, open_run, with_evaluation
from reptrain.evaluation.sets import EvaluationSet, evaluation_sets
from reptrain.model.router import Router
from reptrain.runs.folder import RunFolder


@dataclass(frozen=True)
class RouterHealth:
    """The router of one sparse layer at one checkpoint, on windows of the training subset."""

    run: str
    step: int
    layer: str
    agreement: float
    """Share of the tokens with the same first expert as at the last checkpoint."""
    dead: int
    """Experts that no token selects."""
    knock_out_mean_nats: float | None = None
    """Cost of removing the output of an expert, in nats per token: the mean over the experts of the layer.
    Only at the last checkpoint."""
    knock_out_max_nats: float | None = None
    """The largest cost among them."""
    worst_expert: int | None = None
    """The expert with the largest cost."""

    def row(self) -> dict[str, Any]:
        """The figures by name."""
        return asdict(self)


def router_health(
    path: Path,
    *,
    max_windows: int | None = None,
    knock_out: bool = True,
    stores: Mapping[str, Path] | None = None,
    device: str = "auto",
) -> list[RouterHealth]:
    """The routers of a run at each checkpoint, oldest first.

    Args:
        path: The run folder.
        max_windows: Windows of the probe per source; None: evaluate.max_windows of the run.
        knock_out: Whether to remove each expert of the last checkpoint in turn, with one pass over the probe
            per expert.
        stores: As in `open_run`.
        device: Device, as in train.device.

    Raises:
        RunError: If the model is dense, or its training subset cannot be read.
        ReptrainError: As `open_run` does.
    """
    steps = sorted(step_folders(RunFolder.open(path).checkpoints))
    last = open_run(path, stores=stores, device=device)
    layers = last.model.sparse_layers()
    if not layers:
        raise RunError(
            f"run {path}", got="a dense model", rule="must have sparse layers", remedy="Choose a sparse run."
        )
    probes = _probes(last, max_windows)
    expected = _Routes.of(last, probes)
    rows = []
    for step in (step for step in steps if step < last.step):
        found = _Routes.of(open_run(path, step=step, stores=stores, device=device), probes)
        rows += found.compared(expected, path, step)
    health = expected.compared(expected, path, last.step)
    return rows + (_knocked_out(last, probes, health) if knock_out else health)


def _probes(run: ScoredRun, max_windows: int | None) -> list[EvaluationSet]:
    probes = evaluation_sets(
        with_evaluation(run.config, max_windows=max_windows),
        run.sources,
        run.tokenizer,
        world=run.world,
        micro_batch_windows=run.rows,
        only=("probe",),
    )
    if not probes:
        raise RunError(
            f"run {run.path}",
            got="a store other than its training store",
            rule="must have its training text, since the routers are compared on it",
            remedy="Pass the store that the run was trained on.",
        )
    return probes


@dataclass(frozen=True)
class _Routes:
    """The experts that the routers select for the tokens of the probe."""

    names: Sequence[str]
    first_LN: Sequence[Tensor]
    """int64: first expert of each token, by layer."""
    count_LE: Sequence[Tensor]
    """int64: tokens that select each expert, by layer."""

    @classmethod
    def of(cls, run: ScoredRun, probes: Sequence[EvaluationSet]) -> _Routes:
        layers = run.model.sparse_layers()
        seen: list[tuple[Tensor, Tensor]] = []

        def note(router: nn.Module, given: tuple[Any, ...], result: Any) -> None:
            choice, is_token_BT = result[0], given[1]
            seen.append((choice.expert_BTK[..., 0][is_token_BT], choice.count_BE.sum(0)))

        hooks = [router.register_forward_hook(note) for router in {layer.router for _, layer in layers}]
        try:
            for probe in probes:
                probe.score(run.model, world=run.world)
        finally:
            for hook in hooks:
                hook.remove()
        # The layers run in order in each forward pass.
        by_layer = [seen[place :: len(layers)] for place in range(len(layers))]
        return cls(
            [name for name, _ in layers],
            [torch.cat([first for first, _ in parts]) for parts in by_layer],
            [torch.stack([count for _, count in parts]).sum(0) for parts in by_layer],
        )

    def compared(self, last: _Routes, path: Path, step: int) -> list[RouterHealth]:
        """One row for each layer."""
        return [
            RouterHealth(
                str(path),
                step,
                name,
                agreement=(first == final).double().mean().item(),
                dead=int((count == 0).sum()),
            )
            for name, first, final, count in zip(
                self.names, self.first_LN, last.first_LN, self.count_LE, strict=True
            )
        ]


def _knocked_out(
    run: ScoredRun, probes: Sequence[EvaluationSet], rows: Sequence[RouterHealth]
) -> list[RouterHealth]:
    """The rows with the cost of each expert. If a layer runs several times, the expert is removed in each."""
    whole = _nats_per_token(run, probes)
    costs: dict[Router, list[float]] = {}
    for _, layer in run.model.sparse_layers():
        if layer.router not in costs:
            costs[layer.router] = []
            for expert in range(layer.config.num_experts):
                with _without(layer.router, expert):
                    costs[layer.router].append(_nats_per_token(run, probes) - whole)
    found = []
    for row, (_, layer) in zip(rows, run.model.sparse_layers(), strict=True):
        cost_E = costs[layer.router]
        largest = max(cost_E)
        figures: dict[str, Any] = {
            "knock_out_mean_nats": sum(cost_E) / len(cost_E),
            "knock_out_max_nats": largest,
            "worst_expert": cost_E.index(largest),
        }
        found.append(RouterHealth(**row.row() | figures))
    return found


@contextmanager
def _without(router: nn.Module, expert: int) -> Iterator[None]:
    """Set an expert's gates to 0; its tokens are not routed to another one."""

    def drop(router: nn.Module, given: tuple[Any, ...], result: Any) -> Any:
        choice, losses = result
        gate_BTK = choice.gate_BTK.masked_fill(choice.expert_BTK == expert, 0)
        return choice._replace(gate_BTK=gate_BTK), losses

    hook = router.register_forward_hook(drop)
    try:
        yield
    finally:
        hook.remove()


def _nats_per_token(run: ScoredRun, probes: Sequence[EvaluationSet]) -> float:
    scores = [probe.score(run.model, world=run.world) for probe in probes]
    return sum(score.nats for score in scores) / sum(score.loss_tokens for score in scores)
