"""Metrics of a run: typed records, one per line."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal, Self, overload

from pydantic import ConfigDict, Field, TypeAdapter, model_validator

from reptrain.runs.ledger import Whole
from reptrain.runs.records import FrozenRecord, JsonLines
from reptrain.runs.scores import SCORES, check_names


class RoutingRecord(FrozenRecord):
    """Routing statistics of one sparse layer in one step."""

    layer: str
    """Number of the layer; in an encoder-decoder, after the name of its stack."""
    balance: float
    """Load-balancing loss without its coefficient; 1 if all experts get equal loads."""
    z: float
    """Router z-loss without its coefficient."""
    dropped: float
    """Fraction of assignments dropped because the expert was full."""
    load: float
    """Assignments of the busiest expert, relative to a uniform load."""
    unused: Whole
    """Experts that received no token."""


class TrainRecord(FrozenRecord):
    """One optimizer step."""

    kind: Literal["train"] = "train"
    step: Whole
    """The step, from 0, as in the ledger."""
    tokens: Whole
    """Tokens consumed up to and including this step, with repeats."""
    input_tokens: Whole
    """Tokens given to the model without being predicted, up to and including this step: encoder inputs,
    prefixes with bidirectional attention, tokens that diffusion leaves unmasked."""
    target_tokens: Whole
    """Tokens predicted up to and including this step."""
    epoch: float
    """Epochs consumed up to and including this step."""
    loss_nats: float
    """Loss of the step's batch with dropout, in nats per target token; for diffusion, the ELBO per token."""
    lr: float
    """Learning rate of the step."""
    grad_norm: float
    """L2 norm of the gradient before clipping."""
    step_ms: float
    """Wall-clock time of the step, from the request for its batch to the updated weights."""
    tokens_per_s: float
    """Tokens per second of the step, over all devices (see `reptrain.runs.pace`)."""
    tokens_per_s_per_device: float
    """The same per device."""
    rank_ms: list[float | None] | None = None
    """Time of the forward passes of a step on each rank, the mean of the last 50 steps. Written every 50
    steps, with several ranks."""
    routing: list[RoutingRecord] | None = None
    """One record per sparse layer, in order of execution; None for a dense model."""


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
    """A fixed probe of training windows, or a held-out split; in a mixture followed by the source."""
    weights: Literal["own", "average"] = "own"
    """The run's weights, or their average."""
    nats: float
    """Nats per scored token; for diffusion, the ELBO per token of the windows."""

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
METRICS: TypeAdapter[TrainRecord | ValidRecord] = TypeAdapter(MetricsRecord)
"""Reads one line of the metrics."""


class MetricsLog(JsonLines[TrainRecord | ValidRecord]):
    """The metrics of a run: `metrics.jsonl`."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, METRICS)

    @overload
    def records(self, kind: None = None) -> Iterator[TrainRecord | ValidRecord]: ...
    @overload
    def records(self, kind: Literal["train"]) -> Iterator[TrainRecord]: ...
    @overload
    def records(self, kind: Literal["valid"]) -> Iterator[ValidRecord]: ...
    def records(self, kind: Literal["train", "valid"] | None = None) -> Iterator[TrainRecord | ValidRecord]:
        """All records, or those of one kind, in the order of the file.

        Raises:
            RunError: Naming the first invalid line.
        """
        return (record for record in super().records() if kind is None or record.kind == kind)

    def last_train(self, steps: int) -> list[TrainRecord]:
        """The records of the last applied steps, the newest last.

        Args:
            steps: Maximum number.
        """
        return list(deque(self.records("train"), maxlen=steps))
