"""Progress of a fine-tuning, and warnings about unusual steps."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from reptrain.runs.events import Events
from reptrain.runs.pace import Pace, pace_text
from reptrain.runs.spikes import SpikeWatch
from reptrain.tasks.records import StepRecord
from reptrain.terminal import StepDisplay
from reptrain.training.recorder import print_line
from reptrain.training.resume import note_event


class TuningConsole:
    """Progress of one seed on standard error, and its `events.jsonl`.

    Args:
        folder: Folder of the seed.
        display: Shows the steps.
        devices: Number of devices.
        before: Records of completed steps.
    """

    def __init__(
        self, folder: Path, display: StepDisplay, *, devices: int, before: Iterable[StepRecord]
    ) -> None:
        self._events, self._display, self._devices = Events(folder / "events.jsonl"), display, devices
        self._pace, self._spikes = Pace(), SpikeWatch()
        for record in before:
            self._spikes.add(loss_nats=record.loss_nats, grad_norm=record.grad_norm)

    def step(self, record: StepRecord) -> None:
        """Show a step; warn if its loss or gradient norm is far above its history."""
        for spike in self._spikes.add(loss_nats=record.loss_nats, grad_norm=record.grad_norm):
            print_line(f"WARNING: step {record.step}: {spike}", aside=True)
            note_event(self._events, "spike", spike, record.step)
        rate = self._pace.add(
            round((record.tokens_per_s or 0) * record.step_ms / 1000), record.step_ms / 1000
        )
        self._display.step(
            record.step + 1,
            f"epoch {record.epoch:.2f}  loss {record.loss_nats:.4f} nats  {pace_text(rate, self._devices)}",
            f"  lr {record.lr:.2e}",
        )
