"""The run folder: everything needed to understand, audit and repeat a run."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from reptrain.config import RunConfig, config_fingerprint, differing_keys
from reptrain.config.load import dump_yaml, read_yaml, validate
from reptrain.config.numerics import NUMERICS_VERSION
from reptrain.errors import ConfigError, ResumeError, RunError
from reptrain.files import read_small, remove_unfinished, write_atomically
from reptrain.reading import parse_json
from reptrain.runs.events import EventRecord, Events
from reptrain.runs.ledger import Ledger
from reptrain.runs.metrics import MetricsLog
from reptrain.runs.parent import read_parent
from reptrain.runs.records import FrozenRecord, read_record
from reptrain.runs.routers import RouterLog
from reptrain.runs.run_plan import RUN_FORMAT, RunPlan
from reptrain.text.remote import hide_credentials

_DEFINING_FILES = ("config.yaml", "plan.json")

State = Literal["created", "running", "done", "failed", "preempted"]


class RunStatus(FrozenRecord):
    """`status.json`. Without the file, the state is `created`."""

    state: State
    """State of the run."""
    reason: str | None = None
    """Why it failed, stopped, or ended before the end of its plan."""
    step: int | None = None
    """Steps completed."""
    pid: int
    """Process that wrote this."""
    host: str
    """Machine of that process."""
    time: str
    """Time in UTC."""


class RunFolder:
    """A run folder.

    Args:
        path: Its path.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.ledger = Ledger(path / "ledger.jsonl")
        self.metrics = MetricsLog(path / "metrics.jsonl")
        self.events = Events(path / "events.jsonl")
        self.routers = RouterLog(path / "routers.jsonl")
        self.tensorboard = path / "tensorboard"
        self.checkpoints = path / "checkpoints"

    @classmethod
    def create_or_open(
        cls,
        path: Path,
        config: RunConfig,
        plan: RunPlan,
        environment: Mapping[str, Any],
        *,
        parent_weights: Callable[[], str | None] | None = None,
    ) -> RunFolder:
        """Create the folder of a run, or open it to resume the same run.

        Settings that do not change the results may differ on resume, and so may the paths of the store and of
        the parent (`init_from`): the folder then records the new ones. The folder of a finished run is not
        changed.

        Args:
            path: The folder.
            config: The run.
            plan: Its plan.
            environment: The content of environment.json.
            parent_weights: Computes the fingerprint of the weights at `init_from`. Called if the path is not
                the recorded one; None: another path is another parent.

        Raises:
            ResumeError: If the folder holds another run; names each differing key with both values.
            RunError: If the folder cannot be written, or a run is in progress in it.
        """
        folder = cls(path)
        if folder._plan_file.exists():
            # Before the lock, so that a folder with another run gives that error.
            folder._refuse_another(config, plan, parent_weights)
            if folder.status().state == "done":
                return folder
        try:
            path.mkdir(parents=True, exist_ok=True)
            with folder.lock():
                for written in (path, folder.checkpoints):
                    remove_unfinished(written)
                # Again with the lock: another process may have created the folder meanwhile.
                if folder._plan_file.exists():
                    cls(path)._refuse_another(config, plan, parent_weights)
                folder._write(config, plan, environment)
        except OSError as error:
            raise RunError(
                f"run folder {path}",
                got=error.strerror or error,
                rule="must be a folder that can be written",
                remedy="Choose another --out, or free space.",
            ) from error
        return cls(path)

    @classmethod
    def open(cls, path: Path) -> RunFolder:
        """Open the folder of a run.

        Raises:
            RunError: If it holds no run.
        """
        folder = cls(path)
        if not folder._plan_file.exists():
            raise RunError(
                f"run folder {path}",
                got="no plan.json",
                rule="must be the folder of a run",
                remedy="Check the path; `reptrain train` creates run folders. Score fine-tuned and imported"
                " models with `reptrain score-task` or `reptrain lm-eval`.",
            )
        return folder

    @cached_property
    def config(self) -> RunConfig:
        """The run's configuration.

        Raises:
            ConfigError: If config.yaml is missing or invalid.
        """
        path = self.path / "config.yaml"
        try:
            return validate(RunConfig, read_yaml(path))
        except ConfigError as error:
            raise ConfigError(
                str(path),
                got=f"({error})",
                rule="must be the settings that the run was started with",
                remedy="Restore the file, or train again in a new folder.",
            ) from error

    @cached_property
    def plan(self) -> RunPlan:
        """The run's plan.

        Raises:
            RunError: If plan.json is missing, invalid, or in a newer format.
        """
        _refuse_newer_format(self._plan_file)
        return read_record(
            RunPlan, self._plan_file, remedy="Restore the file, or train again in a new folder."
        )

    @property
    def environment(self) -> dict[str, Any]:
        """The environment of the last start; `earlier` lists those of previous starts if they differ.

        Raises:
            RunError: If environment.json is damaged.
        """
        path = self.path / "environment.json"
        try:
            environment = parse_json(read_small(path)) if path.exists() else {}
            if not isinstance(environment, dict):
                raise ValueError(f"a {type(environment).__name__}")
            for key, kind in (("packages", dict), ("earlier", list)):
                if key in environment and not isinstance(environment[key], kind):
                    raise ValueError(f"a {type(environment[key]).__name__} under {key!r}")
        except (OSError, ValueError) as error:
            raise RunError(
                str(path),
                got=f"no record ({error})",
                rule="must be a complete record of the run",
                remedy="Remove the file; the next `reptrain train` writes it again.",
            ) from error
        return environment

    def checksums(self) -> dict[str, str]:
        """SHA-256 of the files that define the run, by name."""
        return {name: sha256((self.path / name).read_bytes()).hexdigest() for name in _DEFINING_FILES}

    def status(self) -> RunStatus:
        """The status of the run.

        Raises:
            RunError: If status.json is invalid.
        """
        path = self.path / "status.json"
        remedy = "Remove the file; the next `reptrain train` writes it again."
        if not path.exists():
            return _status("created", None, None)
        return read_record(RunStatus, path, remedy=remedy)

    def set_status(self, state: State, reason: str | None = None, *, step: int | None = None) -> None:
        """Write the status atomically.

        Args:
            state: The new state.
            reason: Why it failed or stopped.
            step: Steps completed.
        """
        status = _status(state, reason, step)
        write_atomically(self.path / "status.json", [status.model_dump_json(indent=2), "\n"])

    def note(self, event: str, detail: str, *, step: int) -> None:
        """Add an event.

        Args:
            event: Kind of event, as in `EventRecord`.
            detail: Description.
            step: Steps completed.
        """
        record = EventRecord.model_validate({"event": event, "step": step, "detail": detail, "time": _now()})
        self.events.append(record)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Lock the folder for one process; the lock ends with the process.

        Raises:
            RunError: If another process holds the lock.
        """
        import filelock

        lock = filelock.FileLock(self.path / ".lock", timeout=0)
        try:
            lock.acquire()
        except filelock.Timeout as error:
            status = self.status()
            raise RunError(
                f"run folder {self.path}",
                got=f"a run in process {status.pid} on {status.host}",
                rule="must be used by one run at a time",
                remedy="Wait for it, stop it, or choose another --out.",
            ) from error
        try:
            yield
        finally:
            lock.release()

    @property
    def _plan_file(self) -> Path:
        return self.path / "plan.json"

    def with_recorded_parent(
        self,
        config: RunConfig,
        parent_weights: Callable[[], str | None] | None = None,
        *,
        teacher: str | None = None,
    ) -> RunConfig:
        """``config`` with this folder's `init_from` and teacher, if both name the same models.

        Args:
            config: A configuration.
            parent_weights: As in `create_or_open`.
            teacher: Fingerprint of the teacher's weights; None: another path is another teacher.
        """
        distill, before = config.distill, self.config.distill
        if distill and before and distill.teacher and before.teacher:
            places = [[Path(path).resolve() for path in each.teacher] for each in (distill, before)]
            is_there = places[0] == places[1]
            if is_there or (teacher is not None and teacher == self.plan.teacher):
                distill = distill.model_copy(update={"teacher": before.teacher})
                config = config.model_copy(update={"distill": distill})
        given, recorded = config.init_from, self.config.init_from
        if given is None or recorded is None or given == recorded:
            return config
        parent = read_parent(self.path)
        if parent is None:
            return config
        is_same = parent.is_at(given, self.path)
        if not is_same and parent_weights is not None:
            is_same = parent_weights() == parent.weights
        return config.model_copy(update={"init_from": recorded}) if is_same else config

    def _refuse_another(
        self, config: RunConfig, plan: RunPlan, parent_weights: Callable[[], str | None] | None
    ) -> None:
        self._refuse_other_numerics()
        same = self.with_recorded_parent(config, parent_weights, teacher=plan.teacher)
        differing = differing_keys(self.config, same)
        if not differing:
            # Compare settings before fingerprints, as they name the difference.
            old, new = self.plan.facts(), plan.facts()
            differing = [(key, value, new.get(key)) for key, value in old.items() if value != new.get(key)]
        if differing:
            raise ResumeError(
                f"run folder {self.path}",
                got=", ".join(f"{key}={new} where the folder has {old}" for key, old, new in differing),
                rule="must hold the same run to be resumed",
                remedy="Undo the change, or choose another --out.",
            )

    def _refuse_other_numerics(self) -> None:
        recorded = self.plan.numerics_version
        if recorded != NUMERICS_VERSION:
            raise ResumeError(
                f"run folder {self.path}",
                got=f"numerics_version {recorded}",
                rule=f"must have been started with numerics_version {NUMERICS_VERSION} to be resumed",
                remedy="The same configuration now gives other results (docs/decisions/versions.md):"
                f" resume with {_writer(self.environment)}, or choose another --out.",
            )

    def _write(self, config: RunConfig, plan: RunPlan, environment: Mapping[str, Any]) -> None:
        self.tensorboard.mkdir(exist_ok=True)
        self.checkpoints.mkdir(exist_ok=True)
        settings = dump_yaml(hide_credentials(config.with_absolute_stores().model_dump(mode="json")))
        header = f"# Resolved by reptrain. Config fingerprint: {config_fingerprint(config)}\n"
        write_atomically(self.path / "config.yaml", [header, settings])
        merged = _with_earlier(self.environment, dict(environment))
        write_atomically(self.path / "environment.json", [json.dumps(merged, indent=2), "\n"])
        # Last: a folder with a plan is complete.
        write_atomically(self._plan_file, [plan.text(), "\n"])


def refuse_to_resume(path: Path) -> None:
    """Refuse a folder in which a run would resume.

    Raises:
        ResumeError: If it has a checkpoint.
    """
    if any(RunFolder(path).checkpoints.glob("step-*")):
        raise ResumeError(
            f"run folder {path}",
            got="a checkpoint, with --no-resume",
            rule="must be new",
            remedy="Leave --no-resume out to resume, or choose another --out.",
        )


def _writer(environment: Mapping[str, Any]) -> str:
    """The version that last wrote to a run folder, from its environment.json."""
    release = environment.get("packages", {}).get("reptrain")
    commit = environment.get("commit")
    named = f"reptrain {release}" if release else "the version of reptrain that started it"
    return f"{named} (commit {commit})" if commit else named


def _refuse_newer_format(plan_file: Path) -> None:
    try:
        number = parse_json(read_small(plan_file)).get("format", 1)
    except (OSError, ValueError, AttributeError):
        # Reading the plan gives a better error.
        return
    if isinstance(number, int) and number > RUN_FORMAT:
        raise RunError(
            f"run folder {plan_file.parent}",
            got=f"format {number}",
            rule=f"must have a format from 1 to {RUN_FORMAT}",
            remedy="Use the version of reptrain that wrote it, or a later one.",
        )


def _with_earlier(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    earlier: list[Any] = old.pop("earlier", [])
    if old and old != new:
        earlier = [*earlier, old]
    return {**new, "earlier": earlier} if earlier else new


def _status(state: State, reason: str | None, step: int | None) -> RunStatus:
    return RunStatus(
        state=state, reason=reason, step=step, pid=os.getpid(), host=socket.gethostname(), time=_now()
    )


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
