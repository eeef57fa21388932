"""Untrained runs on a mixture of two sources, with the files that a correct engine writes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from reptrain.config import RunConfig
from reptrain.plan import open_stream
from reptrain.plan.digest import step_digest, window_digest
from reptrain.runs import LedgerRecord, RunFolder, RunPlan
from reptrain.runs.ledger import LedgerEvent
from reptrain.store import Store, open_store
from reptrain.tokenization import tokenize

WINDOW = 16


def make_stores(folder: Path) -> dict[str, Store]:
    """Stores of real and synthetic text with the same tokenizer."""
    made, tokenizer = {}, None
    for name, word in (("real", "tide"), ("synthetic", "loop")):
        source = folder / f"{name}.jsonl"
        texts = [f"Number {n} of the {word}s is {n * n}." for n in range(120)]
        source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        training = {} if tokenizer else {"vocab_size": 96, "num_sentinels": 4}
        tokenize([source], folder / name, tokenizer=tokenizer, **training)
        tokenizer = folder / name / "tokenizer.model"
        made[name] = open_store(folder / name)
    return made


def configured(
    stores: dict[str, Store], *, synthetic: str = "1epochs", seed: int = 0, real: dict[str, str] | None = None
) -> RunConfig:
    """The configuration; `real` has further settings of the first source."""
    sources = {
        "real": {
            "store": str(stores["real"].path), "unique_tokens": 500, "total_tokens": "3.5epochs",
            **(real or {}),
        },
        "synthetic": {
            "store": str(stores["synthetic"].path), "unique_tokens": 900, "total_tokens": synthetic,
            "cut": "shifted", "subset_seed": 3,
        },
    }  # fmt: skip
    data = {"sources": sources, "window_tokens": WINDOW}
    return RunConfig.model_validate({"data": data, "train": {"batch_windows": 8}, "seed": seed})


def trained(
    stores: dict[str, Store],
    path: Path,
    *,
    state: str = "done",
    steps: int | None = None,
    real: dict[str, str] | None = None,
) -> RunFolder:
    """The files that a correct engine writes, after some or all steps."""
    config = configured(stores, real=real)
    stream = open_stream(config, stores)
    plan = RunPlan.of(config, stores=stores, stream=stream)
    folder = RunFolder.create_or_open(path, config, plan, {})
    folder.ledger.append(LedgerEvent(event="start", step=0, files=folder.checksums()))
    num_steps = plan.step_plan().num_steps if steps is None else steps
    for step in range(num_steps):
        folder.ledger.append(consumed(folder, stream, step))
    folder.ledger.append(LedgerEvent(event="checkpoint", step=num_steps, state="0" * 16))
    folder.set_status(state)
    return folder


def consumed(folder: RunFolder, stream, step: int, *, spoil=lambda tokens, start: None) -> LedgerRecord:
    """The record of a step whose tokens `spoil` changes before they enter the model."""
    mixture = folder.plan.mixture_plan()
    first, count = folder.plan.step_plan().window_range(step)
    found = mixture.locate(np.arange(first, first + count))
    tokens, length = stream.tokens(found.start, found.length, WINDOW)
    spoil(tokens, found.start)
    shares = mixture.shares(first, count)
    return LedgerRecord(
        step=step,
        first_index=first,
        windows=count,
        tokens=int(length.sum()),
        epoch=shares[found.source[0]].epoch,
        applied=True,
        digest=step_digest(window_digest(tokens, found.start, length)),
        sources={
            source.name: share._asdict() for source, share in zip(folder.plan.sources, shares, strict=True)
        },
    )
