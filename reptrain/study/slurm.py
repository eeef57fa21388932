"""Jobs under Slurm, through submitit: one array a level, stopped and requeued with checkpoints.

Slurm resolves the dependencies by itself, so that jobs go on while no `study run` watches them. A job that
Slurm cannot start any more (what it waits for failed or was submitted again) comes back to this module, which
submits it when the jobs before it have ended.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reptrain.errors import StudyError
from reptrain.files import write_atomically
from reptrain.reading import parse_json
from reptrain.study.executor import Job, JobEnd, Judge, Listener
from reptrain.study.slurm_arrays import JobArray, plan_arrays
from reptrain.study.slurm_options import SlurmOptions
from reptrain.study.slurm_queue import cancel, check_slurm, stop_with_checkpoint
from reptrain_launcher.process import Ended, signals_caught
from reptrain_launcher.slurm_task import MANY_TIMEOUTS, MOST_STALLS, SlurmTask, newest_checkpoint
from reptrain_launcher.squeue import QueuedJob, final_state, read_queue

_EXIT_STOPPED = 3
# Until a file that a node has written is visible here.
_FILE_DELAY_S = 15.0
_GRACE_S = 180.0
# Of a controller that is being restarted.
_ANSWER_S = 30.0


@dataclass
class _Submitted:
    """A job in Slurm's hands."""

    job: Job
    id: str
    waits_in_slurm: bool
    began: float | None = None
    missing_since: float | None = None


class SlurmExecutor:
    """Executes jobs under Slurm.

    Args:
        folder: For submitit's files and the exit codes; all nodes must see it.
        options: Resources of each job.
        name: Name of the jobs in the queue.
        poll_s: Seconds between looks at the queue.
    """

    is_local = False

    def __init__(self, folder: Path, options: SlurmOptions, *, name: str, poll_s: float = 5.0) -> None:
        check_slurm()
        self.folder, self.options, self.name, self.poll_s = folder, options, name, poll_s

    def execute(self, jobs: Sequence[Job], judge: Judge, listener: Listener) -> Mapping[str, JobEnd]:
        """See `reptrain.study.executor.Executor`. SIGHUP leaves the jobs in the queue."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with signals_caught() as caught:
            execution = _Execution(self, jobs, judge, listener, caught)
            execution.begin()
            while execution.is_active:
                execution.look()
                time.sleep(self.poll_s)
        return {job.name: execution.ends.get(job.name, JobEnd("waiting")) for job in jobs}

    def exit_file(self, job: str) -> Path:
        """File with the exit code of a job."""
        return self.folder.absolute() / f"{job}.exit.json"

    def submit(self, array: JobArray, dependency: str | None) -> list[str]:
        """Submit an array; returns the jobs' ids."""
        import submitit

        options = self.options
        executor = submitit.SlurmExecutor(folder=self.folder.absolute(), max_num_timeout=MANY_TIMEOUTS)
        settings: dict[str, Any] = {
            "job_name": self.name,
            "time": options.minutes,
            "nodes": options.nodes,
            "ntasks_per_node": options.ranks_per_node,
            "signal_delay_s": options.signal_delay_s,
            "array_parallelism": options.parallel,
            "additional_parameters": {"requeue": True, "kill-on-invalid-dep": "yes", **options.others},
        }
        if options.gpus_per_node is not None:
            settings["gpus_per_node"] = options.gpus_per_node
        if dependency is not None:
            settings["dependency"] = dependency
        executor.update_parameters(**settings)
        try:
            with executor.batch():
                submitted = [executor.submit(self._task(job)) for job in array.jobs]
            return [str(job.job_id) for job in submitted]
        except submitit.core.utils.FailedJobError as error:
            lines = str(error).splitlines() or ["no reason"]
            raise StudyError(
                "--slurm",
                got=lines[-1],
                rule="must be accepted by sbatch",
                remedy="Change the option. Jobs in the queue continue; the next `study run` monitors them.",
            ) from error

    def _task(self, job: Job) -> SlurmTask:
        self.exit_file(job.name).unlink(missing_ok=True)
        return SlurmTask(
            job_file=str(Path(job.command[-1]).absolute()),
            log=str(job.log.absolute()),
            exit_file=str(self.exit_file(job.name)),
            checkpoint_file=None if job.checkpoint is None else str(job.checkpoint.absolute()),
            checkpoint_before=newest_checkpoint(job.checkpoint),
        )


