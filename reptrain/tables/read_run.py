"""One run folder as a row of the run table and rows of the evaluation table.

A run that cannot be read becomes a row with the status `damaged`: it never stops the table.
"""

from __future__ import annotations

import itertools
import os
import socket
import statistics
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from reptrain.config.fingerprint import flatten
from reptrain.config.schema import RunConfig
from reptrain.errors import ReptrainError, RunError
from reptrain.files import read_small
from reptrain.reading import decode, parse_object
from reptrain.runs.folder import RunFolder, RunStatus
from reptrain.runs.metrics import TrainRecord, ValidRecord
from reptrain.sizes import count_parameters, train_flops_per_window
from reptrain.store import local_folder
from reptrain.store.manifest import MANIFEST, read_manifest
from reptrain.tables.columns import SCORE_COLUMNS
from reptrain.tables.losses import at_step, best_evaluation, loss_measure

Row = dict[str, Any]
IDENTITY = ("study", "arm", "run", "seed", "cluster", "role", "numerics_version")
"""Columns that an evaluation copies from its run."""


@dataclass
class RunReading:
    """What a run folder holds for the tables.

    Attributes:
        row: Values by column of `RUN_COLUMNS`; columns without a value are absent.
        evaluations: The same for each evaluation, without the columns that identify the run.
        settings: Every setting of the run by dotted key; empty if its configuration cannot be read.
    """

    row: Row
    evaluations: list[Row] = field(default_factory=list)
    settings: Row = field(default_factory=dict)


def read_run(path: Path, *, scored_store: str | None = None, usd_per_hour: float | None = None) -> RunReading:
    """Read a run folder in any state, unfinished or damaged.

    Args:
        path: The folder.
        scored_store: In a mixture, fingerprint of the store whose losses the row gets; None: the first.
        usd_per_hour: Price of the machines of the run, for `cost_usd`.
    """
    reading = RunReading({"run": path.name, "cluster": path.name, "audit_verdict": "not audited"})
    try:
        for part in _parts(RunFolder.open(path), reading, scored_store, usd_per_hour):
            reading.row |= part
    except (ValueError, TypeError, ArithmeticError, LookupError, OSError) as error:
        # A damaged file must not cost the rows of the other runs, whatever is wrong with it.
        reason = (
            str(error) if isinstance(error, ReptrainError | OSError) else f"{type(error).__name__}: {error}"
        )
        reading.row |= {"status": "damaged", "reason": reason}
    return reading


