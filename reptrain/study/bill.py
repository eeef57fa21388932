"""What a study will cost: runs, tokens, FLOPs, hours, money and disk, before anything starts."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from reptrain.config import RunConfig
from reptrain.config.json_digest import fingerprint
from reptrain.errors import ReptrainError, StudyError
from reptrain.plan.shared_steps import RunSteps
from reptrain.runs.folder import RunFolder
from reptrain.sizes import count_parameters, peak_flops
from reptrain.sizes.memory import saved_bytes
from reptrain.sizes.run_flops import RunFlops
from reptrain.store.manifest import MANIFEST, StoreManifest, read_manifest
from reptrain.store.remote import local_folder
from reptrain.study.done_table import DoneRows, load_done, to_run
from reptrain.study.graph import Graph, Node
from reptrain.study.grid import arms, hashed_settings
from reptrain.study.looks import most_added
from reptrain.study.node_state import is_done_by_records
from reptrain.study.paths import run_path
from reptrain.study.schema import StudyConfig
from reptrain.study.tuning import TunedGroup, tuned_arms


@dataclass(frozen=True)
class Hardware:
    """The hardware of the bill.

    Attributes:
        name: Name of one device, such as ``A100``; None: speed is taken from finished runs alone.
        mfu: Model FLOPs utilization to assume on a named device without finished runs.
        devices_per_run: Devices of one run.
        runs_at_once: Runs at once.
        usd_per_hour: Price of one device per hour; None: unknown.
    """

    name: str | None = None
    mfu: float = 0.35
    devices_per_run: int = 1
    runs_at_once: int = 1
    usd_per_hour: float | None = None


@dataclass(frozen=True)
class BillRow:
    """The cost of one training.

    Attributes:
        node: Its node.
        arm: Name of its arm, or of the group of arms that it tunes.
        tokens: Tokens that it trains itself, without the prefix that it shares.
        shared_tokens: Tokens of that prefix.
        flops: Training FLOPs of `tokens`, with masked copies and the forward passes of teachers.
        seconds: Estimated time of the training steps on its devices; None without any speed.
        checkpoint_bytes: Its checkpoints at its end.
        is_done: Whether it need not run.
    """

    node: Node
    arm: str
    tokens: int
    shared_tokens: int
    flops: float
    seconds: float | None
    checkpoint_bytes: int
    is_done: bool


@dataclass(frozen=True)
class Bill:
    """The cost of a study.

    Attributes:
        rows: One for each training.
        num_commands: Commands on runs that are still to be executed; their cost is not estimated.
        hardware: The hardware.
        speed: Where the speeds are from, in words.
        most_extensions: Further tuning runs, at most, if the best values lie at an edge.
        most_looks: Largest number of further runs, if first looks leave claims undecided.
        unknown_teachers: Remaining runs whose teacher's settings cannot be read; its FLOPs are not counted.
        offered: Runs of other studies that count as done if this study has the same ones.
        taken: Those that it has.
        hashed: The settings behind the hashes in the names of arms.
    """

    rows: tuple[BillRow, ...]
    num_commands: int
    hardware: Hardware
    speed: str
    most_extensions: int = 0
    most_looks: int = 0
    unknown_teachers: int = 0
    offered: int = 0
    taken: int = 0
    retention: Literal["all", "last", "none"] = "all"
    audit: Literal["windows", "inputs", "none"] = "windows"
    hashed: Mapping[str, str] = field(default_factory=dict)

    @property
    def left(self) -> list[BillRow]:
        """The trainings that are still to run."""
        return [row for row in self.rows if not row.is_done]

    @property
    def device_hours(self) -> float | None:
        """Device-hours of the remaining runs; None if a speed is missing."""
        seconds = [row.seconds for row in self.left]
        if None in seconds:
            return None
        return sum(one for one in seconds if one) * self.hardware.devices_per_run / 3600

    @property
    def hours(self) -> float | None:
        """Hours until the end, with `runs_at_once` runs."""
        hours = self.device_hours
        per_device = self.hardware.devices_per_run * self.hardware.runs_at_once
        return None if hours is None else hours / per_device

    @property
    def usd(self) -> float | None:
        """Price of the remaining runs; None if the price or a speed is missing."""
        hours, price = self.device_hours, self.hardware.usd_per_hour
        return None if hours is None or price is None else hours * price

    @property
    def disk_bytes(self) -> int:
        """Checkpoints of all runs at the end of the study, by its retention rule."""
        if self.retention == "none":
            return 0
        return sum(row.checkpoint_bytes for row in self.rows)


def bill_of(
    study: StudyConfig, graph: Graph, out: Path, hardware: Hardware, elsewhere: DoneRows | None = None
) -> Bill:
    """The cost of a study, given what is done in its folder and elsewhere.

    Args:
        study: The study.
        graph: Its nodes.
        out: Its folder, which need not exist.
        hardware: The hardware.
        elsewhere: Runs of other studies that count as done (`read_done`).

    Raises:
        StudyError: If the hardware is unknown.
        ConfigError: If a vocabulary size is unknown.
    """
    ready = [node for node in graph.nodes if not node.pending]
    here = [node.name for node in ready if is_done_by_records(node, out)]
    done = load_done(out) | (elsewhere or {})
    # Apart, as in a run of the study: tuning that is done elsewhere does not run again for arms that wait.
    pending = [node for node in graph.nodes if node.pending]
    left = {node.name for node in [*to_run(ready, here, done), *pending]}
    stores = _manifests(graph)
    costs = {node.name: _Cost(node.run, stores) for node in graph.trainings}
    speeds = _speeds(graph, out, costs)
    named = None if hardware.name is None else _named_flops(hardware)
    groups = tuned_arms(study, out)[1]
    tuning = {trial.name: f"tune.{group.name}" for group in groups for trial in group.trials}
    rows = [
        _row(
            node,
            tuning.get(node.name, node.arm),
            costs[node.name],
            speeds,
            named,
            study,
            is_done=node.name not in left,
        )
        for node in graph.trainings
    ]
    all_arms = arms(study)
    return Bill(
        rows=tuple(rows),
        num_commands=sum(node.config is None and node.name in left for node in graph.nodes),
        hardware=hardware,
        speed=_speed_text(speeds, hardware, named),
        most_extensions=_most_extensions(study, groups),
        most_looks=most_added(study, all_arms, out),
        unknown_teachers=sum(not costs[name].flops.is_complete for name in left if name in costs),
        offered=len(done),
        taken=len({node.fingerprint for node in graph.trainings} & done.keys()),
        retention=study.keep_checkpoints,
        audit=study.audit,
        hashed=hashed_settings(all_arms),
    )


def _most_extensions(study: StudyConfig, groups: Sequence[TunedGroup]) -> int:
    """Largest number of further tuning runs, if the best value of each setting is always at an edge."""
    extend = 0 if study.tune is None else study.tune.extend
    return sum(extend * len(group.keys) * group.num_seeds for group in groups)


class _Cost:
    """Tokens, FLOPs and parameters of a run."""

    def __init__(self, config: RunConfig, stores: Mapping[str, StoreManifest]) -> None:
        first = next(iter(config.sources.values()))
        vocab_size = stores[first.store].vocab_size if first.store in stores else config.model.vocab_size
        if vocab_size is None:
            raise StudyError(
                f"store {first.store}",
                got="no store",
                rule="must exist to know its vocabulary",
                remedy="Build it with `reptrain tokenize`, or set model.vocab_size.",
            )
        unique = {
            name: source.unique_tokens or _train_tokens(stores, source.store)
            for name, source in config.sources.items()
        }
        self.steps = RunSteps(config, unique)
        self.flops = RunFlops(config, vocab_size, self.steps)
        self.flops_per_token = self.flops.total / self.steps.plan.total_tokens
        self.parameters = count_parameters(config.model, vocab_size).total
        # Runs of one shape train at one speed, whatever their data and rates.
        self.shape = fingerprint(
            [
                config.model.model_dump(mode="json", exclude={"dropout"}),
                config.objective.model_dump(mode="json"),
                config.window_tokens,
                config.train.batch_windows,
                # Masked copies and a teacher take time.
                str(config.regularize.masked_inputs),
                str(config.distill),
            ]
        )

    def tokens_before(self, step: int) -> int:
        steps = self.steps.steps
        return self.steps.plan.tokens_before(min(step * steps.batch_windows, steps.total_windows))


def _train_tokens(stores: Mapping[str, StoreManifest], store: str) -> int:
    if store not in stores:
        raise StudyError(
            f"store {store}",
            got="no store, and data.unique_tokens null",
            rule="must exist to know its size",
            remedy="Build it with `reptrain tokenize`, or set data.unique_tokens.",
        )
    return stores[store].splits["train"].tokens


def _manifests(graph: Graph) -> dict[str, StoreManifest]:
    paths = {source.store for node in graph.trainings for source in node.run.sources.values()}
    return {
        path: read_manifest(local_folder(path)) for path in paths if (local_folder(path) / MANIFEST).exists()
    }


@dataclass(frozen=True)
class _Speeds:
    """Measured speeds of finished runs."""

    by_shape: Mapping[str, float]
    """Median tokens/s of the runs of a shape."""
    flops: float | None
    """Median FLOP/s of all runs."""
    num_runs: int


def _speeds(graph: Graph, out: Path, costs: Mapping[str, _Cost]) -> _Speeds:
    found: dict[str, list[float]] = {}
    flops: list[float] = []
    for node in graph.trainings:
        run = run_path(out, node.name)
        if not (run / "status.json").exists():
            continue
        try:
            folder = RunFolder.open(run)
            if folder.status().state != "done":
                continue
            speeds = [record.tokens_per_s for record in folder.metrics.records("train")]
        except ReptrainError:
            continue
        if speeds:
            median = statistics.median(speeds)
            found.setdefault(costs[node.name].shape, []).append(median)
            flops.append(median * costs[node.name].flops_per_token)
    by_shape = {shape: statistics.median(speeds) for shape, speeds in found.items()}
    return _Speeds(by_shape, statistics.median(flops) if flops else None, len(flops))


def _named_flops(hardware: Hardware) -> float:
    """FLOP/s of one device at the assumed utilization."""
    peak = peak_flops(str(hardware.name), "bf16") or peak_flops(str(hardware.name), "fp16")
    if peak is None:
        raise StudyError(
            "--hardware",
            got=repr(hardware.name),
            rule="must be a device with a published peak",
            remedy="Known devices: V100, A100, L40S, H100, H200, B200.",
        )
    return peak * hardware.mfu


def _row(
    node: Node,
    arm: str,
    cost: _Cost,
    speeds: _Speeds,
    named: float | None,
    study: StudyConfig,
    *,
    is_done: bool,
) -> BillRow:
    first = node.branch.step if node.branch else 0
    shared = cost.tokens_before(first)
    tokens = cost.steps.plan.total_tokens - shared
    flops = cost.flops.between(first, cost.steps.steps.num_steps)
    return BillRow(
        node=node,
        arm=arm,
        tokens=tokens,
        shared_tokens=shared,
        flops=flops,
        seconds=_seconds(tokens, flops, cost, speeds, named),
        checkpoint_bytes=_checkpoints(node.run, cost.parameters, study),
        is_done=is_done,
    )


def _seconds(tokens: int, flops: float, cost: _Cost, speeds: _Speeds, named: float | None) -> float | None:
    """By runs of the same shape, the named device, or the FLOP/s of other runs, in this order."""
    if named is not None:
        return flops / named
    if cost.shape in speeds.by_shape:
        return tokens / speeds.by_shape[cost.shape]
    return None if speeds.flops is None else flops / speeds.flops


def _checkpoints(config: RunConfig, parameters: int, study: StudyConfig) -> int:
    """Bytes of a run's checkpoints at its end."""
    saving = config.checkpoint
    number = 1
    if study.keep_checkpoints == "all":
        kept = round(1 / saving.keep_every_fraction) if saving.keep_every_fraction else 0
        cycles = config.schedule.cycles if saving.at_cycle_ends else 0
        number = saving.keep_last + kept + len(saving.at_steps) + len(saving.at_text) + cycles
    return number * saved_bytes(parameters, average=config.average is not None)


def _speed_text(speeds: _Speeds, hardware: Hardware, named: float | None) -> str:
    if named is not None:
        return f"{hardware.name} at {hardware.mfu:.0%} of its peak, assumed (--mfu)"
    if speeds.num_runs:
        return f"measured on {speeds.num_runs} finished runs"
    return "unknown, since no run is finished (set --hardware)"
