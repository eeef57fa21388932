"""Metrics of a run sent to an experiment tracker: adapters over `metrics.jsonl`.

They send figures and the settings that the figures depend on. Paths, addresses, the machine, the user, the
command line, source code and console output are not sent.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

from reptrain.config import config_fingerprint
from reptrain.config.fingerprint import flatten
from reptrain.config.path_settings import is_path
from reptrain.errors import ConfigError, ReptrainError, shorten
from reptrain.runs.folder import RunFolder
from reptrain.runs.metrics import METRICS, TrainRecord, ValidRecord
from reptrain.runs.scores import SCORES

TrackerName = Literal["wandb", "mlflow", "tensorboard"]
_CURVES = (
    "loss_nats", "lr", "grad_norm", "step_ms", "tokens_per_s", "tokens_per_s_per_device", "epoch", "tokens",
)  # fmt: skip
_POLL_S = 5.0
_MLFLOW_BATCH = 900


class TrackedPoint(NamedTuple):
    """Figures of one record."""

    step: int
    """Completed steps."""
    values: dict[str, float]


def points(records: Iterator[TrainRecord | ValidRecord]) -> Iterator[TrackedPoint]:
    """The figures of metrics records, under the names of the run's TensorBoard curves."""
    for record in records:
        if isinstance(record, TrainRecord):
            values = {f"train/{name}": float(getattr(record, name)) for name in _CURVES}
            for layer in record.routing or ():
                for name in ("balance", "z", "dropped", "load", "unused"):
                    values[f"routing/{layer.layer}/{name}"] = float(getattr(layer, name))
            yield TrackedPoint(record.step + 1, values)
        else:
            name = record.set if record.weights == "own" else f"{record.set} ({record.weights})"
            scores = {key: value for key, value in record.scores.items() if SCORES[key].better is not None}
            yield TrackedPoint(record.step, {f"{name}/{key}": float(value) for key, value in scores.items()})


def tracked_settings(folder: RunFolder, *, paths: bool = False) -> dict[str, Any]:
    """Settings of a run by dotted key.

    Args:
        folder: The run.
        paths: Include paths and addresses.
    """
    settings = dict(flatten(folder.config.model_dump(mode="json")))
    if not paths:
        settings = {key: value for key, value in settings.items() if not is_path(key, value)}
    return settings | {"fingerprint": config_fingerprint(folder.config)}


class Tracker(ABC):
    """Sends the figures of one run."""

    @abstractmethod
    def log(self, point: TrackedPoint) -> None:
        """Send figures."""

    @abstractmethod
    def finish(self) -> None:
        """Send what is waiting, and end."""


class _Wandb(Tracker):
    def __init__(self, name: str, run_id: str, project: str, settings: dict[str, Any], offline: bool) -> None:
        wandb = _module("wandb")
        quiet = wandb.Settings(
            console="off",
            disable_code=True,
            disable_git=True,
            save_code=False,
            host="",
            program="",
            program_relpath="",
            root_dir=os.environ.get("WANDB_DIR", "."),
            x_disable_meta=True,
            x_disable_machine_info=True,
            x_disable_stats=True,
        )
        self._run = wandb.init(
            project=project,
            name=name,
            id=run_id,
            config=settings,
            resume=None if offline else "allow",
            mode="offline" if offline else "online",
            settings=quiet,
        )

    def log(self, point: TrackedPoint) -> None:
        self._run.log(point.values, step=point.step)

    def finish(self) -> None:
        self._run.finish()
        # Ends its service, which writes the last records.
        _module("wandb").teardown()


class _Mlflow(Tracker):
    def __init__(self, name: str, run_id: str, project: str, settings: dict[str, Any]) -> None:
        self._entities = _module("mlflow.entities")
        self._client = _module("mlflow").MlflowClient()
        known = self._client.get_experiment_by_name(project)
        experiment = known.experiment_id if known else self._client.create_experiment(project)
        found = self._client.search_runs([experiment], f"tags.reptrain_id = '{run_id}'")
        if found:
            self._run, self._sent = found[0].info.run_id, int(found[0].data.tags.get("reptrain_step", "-1"))
        else:
            made = self._client.create_run(experiment, run_name=name, tags={"reptrain_id": run_id})
            self._run, self._sent = made.info.run_id, -1
            params = [self._entities.Param(key, str(value)[:500]) for key, value in settings.items()]
            for first in range(0, len(params), 100):
                self._client.log_batch(self._run, params=params[first : first + 100])
        self._waiting: list[Any] = []

    def log(self, point: TrackedPoint) -> None:
        if point.step <= self._sent:
            return
        # A second call resumes after the last step that was sent, so a step is sent whole.
        if len(self._waiting) >= _MLFLOW_BATCH and point.step > self._waiting[-1].step:
            self._send()
        now = int(1000 * time.time())
        self._waiting += [
            self._entities.Metric(_mlflow_name(name), value, now, point.step)
            for name, value in point.values.items()
        ]

    def _send(self) -> None:
        for first in range(0, len(self._waiting), _MLFLOW_BATCH):
            self._client.log_batch(self._run, metrics=self._waiting[first : first + _MLFLOW_BATCH])
        if self._waiting:
            self._client.set_tag(self._run, "reptrain_step", str(self._waiting[-1].step))
        self._waiting = []

    def finish(self) -> None:
        self._send()
        self._client.set_terminated(self._run)


