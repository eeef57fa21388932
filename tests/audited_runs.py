"""Runs that were never trained: files as a correct engine writes them, and ways to damage them."""

from __future__ import annotations

import numpy as np

from reptrain.config import RunConfig
from reptrain.plan import Stream, Subset
from reptrain.plan.digest import step_digest, window_digest
from reptrain.runs import LedgerRecord, RunFolder, RunPlan
from reptrain.runs.ledger import LedgerEvent

UNIQUE = 1000
WINDOW = 48


def trained(
    store, path, *, state="done", budget="2.5epochs", batch=8, environment=None, seed=0, **data
) -> RunFolder:
    """The files that a correct engine writes."""
    config = RunConfig.model_validate(
        {
            "data": {
                "store": str(store.path),
                "unique_tokens": UNIQUE,
                "window_tokens": WINDOW,
                **data,
            },
            "train": {"total_tokens": budget, "batch_windows": batch},
            "seed": seed,
        }
    )
    subset = Subset.open(store, unique_tokens=UNIQUE)
    plan = RunPlan.of(config, stores={"data": store}, stream=Stream([subset]))
    folder = RunFolder.create_or_open(path, config, plan, environment or {})
    folder.ledger.append(LedgerEvent(event="start", step=0, files=folder.checksums()))
    num_steps = plan.step_plan().num_steps
    for step in range(num_steps):
        folder.ledger.append(consumed(folder, subset, step))
    folder.ledger.append(LedgerEvent(event="checkpoint", step=num_steps, state="0" * 16))
    folder.set_status(state)
    return folder


def consumed(folder, subset, step, *, spoil=lambda tokens: None) -> LedgerRecord:
    """The record of a step whose tokens pass through `spoil` on their way to the model."""
    first, count = folder.plan.step_plan().window_range(step)
    plan = folder.plan.mixture_plan()
    found = plan.locate(np.arange(first, first + count))
    tokens, length = Stream([subset], plan.plans).tokens(found.start, found.length, WINDOW)
    spoil(tokens)
    return LedgerRecord(
        step=step,
        first_index=first,
        windows=count,
        tokens=int(length.sum()),
        epoch=first // folder.plan.sources[0].windows_per_epoch,
        applied=True,
        digest=step_digest(window_digest(tokens, found.start, length)),
    )


def rewrite(folder, change) -> None:
    """Replace the steps of the ledger by what `change` makes of them, in a chain without a gap."""
    start, *_, end = (line.record for line in folder.ledger.lines())
    records = change(list(folder.ledger.records()))
    folder.ledger.remove()
    for record in (start, *records, end):
        folder.ledger.append(record)


def replaced(records, place, **fields):
    return [*records[:place], records[place].model_copy(update=fields), *records[place + 1 :]]
