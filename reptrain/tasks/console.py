"""Records and progress of a fine-tuning, and warnings about unusual steps."""

from __future__ import annotations

from pathlib import Path

from reptrain.runs.events import Events
from reptrain.runs.pace import Pace, pace_text, tokens_per_s
from reptrain.runs.spikes import SpikeWatch
from reptrain.tasks.records import StepRecord, task_metrics
from reptrain.terminal import StepDisplay
from reptrain.training.batches import Batch
from reptrain.training.recorder import print_line
from reptrain.training.resume import note_event
from reptrain.training.step import StepResult


class TuningRecorder:
    """Writes the steps of one seed to its `metrics.jsonl` and `events.jsonl`, and shows them.

    Args:
        folder: Folder of the seed.
        display: Shows the steps.
        devices: Number of devices.
        examples: Number of training examples.
    """

    def __init__(self, folder: Path, display: StepDisplay, *, devices: int, examples: int) -> None:
        self._metrics, self._events = task_metrics(folder), Events(folder / "events.jsonl")
        self._display, self._devices, self._examples = display, devices, examples
        self._pace, self._spikes = Pace(), SpikeWatch()
        for record in self._metrics.records():
            if isinstance(record, StepRecord):
                self._spikes.add(loss_nats=record.loss_nats, grad_norm=record.grad_norm)

    def step(self, batch: Batch, result: StepResult, *, lr: float, seconds: float) -> None:
        """Record and show a step if it was applied; warn if its loss or gradient is unusually large."""
        if not result.applied:
            return
        tokens = result.input_tokens + result.target_tokens
        record = StepRecord(
            step=batch.step,
            tokens_per_s=tokens_per_s(tokens, seconds),
            epoch=(batch.first_index + batch.windows) / self._examples,
            examples=batch.windows,
            target_tokens=batch.loss_tokens,
            loss_nats=result.loss_nats,
            lr=lr,
            grad_norm=result.grad_norm,
            step_ms=1000 * seconds,
            inputs=f"{result.input_digest:016x}",
        )
        self._metrics.append(record)
        for spike in self._spikes.add(loss_nats=record.loss_nats, grad_norm=record.grad_norm):
            self._warn("spike", f"step {record.step}: {spike}", spike, record.step)
        self._display.step(
            record.step + 1,
            f"epoch {record.epoch:.2f}  loss {record.loss_nats:.4f} nats"
            f"  {pace_text(self._pace.add(tokens, seconds), self._devices)}",
            f"  lr {record.lr:.2e}",
        )

    def skipped(self, step: int, reason: str) -> None:
        """Report a step that was not applied."""
        self._warn("skipped", f"step {step} not applied: {reason}", reason, step)

    def _warn(self, event: str, text: str, detail: str, step: int) -> None:
        print_line(f"WARNING: {text}", aside=True)
        note_event(self._events, event, detail, step)