def _mlflow_name(name: str) -> str:
    """A name without characters that MLflow refuses."""
    return name.replace("(", "").replace(")", "")


def _module(name: str) -> Any:
    import importlib

    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise ConfigError(
            f"--to {package}",
            got="no such package",
            rule=f"must have the package {package} installed",
            remedy=f"pip install 'reptrain[{package}]'.",
        ) from error


@contextmanager
def _explained(to: TrackerName) -> Iterator[None]:
    """Turn an exception of a tracker's package into one error, without passwords in addresses."""
    try:
        yield
    except (ReptrainError, OSError):
        raise
    except Exception as error:
        said = re.sub(r"://[^/?#\s]*@", "://", " ".join(str(error).split()))
        raise ConfigError(
            f"--to {to}",
            got=shorten(f"{type(error).__name__}: {said}", 300),
            rule="must accept the records of the run",
            remedy="Check the tracker's address, your key and --project. The same command continues the run.",
        ) from error


def track(
    run: Path,
    to: TrackerName,
    *,
    name: str | None = None,
    project: str = "reptrain",
    offline: bool = False,
    follow: bool = False,
    paths: bool = False,
) -> int:
    """Send the metrics of a run; returns the number of records.

    A second call sends the same run: Weights & Biases and MLflow continue it.

    Args:
        run: The run folder.
        to: wandb or mlflow.
        name: Name of the run; None: that of its folder.
        project: Project of wandb, experiment of MLflow.
        offline: Write to a folder of wandb, for `wandb sync`, instead of sending.
        follow: Wait for more records until the run ends.
        paths: Send settings that are paths, too.

    Raises:
        ConfigError: If the package is not installed, or the tracker refuses the run.
        RunError: If the run cannot be read.
    """
    folder = RunFolder.open(run)
    settings = tracked_settings(folder, paths=paths)
    identity = f"{settings['fingerprint']} {folder.plan.model_dump_json()} {name or run.resolve().name}"
    run_id = hashlib.sha256(identity.encode()).hexdigest()[:16]
    given = (name or run.resolve().name, run_id, project, settings)
    sent = 0
    with _explained(to):
        tracker = _Wandb(*given, offline) if to == "wandb" else _Mlflow(*given)
        try:
            for point in points(_following(folder) if follow else folder.metrics.records()):
                tracker.log(point)
                sent += 1
        finally:
            tracker.finish()
    return sent


def _following(folder: RunFolder) -> Iterator[TrainRecord | ValidRecord]:
    """Records as they are written, until the run ends. Steps that are trained again are not repeated."""
    log, read, last, scored = folder.metrics, 0, -1, set[tuple[int, str, str]]()
    while True:
        # Read before the records: the last ones are then complete.
        ended = folder.status().state in ("done", "failed", "preempted")
        lines = 0
        for number, line in log.raw_lines():
            lines = number
            if number <= read:
                continue
            record = log.parse(line, number, METRICS)
            if isinstance(record, TrainRecord):
                if record.step > last:
                    last = record.step
                    yield record
            elif (key := (record.step, record.set, record.weights)) not in scored:
                scored.add(key)
                yield record
        # A resumed run cuts its records back.
        read = lines if lines >= read else 0
        if ended and read == lines:
            return
        time.sleep(_POLL_S)


def link_boards(runs: list[Path], out: Path) -> list[Path]:
    """Link the TensorBoard folders of runs into one folder, for curves side by side.

    Args:
        runs: Run folders.
        out: The folder; created if missing.

    Returns:
        The links, one for each run: its name, with its parent folder's name where two are equal.

    Raises:
        ConfigError: If two links have one name, or a link's name is taken by another file.
        RunError: If one is no run.
    """
    out.mkdir(parents=True, exist_ok=True)
    own = [run.resolve().name for run in runs]
    names = [
        name if own.count(name) == 1 else f"{run.resolve().parent.name}-{name}"
        for run, name in zip(runs, own, strict=True)
    ]
    name, times = Counter(names).most_common(1)[0]
    if times > 1:
        raise ConfigError(
            "runs",
            got=f"{times} with the link {name}",
            rule="must differ in the names of their folders, or of the folders above",
            remedy="Name each run once, or link them into several folders.",
        )
    links = []
    for run, name in zip(runs, names, strict=True):
        board = RunFolder.open(run).tensorboard.resolve()
        link = out / name
        if link.is_symlink():
            link.unlink()
        elif link.exists():
            raise ConfigError(
                f"--out {out}",
                got=f"a file or folder {name} in it",
                rule="must be a folder for links",
                remedy="Choose another folder.",
            )
        link.symlink_to(board, target_is_directory=True)
        links.append(link)
    return links
