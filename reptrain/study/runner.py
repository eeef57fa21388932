"""Run studies: every node that is not done, by an executor."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import filelock

from reptrain.config.load import dump_yaml
from reptrain.config.sections import BranchConfig
from reptrain.errors import StudyError
from reptrain.files import write_atomically
from reptrain.study.arm_progress import read_progress
from reptrain.study.begun import refuse_changes, write_questions
from reptrain.study.build import build_graph
from reptrain.study.done_table import DoneTable, add_done, load_done, read_done, to_run
from reptrain.study.events import ArmOutcome, OnEvent, StudyEvent, StudyResult
from reptrain.study.executor import MOST_TRIES, Executor, Job, JobEnd, JobOutcome, Listener
from reptrain.study.graph import Graph, Node
from reptrain.study.local_pool import LocalPool
from reptrain.study.looks import Place, add_looks
from reptrain.study.node_state import is_done
from reptrain.study.paths import (
    config_path,
    job_path,
    lock_path,
    log_path,
    product_path,
    result_path,
    run_path,
)
from reptrain.study.preflight import Stores, check_arms, total_tokens_of
from reptrain.study.retention import Rule, release_checkpoints
from reptrain.study.schema import StudyConfig, save_study
from reptrain.study.then import then_command
from reptrain.tables.addresses import Address
from reptrain_launcher.process import Ended
from reptrain_launcher.worker import EXIT_STOPPED, WorkerJob

if TYPE_CHECKING:
    from reptrain.study.audits import StudyAudits

_EXIT_WRONG_INPUT = 2
_STOPPED = "stopped by a signal; run the study again to resume"


@dataclass(frozen=True)
class StudyRun:
    """A study to run, with its folder and executor.

    Attributes:
        study: The study.
        out: Its folder, laid out as in `reptrain.study.paths`.
        display: Opens the function that gets every event.
        launch: Training command, to which ``CONFIG --out RUN`` is appended; None: train in one process.
        executor: Runs the processes; None: on this machine, several at once (see `LocalPool`).
        done: A collected runs.parquet; its runs that are done and exact count as done in this study too.
    """

    study: StudyConfig
    out: Path
    display: Callable[[], AbstractContextManager[OnEvent]] = field(default=lambda: nullcontext(_ignore))
    launch: Sequence[str] | None = None
    executor: Executor | None = None
    done: Address | None = None


def run_study(
    study: StudyConfig,
    out: Path,
    *,
    on_event: OnEvent | None = None,
    launch: Sequence[str] | None = None,
    executor: Executor | None = None,
    done: Address | None = None,
) -> StudyResult:
    """Run every node that is not done. A failed node does not stop the others; a signal does.

    Args:
        study: The study; all its arms are checked before the first starts.
        out: Its folder.
        on_event: Called with every event.
        launch: Training command, to which ``CONFIG --out RUN`` is appended; None: train in one process.
        executor: Runs the processes; None: on this machine, several at once (see `LocalPool`).
        done: A collected runs.parquet; its runs that are done and exact count as done in this study too.

    Returns:
        The outcome of each node.

    Raises:
        StudyError: If an arm cannot be planned on its store, or another process is running the study.
    """
    display = nullcontext[OnEvent](on_event or _ignore)
    return run_studies([StudyRun(study, out, lambda: display, launch, executor, done)])[0]


def run_studies(runs: Sequence[StudyRun], audits: StudyAudits | None = None) -> list[StudyResult]:
    """Run studies one after another, and then the second looks of their claims.

    All studies are checked before the first one starts. A signal stops all of them; a failed node stops none.

    Args:
        runs: The studies. Claims of one family in several studies are corrected together.
        audits: Audits the runs before claims are judged for a second look. None: at level `windows`.

    Raises:
        StudyError: As `run_study`, and if two studies have the same folder.
    """
    _refuse_shared_folders(runs)
    started = [_Started.checked(run) for run in runs]
    todo = started
    while todo:
        for study in todo:
            study.run()
            if study.is_stopped:
                return [one.result() for one in started]
        grown = add_looks([Place(run.study, run.out) for run in runs], audits)
        todo = [one for one in started if Place(one.run_of.study, one.run_of.out) in grown]
    return [one.result() for one in started]


def _refuse_shared_folders(runs: Sequence[StudyRun]) -> None:
    folders = [run.out.resolve() for run in runs]
    for run in runs:
        if folders.count(run.out.resolve()) > 1:
            names = [one.study.name for one in runs if one.out.resolve() == run.out.resolve()]
            raise StudyError(
                f"study folder {run.out}",
                got=f"the studies {', '.join(names)}",
                rule="must belong to one study",
                remedy="Give the studies different names.",
            )


@dataclass
class _Started:
    """A study that has been checked, with the results of its finished nodes."""

    run_of: StudyRun
    stores: Stores
    table: DoneTable | None
    ends: dict[str, JobEnd] = field(default_factory=dict)

    @classmethod
    def checked(cls, run: StudyRun) -> _Started:
        table = read_done(run.done) if run.done is not None else None
        graph = build_graph(run.study, run.out)
        stores = check_arms(graph.trainings)
        refuse_changes(run.study, graph, run.out, stores)
        return cls(run, stores, table)

    @property
    def is_stopped(self) -> bool:
        return any(end.state in ("stopped", "waiting") for end in self.ends.values())

    def run(self) -> None:
        run = self.run_of
        command = (*(run.launch or [sys.executable, "-m", "reptrain", "train"]),)
        with _prepared(run.study, run.out), run.display() as on_event:
            if self.table is not None and self.table.rows:
                add_done(run.out, self.table)
            executor = run.executor or LocalPool()
            _run_rounds(run.study, run.out, self.stores, executor, command, on_event, self.ends)

    def result(self) -> StudyResult:
        graph = build_graph(self.run_of.study, self.run_of.out)
        return StudyResult(tuple(_outcome(node, self.ends.get(node.name)) for node in graph.nodes))


def _run_rounds(
    study: StudyConfig,
    out: Path,
    stores: Stores,
    executor: Executor,
    command: tuple[str, ...],
    on_event: OnEvent,
    ends: dict[str, JobEnd],
) -> None:
    """Run the nodes that can run. Repeat while their results add nodes, since tuning chooses settings.

    The results of the nodes are added to `ends`.
    """
    while True:
        progress = _Progress(build_graph(study, out), out, stores, study.keep_checkpoints, on_event)
        ready = [node for node in progress.graph.nodes if not node.pending and node.name not in ends]
        here = [node.name for node in ready if is_done(node, out, stores)]
        pending = to_run(ready, here, load_done(out))
        for node in ready:
            if node not in pending:
                progress.skip(node)
                ends[node.name] = JobEnd("done", seconds=-1.0)
        if not pending:
            release_checkpoints(progress.graph, out, study.keep_checkpoints, progress.is_done)
            return
        jobs = _jobs(progress.graph, pending, out, command, ends_with_study=executor.is_local)
        ends |= executor.execute(jobs, progress.judge, progress.listener)
        if any(end.state in ("stopped", "waiting") for end in ends.values()):
            return


def _outcome(node: Node, end: JobEnd | None) -> ArmOutcome:
    if end is None:
        return ArmOutcome(node.name, "blocked" if node.pending else "waiting")
    if end.seconds < 0:
        return ArmOutcome(node.name, "skipped")
    return ArmOutcome(node.name, end.state, end.seconds, end.message)


def _jobs(
    graph: Graph, nodes: Sequence[Node], out: Path, command: tuple[str, ...], *, ends_with_study: bool
) -> list[Job]:
    """Write the job files of some nodes."""
    pending = {node.name for node in nodes}
    jobs = []
    for node in nodes:
        worker = WorkerJob(
            command=_command(node, graph, out, command),
            lock=str(lock_path(out, node.name)),
            parent=os.getpid() if ends_with_study else None,
            result=None if node.config else str(result_path(out, node.name)),
            record={"node": node.name, "kind": node.kind, "fingerprint": node.fingerprint},
        )
        path = job_path(out, node.name)
        write_atomically(path, worker.text())
        jobs.append(
            Job(
                name=node.name,
                command=(sys.executable, "-m", "reptrain_launcher.worker", str(path)),
                log=log_path(out, node.name),
                after=tuple(name for name in node.inputs if name in pending),
                follows=(node.branch.parent,) if node.branch and node.branch.parent in pending else (),
                checkpoint=run_path(out, node.name) / "checkpoints" / "latest" if node.config else None,
            )
        )
    return jobs


def _command(node: Node, graph: Graph, out: Path, train: tuple[str, ...]) -> list[str]:
    """The command of a node."""
    if node.config is None:
        return then_command(node, [graph.by_name[name] for name in node.inputs], out)
    config = config_path(out, node.name)
    run = node.config
    if node.branch is not None:
        branch = BranchConfig(run=str(run_path(out, node.branch.parent)), step=node.branch.step)
        run = run.model_copy(update={"branch": branch})
    write_atomically(config, dump_yaml(run.model_dump(mode="json")))
    return [*train, str(config), "--out", str(run_path(out, node.name))]


@dataclass(frozen=True)
class _Progress:
    """Turns what happens to the jobs into events and outcomes."""

    graph: Graph
    out: Path
    stores: Stores
    rule: Rule
    on_event: OnEvent

    @property
    def listener(self) -> Listener:
        """The functions that an executor calls."""
        return Listener(started=self._started, running=self._running, ended=self._ended)

    def is_done(self, node: Node) -> bool:
        """Whether a node is done in the folder."""
        return not node.pending and is_done(node, self.out, self.stores)

    def skip(self, node: Node) -> None:
        """Report a node that need not run."""
        event = self._event(node.name)
        self.on_event(replace(event, kind="skipped", tokens=event.total_tokens))

    def judge(self, job: Job, ended: Ended, tries: int) -> JobOutcome:
        """What became of a node, from its run folder and how its process ended."""
        if self.is_done(self.graph.by_name[job.name]):
            return JobOutcome("done")
        if ended.signal is not None or ended.returncode == EXIT_STOPPED:
            return JobOutcome("stopped", _STOPPED)
        if ended.returncode == 0:
            return JobOutcome("failed", f"the process ended, but its run is not done; see {job.log}")
        message = f"exit code {ended.returncode}: {_last_line(job.log)}; see {job.log}"
        if ended.returncode == _EXIT_WRONG_INPUT or tries == MOST_TRIES:
            # Wrong input, a full disk and divergence are the same at the next try.
            return JobOutcome("failed", message)
        return JobOutcome("retry", message)

    def _event(self, name: str) -> StudyEvent:
        node = self.graph.by_name[name]
        index, total = self.graph.nodes.index(node), len(self.graph.nodes)
        tokens = total_tokens_of(node.config, self.stores) if node.config else 0
        return StudyEvent("start", name, index, total, tokens)

    def _started(self, name: str) -> None:
        self.on_event(self._event(name))

    def _running(self, name: str, seconds: float) -> None:
        self.on_event(self._now(name, seconds))

    def _ended(self, name: str, end: JobEnd) -> None:
        if end.state == "done":
            release_checkpoints(self.graph, self.out, self.rule, self.is_done)
        self.on_event(replace(self._now(name, end.seconds), kind=end.state, message=end.message))

    def _now(self, name: str, seconds: float) -> StudyEvent:
        event = replace(self._event(name), kind="progress", seconds=seconds)
        if self.graph.by_name[name].config is None:
            return event
        progress = read_progress(run_path(self.out, name))
        return replace(event, tokens=progress.tokens, tokens_per_s=progress.tokens_per_s)


def _ignore(event: StudyEvent) -> None:
    """Do nothing."""


def _last_line(log: Path) -> str:
    try:
        lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    except FileNotFoundError:
        lines = []
    return lines[-1].strip() if lines else "no output"


@contextmanager
def _prepared(study: StudyConfig, out: Path) -> Iterator[None]:
    """Create the study's folder, and lock it against another `study run`."""
    for path in (config_path, run_path, log_path, job_path, product_path):
        path(out, "name").parent.mkdir(parents=True, exist_ok=True)
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
        write_questions(study, out)
        yield
    finally:
        lock.release()
