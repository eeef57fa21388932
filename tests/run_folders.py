"""Writes the run folders that a training process leaves, without training."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace

from reptrain.config import RunConfig
from reptrain.files import absolute
from reptrain.runs.folder import RunFolder, State
from reptrain.runs.metrics import TrainRecord, ValidRecord
from reptrain.runs.run_plan import RunPlan

STORE_FINGERPRINT = "5" * 32
LOSSES = {"probe": [8.0, 5.0, 2.0], "select": [8.0, 6.0, 7.0], "report": [8.1, 6.2, 7.4]}


class FakeStore:
    """What a study asks of a store."""

    fingerprint = STORE_FINGERPRINT
    num_tokens = 2**20

    def split(self, name: str) -> FakeStore:
        assert name == "train"
        return self


def run_plan(config: RunConfig) -> RunPlan:
    """The plan of a run on `FakeStore`."""
    stores, subsets = {}, []
    for name, source in config.sources.items():
        unique = source.unique_tokens or FakeStore.num_tokens
        fingerprint = "6" * 32 if source.store == "another" else STORE_FINGERPRINT
        stores[name] = SimpleNamespace(address=absolute(source.store), fingerprint=fingerprint)
        subsets.append(SimpleNamespace(unique_tokens=unique, fingerprint=f"{unique:032x}"))
    return RunPlan.of(config, stores=stores, stream=SimpleNamespace(subsets=subsets))


def write_run(
    config: RunConfig,
    path: Path,
    *,
    state: State = "done",
    reason: str | None = None,
    losses: Mapping[str, Sequence[float]] = LOSSES,
    exact: bool | None = None,
) -> RunFolder:
    """A run folder with evaluations at equal distances from the start to the end.

    Args:
        config: Of the run.
        path: The folder.
        state: Of the run.
        reason: Of the state.
        losses: Nats per token by set, one for each evaluation.
        exact: What `audit.json` says; None writes none.
    """
    folder = RunFolder.create_or_open(
        path, config, run_plan(config), {"python": "3.11.7", "cpu": "a <fast> one"}
    )
    unique = folder.plan.unique_tokens
    total = sum(
        round(source.total_tokens.epochs_over(planned.unique_tokens) * planned.unique_tokens)
        for source, planned in zip(config.sources.values(), folder.plan.sources, strict=True)
    )
    for name, nats in losses.items():
        for place, value in enumerate(nats):
            tokens = total * place // (len(nats) - 1)
            folder.metrics.append(
                ValidRecord(
                    step=place, tokens=tokens, epoch=tokens / unique, set=name, nats=value,
                    accuracy=0.1, scored_tokens=100, raw_accuracy=0.1, raw_tokens=100,
                    bits_per_byte=value / 2,
                )
            )  # fmt: skip
    for step, speed in enumerate([10.0, 1000.0, 1200.0]):
        folder.metrics.append(
            TrainRecord(
                step=step, tokens=total * (step + 1) // 3, epoch=1.0, loss_nats=5.0, lr=1e-3, grad_norm=1.0,
                input_tokens=0, target_tokens=total * (step + 1) // 3,
                step_ms=1.0, tokens_per_s=speed, tokens_per_s_per_device=speed,
            )
        )  # fmt: skip
    folder.set_status(state, reason, step=3)
    if exact is not None:
        times = total // unique
        (path / "audit.json").write_text(json.dumps({"exact": exact, "exposures": {str(times): unique}}))
    return folder
