"""Records of pre-training on the main rank: ledger, metrics, TensorBoard, and progress."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from statistics import median
from types import TracebackType
from typing import Any, Literal, Self

import torch
from torch.utils.tensorboard import SummaryWriter

from reptrain.config.model import DecoderConfig, ModelConfig
from reptrain.evaluation.score import Score
from reptrain.model.attention_mask import attention_implementation
from reptrain.plan import MixturePlan
from reptrain.runs.folder import RunFolder
from reptrain.runs.ledger import LedgerRecord
from reptrain.runs.metrics import TrainRecord, ValidRecord
from reptrain.runs.pace import Pace, pace_text, tokens_per_s
from reptrain.runs.scores import SCORES, compute_scores
from reptrain.runs.spikes import WINDOW_STEPS, SpikeWatch
from reptrain.terminal import StepDisplay
from reptrain.training.batches import Batch
from reptrain.training.step import StepResult
from reptrain.training.throughput import Throughput
from reptrain_kernels.implementation import Implementation, choose_implementation

_CURVES = ("loss_nats", "lr", "grad_norm", "tokens_per_s_per_device", "input_tokens", "target_tokens")
_ROUTING_CURVES = ("balance", "z", "dropped", "load", "unused")


def print_line(text: str, *, aside: bool = False) -> None:
    """Print a line and flush it; to stderr if ``aside``, where stdout is for results."""
    stream = sys.stderr if aside else sys.stdout
    stream.write(text + "\n")
    stream.flush()


def stated_attention(model: ModelConfig, device: torch.device, num_positions: int) -> Implementation:
    """The attention implementation of a run; warns if it differs from that of the other kernels.

    Args:
        model: The model.
        device: The device of the run.
        num_positions: Positions of the longest window.
    """
    attention = attention_implementation(model, device, num_positions)
    others = choose_implementation(device)
    if attention != others and isinstance(model, DecoderConfig):
        reason = (
            f"the {others} attention kernel has no relative positions."
            if model.positions == "relative"
            else f"model.sliding_window {model.sliding_window} is shorter than the window's {num_positions}"
            f" positions, and the {others} attention kernel has no sliding window."
        )
        print_line(f"WARNING: {reason} Attention runs in torch with a mask, which is slower.", aside=True)
    return attention


def _leave_to_the_caller(args: threading.ExceptHookArgs) -> None:
    # An error in TensorBoard's thread, such as a full disk, is raised again by the next call to TensorBoard.
    if type(args.thread).__name__ != "_AsyncWriterThread":
        threading.__excepthook__(args)


class Recorder:
    """Writes the records of a run. Ledger and metrics are flushed line by line."""

    def __init__(
        self,
        folder: RunFolder,
        plan: MixturePlan,
        throughput: Throughput,
        *,
        num_steps: int,
        tokens_before: int,
        display: StepDisplay,
        say: Callable[[str], None] = print_line,
    ) -> None:
        self._folder = folder
        self._plan = plan
        self._names = [source.name for source in folder.plan.sources]
        self._throughput = throughput
        self._num_steps = num_steps
        self._say, self._display, self._pace = say, display, Pace()
        threading.excepthook = _leave_to_the_caller
        self._board = SummaryWriter(str(folder.tensorboard), purge_step=tokens_before + 1)
        self.tokens = tokens_before
        """Tokens consumed by applied steps."""
        recent = folder.metrics.last_train(WINDOW_STEPS)
        self._input_tokens = recent[-1].input_tokens if recent else 0
        self._target_tokens = recent[-1].target_tokens if recent else 0
        self._rank_ms: list[float | None] | None = None
        self._stragglers: list[int] = []
        self._last_step = 0
        self._spikes = SpikeWatch()
        for record in recent:
            self._spikes.add(loss_nats=record.loss_nats, grad_norm=record.grad_norm)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._board.close()

    def step(self, batch: Batch, result: StepResult, *, lr: float, seconds: float) -> None:
        """Record one attempt at a step: always in the ledger, in the metrics if it was applied."""
        step, tokens = batch.step, batch.tokens
        self._last_step = step
        self._folder.ledger.append(self._ledger_record(batch, result))
        if not result.applied:
            return
        self.tokens += tokens
        self._input_tokens += result.input_tokens
        self._target_tokens += result.target_tokens
        record = self._train_record(batch, result, lr=lr, seconds=seconds)
        self._rank_ms = None
        self._folder.metrics.append(record)
        epochs = self._epochs_of_sources(batch)
        self._add_curves(record, epochs)
        for spike in self._spikes.add(loss_nats=record.loss_nats, grad_norm=record.grad_norm):
            self._say(f"WARNING: step {step}: {spike}")
            self._folder.note("spike", spike, step=step)
        self._show(record, epochs, self._pace.add(tokens, seconds))

    def _ledger_record(self, batch: Batch, result: StepResult) -> LedgerRecord:
        return LedgerRecord(
            step=batch.step,
            first_index=batch.first_index,
            windows=batch.windows,
            tokens=batch.tokens,
            applied=result.applied,
            digest=f"{result.digest:016x}",
            inputs=f"{result.input_digest:016x}",
            targets=result.ledger_targets,
            optimizer_step=result.optimizer_step,
            grad_norm=result.grad_norm,
            slice=result.slice_hashes and tuple(f"{value:016x}" for value in result.slice_hashes),
            **self._shares(batch),
        )

    def _train_record(self, batch: Batch, result: StepResult, *, lr: float, seconds: float) -> TrainRecord:
        """The record of an applied step, after the token counters have been raised."""
        rate = tokens_per_s(batch.tokens, seconds)
        return TrainRecord(
            step=batch.step,
            tokens=self.tokens,
            input_tokens=self._input_tokens,
            target_tokens=self._target_tokens,
            epoch=(batch.first_index + batch.windows) / self._plan.windows_per_epoch,
            loss_nats=result.loss_nats,
            lr=lr,
            grad_norm=result.grad_norm,
            step_ms=1000 * seconds,
            tokens_per_s=rate,
            tokens_per_s_per_device=rate / self._throughput.world_size,
            rank_ms=self._rank_ms,
            routing=result.routing,
        )

    def _add_curves(self, record: TrainRecord, epochs: dict[str, float]) -> None:
        """Add a step to the curves in TensorBoard."""
        for name in _CURVES:
            self._board.add_scalar(f"train/{name}", getattr(record, name), self.tokens)
        for layer in record.routing or ():
            for name in _ROUTING_CURVES:
                self._board.add_scalar(f"routing/{layer.layer}/{name}", getattr(layer, name), self.tokens)
        for name, epoch in epochs.items():
            self._board.add_scalar(f"epoch/{name}", epoch, self.tokens)

    def rank_times(self, ms: list[float | None], stragglers: list[int]) -> None:
        """Add the times of the ranks to the next record, and report new stragglers.

        Args:
            ms: Time of the forward passes of a step on each rank; None if unknown.
            stragglers: Ranks that slow down the others.
        """
        self._rank_ms = ms
        for rank, value in enumerate(ms):
            if value is not None:
                self._board.add_scalar(f"rank_ms/{rank}", value, self.tokens)
        new = [rank for rank in stragglers if rank not in self._stragglers]
        self._stragglers = stragglers
        for rank in new:
            usual = median(value for other, value in enumerate(ms) if value is not None and other != rank)
            text = f"rank {rank} is slow: {ms[rank]:.0f} ms a step in its forward passes, others {usual:.0f}"
            self._say(f"WARNING: {text}")
            self._folder.note("straggler", text, step=self._last_step)

    def skipped(self, step: int, reason: str) -> None:
        """Report a step that was not applied."""
        self._say(f"WARNING: step {step} not applied: {reason}")
        self._folder.note("skipped", reason, step=step)

    def _shares(self, batch: Batch) -> dict[str, Any]:
        """The record's fields `epoch` and, in a mixture, `sources`."""
        if len(self._plan.plans) == 1:
            return {"epoch": batch.first_index // self._plan.plans[0].windows_per_epoch}
        shares = self._plan.shares(batch.first_index, batch.windows)
        first = self._plan.source_at(batch.first_index)
        sources = {name: share._asdict() for name, share in zip(self._names, shares, strict=True)}
        return {"epoch": shares[first].epoch, "sources": sources}

    def _epochs_of_sources(self, batch: Batch) -> dict[str, float]:
        """Epochs of each source of a mixture consumed with this step; empty for a single source."""
        if len(self._names) == 1:
            return {}
        epochs = self._plan.epochs_before(batch.first_index + batch.windows)
        return {name: float(epoch) for name, epoch in zip(self._names, epochs, strict=True)}

    def _show(self, record: TrainRecord, epochs: dict[str, float], rate: float) -> None:
        each = ", ".join(f"{name} {epoch:.2f}" for name, epoch in epochs.items())
        by_source = f" ({each})" if each else ""
        devices = self._throughput.world_size
        mfu = self._throughput.mfu(rate / devices)
        self._display.step(
            record.step + 1,
            f"epoch {record.epoch:.2f}{by_source}  loss {record.loss_nats:.4f} nats"
            f"  {pace_text(rate, devices)}",
            f"  lr {record.lr:.2e}" + (f"  MFU {mfu:.1%}" if mfu else ""),
        )

    def score(
        self,
        step: int,
        epoch: float,
        name: str,
        score: Score,
        weights: Literal["own", "average"] = "own",
    ) -> None:
        """Record the score of a set after ``step`` steps, with the run's own weights or their average."""
        record = ValidRecord(
            step=step,
            tokens=self.tokens,
            epoch=epoch,
            set=name,
            weights=weights,
            **compute_scores(score),
        )
        self._folder.metrics.append(record)
        name = name if weights == "own" else f"{name} ({weights})"
        for key, value in record.scores.items():
            if SCORES[key].better is not None:
                self._board.add_scalar(f"{name}/{key}", value, self.tokens)
        self._say(f"step {step}/{self._num_steps}  {name} {record.nats:.4f} nats/token")
