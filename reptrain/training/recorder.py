"""The main rank's records: ledger, typed metrics, TensorBoard, and a line on the console."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any, Literal, NamedTuple, Self

import torch
from torch.utils.tensorboard import SummaryWriter

from reptrain.config.model import ModelConfig
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
from reptrain.training.step import StepResult
from reptrain.training.throughput import Throughput
from reptrain_kernels.implementation import Implementation, choose_implementation

_CURVES = ("loss_nats", "lr", "grad_norm", "tokens_per_s_per_device", "input_tokens", "target_tokens")


def print_line(text: str, *, aside: bool = False) -> None:
    """A line that another process can follow at once; ``aside``, on stderr, where stdout is for results."""
    stream = sys.stderr if aside else sys.stdout
    stream.write(text + "\n")
    stream.flush()


def stated_attention(model: ModelConfig, device: torch.device, num_positions: int) -> Implementation:
    """Which implementation of attention a run uses, with a warning where it is not that of its other kernels.

    Args:
        model: The model.
        device: Where it runs.
        num_positions: Positions of its longest window.
    """
    attention = attention_implementation(model, device, num_positions)
    others = choose_implementation(device)
    if attention != others:
        print_line(
            f"WARNING: model.sliding_window {model.sliding_window} is shorter than the window's"
            f" {num_positions} positions, and the {others} attention kernel has no sliding window."
            " Attention runs in torch with a mask, which is slower.",
            aside=True,
        )
    return attention


def _leave_to_the_caller(args: threading.ExceptHookArgs) -> None:
    # What fails in TensorBoard's thread, on a full disk above all, is raised again by the next call to it.
    if type(args.thread).__name__ != "_AsyncWriterThread":
        threading.__excepthook__(args)


class StepPlace(NamedTuple):
    """Where a step lies in the run's data."""

    step: int
    first_index: int
    windows: int
    tokens: int


class Recorder:
    """Writes what a run did. Ledger and metrics are flushed line by line."""

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
        self._steps = folder.plan.step_plan()
        self._names = [source.name for source in folder.plan.sources]
        self._throughput = throughput
        self._num_steps = num_steps
        self._say, self._display, self._pace = say, display, Pace()
        threading.excepthook = _leave_to_the_caller
        self._board = SummaryWriter(str(folder.tensorboard), purge_step=tokens_before + 1)
        self.tokens = tokens_before
        """Tokens consumed by steps that were applied."""
        recent = folder.metrics.last_train(WINDOW_STEPS)
        self._input_tokens = recent[-1].input_tokens if recent else 0
        self._target_tokens = recent[-1].target_tokens if recent else 0
        self._spikes = SpikeWatch()
        for record in recent:
            self._spikes.add(loss_nats=record.loss_nats, grad_norm=record.grad_norm)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._board.close()

    def step(self, place: StepPlace, result: StepResult, *, lr: float, seconds: float) -> None:
        """Record one attempt at a step: its place in the data, whether it was applied, and how it went."""
        step, tokens = place.step, place.tokens
        self._folder.ledger.append(
            LedgerRecord(
                step=step,
                first_index=place.first_index,
                windows=place.windows,
                tokens=tokens,
                applied=result.applied,
                digest=f"{result.digest:016x}",
                **self._shares(place),
            )
        )
        if not result.applied:
            return
        self.tokens += tokens
        self._input_tokens += result.input_tokens
        self._target_tokens += result.target_tokens
        rate = tokens_per_s(tokens, seconds)
        record = TrainRecord(
            step=step,
            tokens=self.tokens,
            input_tokens=self._input_tokens,
            target_tokens=self._target_tokens,
            epoch=(place.first_index + place.windows) / self._plan.windows_per_epoch,
            loss_nats=result.loss_nats,
            lr=lr,
            grad_norm=result.grad_norm,
            step_ms=1000 * seconds,
            tokens_per_s=rate,
            tokens_per_s_per_device=rate / self._throughput.world_size,
            routing=result.routing,
        )
        self._folder.metrics.append(record)
        for name in _CURVES:
            self._board.add_scalar(f"train/{name}", getattr(record, name), self.tokens)
        for layer in result.routing or ():
            for name in ("balance", "z", "dropped", "load", "unused"):
                self._board.add_scalar(f"routing/{layer.layer}/{name}", getattr(layer, name), self.tokens)
        for name, epoch in self._epochs_of_sources(record.step).items():
            self._board.add_scalar(f"epoch/{name}", epoch, self.tokens)
        for found in self._spikes.add(loss_nats=record.loss_nats, grad_norm=record.grad_norm):
            self._say(f"WARNING: step {step}: {found}")
            self._folder.note("spike", found, step=step)
        self._show(record, self._pace.add(tokens, seconds))

    def skipped(self, step: int, found: str) -> None:
        """Tell of a step that was not applied."""
        self._say(f"WARNING: step {step} not applied: {found}")
        self._folder.note("skipped", found, step=step)

    def _shares(self, place: StepPlace) -> dict[str, Any]:
        """The record's fields `epoch` and, in a mixture, `sources`."""
        shares = self._plan.shares(place.first_index, place.windows)
        first = self._plan.source_at(place.first_index)
        if len(shares) == 1:
            return {"epoch": shares[0].epoch}
        sources = {name: share._asdict() for name, share in zip(self._names, shares, strict=True)}
        return {"epoch": shares[first].epoch, "sources": sources}

    def _epochs_of_sources(self, step: int) -> dict[str, float]:
        """Epochs of each source of a mixture consumed with this step."""
        if len(self._names) == 1:
            return {}
        first, windows = self._steps.window_range(step)
        epochs = self._plan.epochs_before(first + windows)
        return {name: float(epoch) for name, epoch in zip(self._names, epochs, strict=True)}

    def _show(self, record: TrainRecord, rate: float) -> None:
        epochs = [f"{name} {epoch:.2f}" for name, epoch in self._epochs_of_sources(record.step).items()]
        by_source = f" ({', '.join(epochs)})" if epochs else ""
        devices = self._throughput.world_size
        mfu = self._throughput.mfu(rate / devices)
        self._display.step(
            record.step + 1,
            f"epoch {record.epoch:.2f}{by_source}  loss {record.loss_nats:.4f} nats"
            f"  {pace_text(rate, devices)}",
            f"  lr {record.lr:.2e}" + (f"  MFU {mfu:.1%}" if mfu else ""),
        )

    def sync(self) -> None:
        """Force the records to the disk, so that no checkpoint is ahead of them."""
        self._folder.ledger.sync()
        self._folder.metrics.sync()

    def score(
        self,
        step: int,
        epoch: float,
        name: str,
        score: Score,
        weights: Literal["own", "average"] = "own",
    ) -> None:
        """Record the score of a set after ``step`` steps, by the run's own weights or by their average."""
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
