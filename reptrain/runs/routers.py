"""The routers of a run, compared after training: one record per checkpoint and sparse layer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

from pydantic import Field, TypeAdapter

from reptrain.files import write_atomically
from reptrain.runs.ledger import Whole
from reptrain.runs.records import FrozenRecord, JsonLines


class RouterRecord(FrozenRecord):
    """The router of one sparse layer at one checkpoint, on the probe (fixed training windows)."""

    step: Whole
    """Steps completed by the checkpoint."""
    tokens: Whole
    """Tokens consumed by then, with repeats."""
    epoch: float
    """Epochs consumed by then."""
    final_step: Whole
    """Step of the last checkpoint, with which the others are compared."""
    probe_tokens: Whole
    """Tokens that the layer routed."""
    layer: str
    """Number of the layer; in an encoder-decoder, after the name of its stack."""
    agreement: Annotated[float, Field(ge=0, le=1)]
    """Share of the tokens with the same first expert as at the last checkpoint."""
    dead: Whole
    """Experts that no token selects."""
    knock_out_nats: list[float] | None = None
    """Cost of removing each expert of the layer, in nats per target token. Only at the last checkpoint."""

    @property
    def knock_out_mean_nats(self) -> float | None:
        """Mean cost over the experts."""
        cost = self.knock_out_nats
        return sum(cost) / len(cost) if cost else None

    @property
    def knock_out_max_nats(self) -> float | None:
        """Largest cost."""
        return max(self.knock_out_nats) if self.knock_out_nats else None

    @property
    def worst_expert(self) -> int | None:
        """The expert with the largest cost."""
        cost = self.knock_out_nats
        return cost.index(max(cost)) if cost else None


class RouterLog(JsonLines[RouterRecord]):
    """`routers.jsonl`. Every comparison replaces it, because the last checkpoint may be another one."""

    remedy = "Remove the file; `reptrain routers` writes it again."

    def __init__(self, path: Path) -> None:
        super().__init__(path, TypeAdapter(RouterRecord))

    def replace(self, records: Sequence[RouterRecord]) -> None:
        """Replace all records."""
        lines: Iterator[str] = (record.model_dump_json(exclude_none=True) + "\n" for record in records)
        write_atomically(self.path, lines)
