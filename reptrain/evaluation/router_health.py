"""The routers of a sparse run at its checkpoints: agreement with the last one, dead experts, knock-outs.

Shapes: B rows, T positions, K experts per token, N tokens of the probe, E experts, L sparse layers in
execution order.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from reptrain.checkpoint.step_folder import step_folders
from reptrain.errors import RunError
from reptrain.evaluation.evaluate import ScoredRun, open_run, with_evaluation
from reptrain.evaluation.sets import EvaluationSet, evaluation_sets
from reptrain.model.router import Router
from reptrain.runs.folder import RunFolder
from reptrain.runs.routers import RouterRecord

_BOARD = ".routers"
_CURVES = ("agreement", "dead", "knock_out_mean_nats", "knock_out_max_nats")


def router_health(
    path: Path,
    *,
    max_windows: int | None = None,
    knock_out: bool = True,
    stores: Mapping[str, Path] | None = None,
    device: str = "auto",
) -> list[RouterRecord]:
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
    folder = RunFolder.open(path)
    steps = sorted(step_folders(folder.checkpoints))
    last = open_run(path, stores=stores, device=device)
    layers = last.model.sparse_layers()
    if not layers:
        raise RunError(
            f"run {path}", got="a dense model", rule="must have sparse layers", remedy="Choose a sparse run."
        )
    probes = _probes(last, max_windows)
    expected = _Routes.of(last, probes)
    costs = _knock_out_nats(last, probes) if knock_out else [None] * len(layers)
    consumed = {record.step + 1: (record.tokens, record.epoch) for record in folder.metrics.records("train")}
    records = []
    for step in [*(step for step in steps if step < last.step), last.step]:
        is_last = step == last.step
        run = None if is_last else open_run(path, step=step, stores=stores, device=device)
        found = expected if run is None else _Routes.of(run, probes)
        tokens, epoch = consumed.get(step, (0, 0.0))
        records += [
            RouterRecord(
                step=step, tokens=tokens, epoch=epoch, final_step=last.step, knock_out_nats=cost, **figures
            )
            for figures, cost in zip(
                found.compared(expected), costs if is_last else [None] * len(layers), strict=True
            )
        ]
    return records


def record_routers(folder: RunFolder, records: Sequence[RouterRecord]) -> None:
    """Write the records to the run's `routers.jsonl` and its TensorBoard curves, replacing earlier ones.

    Raises:
        RunError: If the folder cannot be written.
    """
    try:
        folder.routers.replace(records)
        for old in folder.tensorboard.glob(f"*{_BOARD}"):
            old.unlink()
        board = SummaryWriter(str(folder.tensorboard), filename_suffix=_BOARD)
        for record in records:
            for name in _CURVES:
                value = getattr(record, name)
                if value is not None:
                    board.add_scalar(f"routers/{record.layer}/{name}", value, record.tokens)
        board.close()
    except OSError as error:
        raise RunError(
            f"run folder {folder.path}",
            got=error.strerror or error,
            rule="must be a folder that can be written",
            remedy="Pass --no-record, or free space.",
        ) from error


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

    def compared(self, last: _Routes) -> list[dict[str, Any]]:
        """Figures of each layer, by the name of their field in `RouterRecord`."""
        return [
            {
                "layer": name,
                "probe_tokens": len(first),
                "agreement": (first == final).double().mean().item(),
                "dead": int((count == 0).sum()),
            }
            for name, first, final, count in zip(
                self.names, self.first_LN, last.first_LN, self.count_LE, strict=True
            )
        ]


def _knock_out_nats(run: ScoredRun, probes: Sequence[EvaluationSet]) -> list[list[float] | None]:
    """The cost of each expert by layer; None if the layer has only one expert.

    A layer that runs several times loses the expert in each of its executions.
    """
    whole = _nats_per_token(run, probes)
    costs: dict[Router, list[float] | None] = {}
    for _, layer in run.model.sparse_layers():
        if layer.router in costs:
            continue
        experts = layer.config.num_experts
        costs[layer.router] = None
        if experts > 1:
            costs[layer.router] = [
                _without_nats(run, probes, layer.router, e) - whole for e in range(experts)
            ]
    return [costs[layer.router] for _, layer in run.model.sparse_layers()]


def _without_nats(run: ScoredRun, probes: Sequence[EvaluationSet], router: Router, expert: int) -> float:
    with without_expert(router, expert):
        return _nats_per_token(run, probes)


@contextmanager
def without_expert(router: Router, expert: int) -> Iterator[None]:
    """Set an expert's logit to -inf: its tokens go to the experts with the next largest scores."""
    router.removed = expert
    try:
        yield
    finally:
        router.removed = None


def _nats_per_token(run: ScoredRun, probes: Sequence[EvaluationSet]) -> float:
    scores = [probe.score(run.model, world=run.world) for probe in probes]
    return sum(score.nats for score in scores) / sum(score.loss_tokens for score in scores)