@dataclass
class _Execution:
    """One call of `SlurmExecutor.execute`."""

    slurm: SlurmExecutor
    jobs: Sequence[Job]
    judge: Judge
    listener: Listener
    caught: Sequence[signal.Signals]
    ends: dict[str, JobEnd] = field(default_factory=dict)
    _active: dict[str, _Submitted] = field(default_factory=dict)
    _tries: dict[str, int] = field(default_factory=dict)
    _stalls: dict[str, tuple[int, str | None]] = field(default_factory=dict)
    _num_passed_on: int = 0
    _deadline: float = float("inf")

    @property
    def is_active(self) -> bool:
        """Whether something is left to do."""
        if signal.SIGHUP in self.caught:
            return False
        waiting = any(job.name not in self.ends for job in self.jobs)
        return bool(self._active) or (waiting and not self.caught)

    def begin(self) -> None:
        """Adopt the jobs that an earlier `study run` left in the queue, and submit the others."""
        queue = self._queue_at_start()
        for job in self.jobs:
            if (earlier := self._remembered().get(job.name)) in queue and earlier is not None:
                self._active[job.name] = _Submitted(job, earlier, waits_in_slurm=True)
                self._tries[job.name] = 1
        adopted = {name: submitted.id for name, submitted in self._active.items()}
        arrays = plan_arrays([job for job in self.jobs if job.name not in adopted], adopted)
        ids: list[list[str]] = []
        for array in arrays:
            if self.caught:
                return
            dependency = self._dependency(array, ids)
            ids.append(self.slurm.submit(array, dependency))
            self._submitted(array.jobs, ids[-1], waits_in_slurm=dependency is not None)

    def look(self) -> None:
        """Look at the queue once."""
        self._pass_signals_on()
        queue = read_queue()
        if queue is None:
            return
        for name, submitted in [*self._active.items()]:
            found = queue.get(submitted.id)
            if found is None:
                self._left_the_queue(name, submitted)
            else:
                self._in_the_queue(name, submitted, found)
        if not self.caught:
            self._submit_what_is_ready()

    def _queue_at_start(self) -> dict[str, QueuedJob]:
        end = time.monotonic() + _ANSWER_S
        while (queue := read_queue()) is None and not self.caught:
            if time.monotonic() > end:
                raise StudyError(
                    "--slurm",
                    got="no answer from squeue",
                    rule="must be used while Slurm's controller is running",
                    remedy="Check `squeue`, then run the same command again.",
                )
            time.sleep(min(self.slurm.poll_s, 1.0))
        return queue or {}

    def _dependency(self, array: JobArray, ids: Sequence[Sequence[str]]) -> str | None:
        if array.corresponds_to is not None:
            origin = ids[array.corresponds_to]
            if len(array.jobs) == 1:
                return f"afterok:{origin[0]}"
            return f"aftercorr:{origin[0].partition('_')[0]}"
        kinds = (("afterok", array.after), ("afterany", array.follows))
        parts = [
            ":".join([kind, *(self._active[name].id for name in names if name in self._active)])
            for kind, names in kinds
        ]
        return ",".join(part for part in parts if ":" in part) or None

    def _submitted(self, jobs: Sequence[Job], ids: Sequence[str], *, waits_in_slurm: bool) -> None:
        for job, number in zip(jobs, ids, strict=True):
            self._active[job.name] = _Submitted(job, number, waits_in_slurm)
            self._tries[job.name] = self._tries.get(job.name, 0) + 1
        remembered = self._remembered() | {name: job.id for name, job in self._active.items()}
        write_atomically(self._memory, json.dumps(remembered, indent=1) + "\n")

    @property
    def _memory(self) -> Path:
        return self.slurm.folder / "submitted.json"

    def _remembered(self) -> dict[str, str]:
        """Slurm's ids of all jobs that were submitted, by name."""
        try:
            found = parse_json(self._memory.read_bytes())
        except (OSError, ValueError):
            return {}
        return found if isinstance(found, dict) else {}

    def _in_the_queue(self, name: str, submitted: _Submitted, found: QueuedJob) -> None:
        submitted.missing_since = None
        if found.is_pending:
            if found.reason == "DependencyNeverSatisfied":
                cancel([submitted.id])
            return
        if submitted.began is None:
            submitted.began = time.monotonic()
            self.listener.started(name)
        self.listener.running(name, time.monotonic() - submitted.began)

    def _left_the_queue(self, name: str, submitted: _Submitted) -> None:
        code = self._exit_code(submitted)
        now = time.monotonic()
        submitted.missing_since = submitted.missing_since or now
        never_started = submitted.began is None and submitted.waits_in_slurm
        given_back = never_started and not all(
            name in self.ends and self.ends[name].state == "done" for name in self._before(submitted.job)
        )
        if code is None and not given_back and now - submitted.missing_since < _FILE_DELAY_S:
            return
        del self._active[name]
        seconds = 0.0 if submitted.began is None else now - submitted.began
        if code is None and given_back and not self.caught:
            # Slurm could not start it: it waits here for what comes before it.
            self._tries[name] -= 1
            return
        self._judge(submitted, code, seconds)

    def _exit_code(self, submitted: _Submitted) -> int | None:
        try:
            record = parse_json(self.slurm.exit_file(submitted.job.name).read_bytes())
        except (OSError, ValueError):
            return None
        code = record.get("code") if isinstance(record, dict) else None
        return code if isinstance(code, int) else None

    def _judge(self, submitted: _Submitted, code: int | None, seconds: float) -> None:
        """What becomes of a job that has left the queue."""
        job, state = submitted.job, final_state(submitted.id)
        if self.caught or (state == "CANCELLED" and code != 0):
            message = "stopped by a signal" if self.caught else f"job {submitted.id} was cancelled in Slurm"
            done = code == 0 and self.judge(job, Ended(0, None), 1).state == "done"
            was_started = submitted.began is not None or not self.caught
            end = JobEnd("done" if done else "stopped" if was_started else "waiting", "" if done else message)
            self._end(job, end._replace(seconds=seconds))
            return
        if code == _EXIT_STOPPED and self._makes_progress(job):
            # Preempted by SIGTERM, or not requeued: it continues from its checkpoint.
            self._tries[job.name] -= 1
            self._submit_alone(job)
            return
        judgment, message = self.judge(job, Ended(1 if code is None else code, None), self._tries[job.name])
        if judgment == "retry":
            self._submit_alone(job)
            return
        if code is None:
            message = f"job {submitted.id} ended in Slurm's state {state}: {message}"
        self._end(job, JobEnd(judgment, message, seconds))

    def _makes_progress(self, job: Job) -> bool:
        """Whether a job that has stopped may be submitted again: not after several stops in one place."""
        newest = newest_checkpoint(job.checkpoint)
        stalls, before = self._stalls.get(job.name, (0, None))
        stalls = stalls + 1 if newest == before else 0
        self._stalls[job.name] = (stalls, newest)
        return stalls < MOST_STALLS

    def _submit_alone(self, job: Job) -> None:
        self._submitted([job], self.slurm.submit(JobArray((job,)), None), waits_in_slurm=False)

    def _submit_what_is_ready(self) -> None:
        """Submit or block the jobs that Slurm gave back, once all before them have ended."""
        for job in self.jobs:
            if job.name in self.ends or job.name in self._active:
                continue
            if any(name not in self.ends for name in self._before(job)):
                continue
            failed = [name for name in job.after if self.ends[name].state != "done"]
            if failed:
                self._end(job, JobEnd("blocked", f"{failed[0]} is not done"))
            else:
                self._submit_alone(job)

    def _before(self, job: Job) -> list[str]:
        return [*job.after, *job.follows]

    def _end(self, job: Job, end: JobEnd) -> None:
        self.ends[job.name] = end
        self.listener.ended(job.name, end)

    def _pass_signals_on(self) -> None:
        """At a signal, stop the running jobs with checkpoints and cancel the others; later, cancel all."""
        ids = [submitted.id for submitted in self._active.values()]
        if len(self.caught) > self._num_passed_on:
            self._num_passed_on = len(self.caught)
            stop_with_checkpoint(ids)
            self._deadline = min(self._deadline, time.monotonic() + _GRACE_S)
        if time.monotonic() > self._deadline:
            cancel(ids)
