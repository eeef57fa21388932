"""Run a study: its arms one after another, each in its own training process."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import filelock

from reptrain.config.load import dump_yaml
from reptrain.errors import StudyError
from reptrain.files import write_atomically
from reptrain.runs.folder import RunFolder
from reptrain.study.arm_progress import read_progress
from reptrain.study.events import ArmOutcome, OnEvent, StudyEvent, StudyResult
from reptrain.study.grid import Arm, arms
from reptrain.study.paths import config_path, is_run_of, log_path, run_path
from reptrain.study.preflight import Stores, check_arms, total_tokens_of
from reptrain.study.schema import StudyConfig, save_study
from reptrain_launcher.process import Ended, run_process

_EXIT_PREEMPTED = 3


def run_study(
    study: StudyConfig,
    out: Path,
    *,
    on_event: OnEvent | None = None,
    launch: Sequence[str] | None = None,
) -> StudyResult:
    """Run every unfinished arm. A failed arm does not stop the others; a signal does.

    Args:
        study: The study; all its arms are checked before the first starts.
        out: Its folder, laid out as in `reptrain.study.paths`.
        on_event: Called with every event.
        launch: Training command, to which ``CONFIG --out RUN`` is appended; None: train in one process.

    Raises:
        StudyError: If an arm cannot be planned on its store, or another process is running the study.
    """
    planned = arms(study)
    stores = check_arms(planned)
    command = [*(launch or [sys.executable, "-m", "reptrain", "train"])]
    outcomes: list[ArmOutcome] = []
    with _prepared(study, out):
        for index, arm in enumerate(planned):
            if outcomes and outcomes[-1].state in ("stopped", "waiting"):
                outcomes.append(ArmOutcome(arm.name, "waiting"))
                continue
            total = total_tokens_of(arm.config, stores)
            event = StudyEvent("start", arm.name, index, len(planned), total)
            last = _run_arm(arm, out, stores, command=command, event=event, on_event=on_event or _ignore)
            outcomes.append(ArmOutcome(arm.name, last.kind, last.seconds, last.message))
    return StudyResult(tuple(outcomes))


def is_done(arm: Arm, run: Path, stores: Stores) -> bool:
    """Whether the run folder holds this arm on these stores, finished."""
    if not (run / "status.json").exists():
        return False
    folder = RunFolder.open(run)
    if folder.status().state != "done" or not is_run_of(arm, folder):
        return False
    trained_on = [source.store_fingerprint for source in folder.plan.sources]
    return trained_on == [stores[source.store].fingerprint for source in arm.config.sources.values()]


def _ignore(event: StudyEvent) -> None:
    """Do nothing."""


def _run_arm(
    arm: Arm, out: Path, stores: Stores, *, command: Sequence[str], event: StudyEvent, on_event: OnEvent
) -> StudyEvent:
    """Run one arm to its end, unless it is done. Returns its last event."""
    run = run_path(out, arm.name)
    if is_done(arm, run, stores):
        last = replace(event, kind="skipped", tokens=event.total_tokens)
        on_event(last)
        return last
    config = config_path(out, arm.name)
    write_atomically(config, dump_yaml(arm.config.model_dump(mode="json")))
    on_event(event)
    started = time.monotonic()

    def now() -> StudyEvent:
        progress = read_progress(run)
        return replace(
            event,
            kind="progress",
            tokens=progress.tokens,
            tokens_per_s=progress.tokens_per_s,
            seconds=time.monotonic() - started,
        )

    log = log_path(out, arm.name)
    ended = run_process(
        [*command, str(config), "--out", str(run)], output=log, on_poll=lambda: on_event(now()), poll_s=0.5
    )
    last = _judge(now(), ended, log, done=ended.returncode == 0 and is_done(arm, run, stores))
    on_event(last)
    return last


def _judge(event: StudyEvent, ended: Ended, log: Path, *, done: bool) -> StudyEvent:
    """The last event of an arm, from how its process ended."""
    if done:
        return replace(event, kind="done")
    if ended.signal is not None or ended.returncode == _EXIT_PREEMPTED:
        return replace(event, kind="stopped", message="stopped by a signal; run the study again to resume")
    if ended.returncode == 0:
        return replace(event, kind="failed", message=f"the process ended, but its run is not done; see {log}")
    reason = f"exit code {ended.returncode}: {_last_line(log)}; see {log}"
    return replace(event, kind="failed", message=reason)


def _last_line(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1].strip() if lines else "no output"


@contextmanager
def _prepared(study: StudyConfig, out: Path) -> Iterator[None]:
    """Create the study's folder, and lock it against another `study run`."""
    for path in (config_path(out, ""), run_path(out, ""), log_path(out, "")):
        path.parent.mkdir(parents=True, exist_ok=True)
    lock = filelock.FileLock(out / ".lock", blocking=False)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise StudyError(
            f"study folder {out}",
            got="another `study run` in progress",
            rule="must be used by one `study run` at a time",
            remedy="Wait until it ends, or choose another --out.",
        ) from error
    try:
        save_study(study, out)
        yield
    finally:
        lock.release()