def _parts(
    folder: RunFolder, reading: RunReading, scored_store: str | None, usd_per_hour: float | None
) -> Iterator[Row]:
    """The parts of the row, one by one, so that a damaged file loses only what depends on it."""
    status = folder.status()
    yield _state(status)
    plan, config = folder.plan, folder.config
    unique, planned = plan.unique_tokens, plan.mixture_plan().tokens_before(plan.total_windows)
    yield {
        "seed": plan.seed,
        "unique_tokens": unique,
        "planned_tokens": planned,
        "planned_epochs": planned / unique,
        "batch_tokens": plan.batch_windows * plan.window_tokens,
        "config_fingerprint": plan.config_fingerprint,
        "numerics_version": plan.numerics_version,
    }
    reading.settings = dict(flatten(config.model_dump(mode="json")))
    environment = folder.environment
    flops_per_token, sizes = _sizes(config, environment.get("vocab_size"))
    yield sizes | {
        "device": environment.get("gpu") or environment.get("device"),
        "num_devices": environment.get("world_size"),
    }
    records = [*folder.metrics.records()]
    steps = [r for r in records if isinstance(r, TrainRecord)]
    yield _progress(steps, unique, flops_per_token) | _routing(steps[-max(1, len(steps) // 5) :])
    evaluations = [record for record in records if isinstance(record, ValidRecord)]
    own = {"node": "train", "objective": config.objective.name}
    routing = _routing_between(steps, sorted({record.step for record in evaluations}))
    reading.evaluations = [
        evaluation_row(record) | own | routing.get(record.step, {}) for record in evaluations
    ]
    source = next((s for s in plan.sources if s.store_fingerprint == scored_store), plan.sources[0])
    suffix = f"/{source.name}" if plan.is_mixture else ""
    yield {
        "scored_source": source.name if plan.is_mixture else None,
        "measure": loss_measure(config, source.store_fingerprint),
        **_losses(evaluations, suffix),
    }
    seconds = _wall_seconds(folder)
    yield {
        "wall_seconds": seconds,
        "cost_usd": None if seconds is None or usd_per_hour is None else seconds / 3600 * usd_per_hour,
    }
    yield read_audit(folder.path / "audit.json", status)
    yield _knock_outs(folder, steps[-1].step + 1 if steps else 0)


def _state(status: RunStatus) -> Row:
    if status.state == "running" and not _is_alive(status):
        return {"status": "killed", "reason": f"process {status.pid} on {status.host} has ended"}
    return {"status": "not run" if status.state == "created" else status.state, "reason": status.reason}


def _is_alive(status: RunStatus) -> bool:
    """Whether the process of a status may still run; True on another machine."""
    if status.host != socket.gethostname() or status.pid <= 0:
        return True
    try:
        os.kill(status.pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        pass
    return True


def _sizes(config: RunConfig, recorded_vocabulary: Any) -> tuple[float | None, Row]:
    """Training FLOPs per token, and the sizes; unknown without a vocabulary."""
    row: Row = {"model_family": config.model.family, "objective": config.objective.name}
    vocabulary = recorded_vocabulary if isinstance(recorded_vocabulary, int) else _store_vocabulary(config)
    vocabulary = vocabulary or config.model.vocab_size
    if vocabulary is None:
        return None, row
    count = count_parameters(config.model, vocabulary)
    flops = train_flops_per_window(config.model, vocabulary, config.example_shape)
    return flops / config.window_tokens, row | {
        "parameters_total": count.total,
        "parameters_active": count.active,
        "parameters_nonembedding": count.non_embedding,
    }


def _store_vocabulary(config: RunConfig) -> int | None:
    for source in config.sources.values():
        if (local_folder(source.store) / MANIFEST).exists():
            return read_manifest(local_folder(source.store)).vocab_size
    return None


def _progress(steps: Sequence[TrainRecord], unique: int, flops_per_token: float | None) -> Row:
    consumed = steps[-1].tokens if steps else 0
    return {
        "consumed_tokens": consumed,
        "epochs": consumed / unique,
        "repeats": max(0.0, consumed / unique - 1),
        "train_flops": None if flops_per_token is None else flops_per_token * consumed,
        "steps": steps[-1].step + 1 if steps else 0,
        "tokens_per_second": statistics.median(r.tokens_per_s for r in steps) if steps else None,
        "train_seconds": sum(record.step_ms for record in steps) / 1000 if steps else None,
    }


def _routing(steps: Sequence[TrainRecord]) -> Row:
    """How unequally the experts of the worst layer were used in these steps."""
    layers: dict[str, list[tuple[float, int]]] = {}
    for record in steps:
        for layer in record.routing or []:
            layers.setdefault(layer.layer, []).append((layer.load, layer.unused))
    if not layers:
        return {}
    return {
        "expert_load": max(statistics.fmean(load for load, _ in seen) for seen in layers.values()),
        "experts_unused": max(min(unused for _, unused in seen) for seen in layers.values()),
    }


def _knock_outs(folder: RunFolder, steps: int) -> Row:
    """The cost of the experts at the end of the run, if `reptrain routers` has measured it since."""
    records = [record for record in folder.routers.records() if record.step == steps]
    costs = [cost for record in records for cost in record.knock_out_nats or ()]
    if not costs:
        return {}
    return {"knock_out_mean_nats": statistics.fmean(costs), "knock_out_max_nats": max(costs)}


def _routing_between(steps: Sequence[TrainRecord], evaluated: Sequence[int]) -> dict[int, Row]:
    """`_routing` of the steps between two evaluations, by the number of completed steps at the second one."""
    if not any(record.routing for record in steps):
        return {}
    places = [0, *(bisect_left(steps, end, key=lambda record: record.step) for end in evaluated)]
    return {
        end: _routing(steps[first:last])
        for end, (first, last) in zip(evaluated, itertools.pairwise(places), strict=True)
    }


def _losses(evaluations: Sequence[ValidRecord], suffix: str) -> Row:
    """Losses at the start, at the end, and where the selection split is lowest."""
    own = [record for record in evaluations if record.weights == "own"]
    of_set = {
        name: [record for record in own if record.set == f"{name}{suffix}"]
        for name in ("select", "report", "probe")
    }
    last = {name: records[-1] if records else None for name, records in of_set.items()}
    start, best = at_step(of_set["report"], 0), best_evaluation(of_set["select"])
    reported = at_step(of_set["report"], best.step) if best else None
    report, probe = last["report"], last["probe"]
    return {
        "loss_start_nats": start.nats if start else None,
        "loss_select_final_nats": last["select"].nats if last["select"] else None,
        "loss_select_best_nats": best.nats if best else None,
        "loss_report_final_nats": report.nats if report else None,
        "loss_report_best_nats": reported.nats if reported else None,
        "best_epoch": best.epoch if best else None,
        "bits_per_byte_report_final": report.scores["bits_per_byte"] if report else None,
        "bits_per_byte_report_best": reported.scores["bits_per_byte"] if reported else None,
        "loss_probe_final_nats": probe.nats if probe else None,
        "gap_final_nats": report.nats - probe.nats if report and probe else None,
        **_average(evaluations, report),
    }


def _average(evaluations: Sequence[ValidRecord], own: ValidRecord | None) -> Row:
    """The loss of the averaged weights where the run's own weights were last evaluated."""
    if own is None:
        return {}
    averaged = [r for r in evaluations if r.weights == "average" and r.set == own.set]
    found = at_step(averaged, own.step)
    if found is None:
        return {}
    return {"loss_report_average_nats": found.nats, "average_gain_nats": own.nats - found.nats}


def evaluation_row(record: ValidRecord) -> Row:
    """An evaluation as a row, without the columns that identify the run."""
    split, _, source = record.set.partition("/")
    return {
        "split": split,
        "source": source or None,
        "weights": record.weights,
        "step": record.step,
        "consumed_tokens": record.tokens,
        "epoch": record.epoch,
        **{SCORE_COLUMNS[name]: value for name, value in record.scores.items()},
    }


def _wall_seconds(folder: RunFolder) -> float | None:
    """Seconds from each start to its recorded end; None if there is no start, or an end is missing."""
    total, started = None, None
    for event in folder.events.records():
        if event.event in ("started", "resumed"):
            if started is not None:
                return None
            started = datetime.fromisoformat(event.time)
        elif event.event in ("done", "preempted", "failed") and started is not None:
            total = (total or 0.0) + (datetime.fromisoformat(event.time) - started).total_seconds()
            started = None
    return total if started is None else None


def read_audit(path: Path, status: RunStatus) -> Row:
    """The verdict of the audit in a run folder, unless the run has taken steps since."""
    if not path.exists():
        return {}
    try:
        audit = parse_object(decode(read_small(path)))
        exact, level = audit["exact"], audit.get("level")
        counted = audit.get("steps", status.step or 0) + audit.get("not_applied", {}).get("num_skipped", 0)
        messages = [problem["message"] for problem in audit.get("problems", [])]
        if not isinstance(exact, bool) or not isinstance(counted, int):
            raise ValueError("no audit")
    except (AttributeError, LookupError, OSError, TypeError, ValueError) as error:
        raise RunError(
            str(path),
            got=error,
            rule="must be the report of an audit",
            remedy="Remove the file and audit the run again.",
        ) from error
    # Audits before format 3 list it among the problems.
    if audit.get("cannot_say") or any(message.startswith("cannot be audited") for message in messages):
        verdict = "cannot say"
    elif status.step is not None and counted < status.step and exact:
        return {}
    elif exact:
        verdict = "exact"
    else:
        verdict = "as planned" if audit.get("as_planned") else "not exact"
    return {"audit_verdict": verdict, "audit_level": None if level is None else str(level)}


def identify(reading: RunReading, identity: Mapping[str, Any]) -> RunReading:
    """The same reading with other values of the columns that identify a run, in its evaluations too.

    Args:
        reading: A run.
        identity: Values by column: study, arm, run, seed, cluster, role.
    """
    row = {**reading.row, **identity}
    shared = {key: row.get(key) for key in IDENTITY}
    return RunReading(row, [shared | evaluation for evaluation in reading.evaluations], reading.settings)
