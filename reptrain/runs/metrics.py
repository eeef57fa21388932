"""What a run measures: typed records, one a line."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, Self, overload

from pydantic import ConfigDict, Field, TypeAdapter, model_validator

from reptrain.runs.files import FrozenRecord, JsonLines
from reptrain.runs.ledger import Whole
from reptrain.runs.scores import SCORES, check_names


class RoutingRecord(FrozenRecord):
    """What the router of one sparse layer did in one step."""

    layer: str
    """Number of the layer; of an encoder-decoder behind the name of its stack."""
    balance: float
    """Balance loss before its coefficient; 1 where all experts get as much."""
    z: float
    """Router z-loss before its coefficient."""
    dropped: float
    """Share of the assignments that found their expert full."""
    load: float
    """Assignments of the busiest expert over an even share."""
    unused: Whole
    """Experts that no token was sent to."""


class TrainRecord(FrozenRecord):
    """One optimizer step."""

    kind: Literal["train"] = "train"
    step: Whole
    """The step, from 0, as in the ledger."""
    tokens: Whole
    """Tokens consumed with this step, repeats counted."""
    input_tokens: Whole
    """Tokens that the model has read without predicting them, with this step: what its encoder reads, what
    a decoder reads bidirectionally, what diffusion leaves unmasked."""
    target_tokens: Whole
    """Tokens that the model has predicted with this step."""
    epoch: float
    """Epochs consumed with this step."""
    loss_nats: float
    """Nats per token of the step's batch, with dropout: per target, or for diffusion the bound per token."""
    lr: float
    """Learning rate of the step."""
    grad_norm: float
    """L2 norm of the whole gradient before clipping."""
    step_ms: float
    """Wall-clock time of the step, from the request for its batch to the updated weights."""
    tokens_per_s: float
    """Tokens of the step over its time, all devices together (see `reptrain.runs.pace`)."""
    tokens_per_s_per_device: float
    """The same for one device."""
    routing: list[RoutingRecord] | None = None
    """Of each sparse layer, in the order in which they run; None for a dense model."""


class ValidRecord(FrozenRecord):
    """One evaluation of one set, without dropout: its place in the run, and every score in `SCORES`."""

    model_config = ConfigDict(extra="allow")
    # The other scores, by name.
    __pydantic_extra__: dict[str, int | float]

    kind: Literal["valid"] = "valid"
    step: Whole
    """Steps completed before the evaluation."""
    tokens: Whole
    """Tokens consumed before it."""
    epoch: float
    """Epochs consumed before it."""
    set: Annotated[str, Field(pattern=r"^(probe|select|report)(/[A-Za-z0-9_-]+)?$")]
    """probe (fixed training windows), select or report (held out); in a mixture followed by the source."""
    weights: Literal["own", "average"] = "own"
    """The run's own weights, or their average."""
    nats: float
    """Nats per scored token; for diffusion the bound per token of the windows."""

    @property
    def scores(self) -> dict[str, float]:
        """Every score of the record by name."""
        return {"nats": self.nats, **self.__pydantic_extra__}

    @model_validator(mode="after")
    def _check_scores(self) -> Self:
        check_names(self.scores)
        for name, value in self.scores.items():
            SCORES[name].check(value)
        return self


MetricsRecord = Annotated[TrainRecord | ValidRecord, Field(discriminator="kind")]


class MetricsLog(JsonLines[TrainRecord | ValidRecord]):
    """The metrics of a run: `metrics.jsonl`."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, TypeAdapter(MetricsRecord))

    @overload
    def records(self, kind: None = None) -> Iterator[TrainRecord | ValidRecord]: ...
    @overload
    def records(self, kind: Literal["train"]) -> Iterator[TrainRecord]: ...
    @overload
    def records(self, kind: Literal["valid"]) -> Iterator[ValidRecord]: ...
    def records(self, kind: Literal["train", "valid"] | None = None) -> Iterator[TrainRecord | ValidRecord]:
        """Every record, or those of one kind, in the order of the file.

        Raises:
            RunError: Naming the first line that is no record.
        """
        return (record for record in super().records() if kind is None or record.kind == kind)

    def last_train(self, steps: int) -> list[TrainRecord]:
        """The records of the last steps that were applied, the newest last.

        Args:
            steps: How many at most.
        """
        return list(deque(self.records("train"), maxlen=steps))
