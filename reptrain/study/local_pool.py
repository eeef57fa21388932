"""Processes on this machine: several jobs at once, each with its share of the cores or its GPUs."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter

from reptrain.study.executor import Job, JobEnd, Judge, Listener
from reptrain_launcher.devices import visible_gpus
from reptrain_launcher.process import FORWARDED, Ended, kill_group, send_signal, signals_caught, start_process

_GRACE_S = 90.0


def default_jobs(*, gpus_per_job: int = 1, on_gpus: bool = False) -> int:
    """Jobs at once: one per GPU or group of GPUs; without a GPU, one per core.

    Two small runs with one thread each train 1.4 times as many tokens per second as one with two
    (docs/guides/study-file.md).

    Args:
        gpus_per_job: GPUs of each job.
        on_gpus: Whether the jobs will run on GPUs. If this machine has none, there is one job at once.
    """
    gpus = len(visible_gpus())
    if gpus or on_gpus:
        return max(1, gpus // gpus_per_job)
    return len(os.sched_getaffinity(0))


class LocalPool:
    """Executes jobs as processes on this machine.

    With several jobs at once each gets an equal share of the cores in OMP_NUM_THREADS, unless that is set.

    Args:
        jobs: Jobs at once; None: `default_jobs`.
        gpus_per_job: GPUs of each job, if the machine has any.
        poll_s: Seconds between looks at the processes.
    """

    is_local = True

    def __init__(self, jobs: int | None = None, *, gpus_per_job: int = 1, poll_s: float = 0.5) -> None:
        self.jobs = jobs or default_jobs(gpus_per_job=gpus_per_job)
        self._poll_s = poll_s
        self._slots = [self._environment(slot, gpus_per_job) for slot in range(self.jobs)]

    def _environment(self, slot: int, gpus_per_job: int) -> dict[str, str]:
        environment = dict(os.environ)
        if self.jobs == 1:
            return environment
        threads = max(1, len(os.sched_getaffinity(0)) // self.jobs)
        environment.setdefault("OMP_NUM_THREADS", str(threads))
        if gpus := visible_gpus():
            first = slot * gpus_per_job % len(gpus)
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, gpus[first : first + gpus_per_job]))
        return environment

    def execute(self, jobs: Sequence[Job], judge: Judge, listener: Listener) -> Mapping[str, JobEnd]:
        """See `reptrain.study.executor.Executor`."""
        with signals_caught() as caught:
            execution = _Execution(jobs, self._slots, judge, listener, caught)
            try:
                execution.run(self._poll_s)
            finally:
                execution.kill()
        return {job.name: execution.ends.get(job.name, JobEnd("waiting")) for job in jobs}


@dataclass
class _Running:
    job: Job
    child: subprocess.Popen[bytes]
    slot: int
    began: float
    num_forwarded: int = 0


class _Execution:
    """One call of `LocalPool.execute`."""

    def __init__(
        self,
        jobs: Sequence[Job],
        slots: Sequence[Mapping[str, str]],
        judge: Judge,
        listener: Listener,
        caught: Sequence[signal.Signals],
    ) -> None:
        self._jobs = {job.name: job for job in jobs}
        self._before_others = {name for job in jobs for name in (*job.after, *job.follows)}
        self._slots, self._free = slots, [*range(len(slots))]
        self._judge, self._listener, self._caught = judge, listener, caught
        self._sorter = TopologicalSorter({job.name: (*job.after, *job.follows) for job in jobs})
        self._ready: list[Job] = []
        self._running: dict[str, _Running] = {}
        self._tries: dict[str, int] = {}
        self._deadline = float("inf")
        self.ends: dict[str, JobEnd] = {}

    def run(self, poll_s: float) -> None:
        self._sorter.prepare()
        while self._sorter.is_active():
            self._take_ready()
            while self._ready and self._free and not self._caught:
                self._start(self._ready.pop(0))
            if self._running:
                self._look(poll_s)
            elif self._caught:
                return

    def kill(self) -> None:
        """Kill what still runs: nothing, unless an exception ended the execution."""
        for running in self._running.values():
            kill_group(running.child)
            running.child.wait()

    def _take_ready(self) -> None:
        ready = [self._jobs[name] for name in self._sorter.get_ready()]
        for job in ready:
            failed = [name for name in job.after if self.ends[name].state != "done"]
            if failed:
                self._end(job, JobEnd("blocked", f"{failed[0]} is not done"))
        self._ready += [job for job in ready if job.name not in self.ends]
        # What others wait for comes first; the sort keeps the order of the study otherwise.
        self._ready.sort(key=lambda job: job.name not in self._before_others)

    def _start(self, job: Job) -> None:
        slot = self._free.pop(0)
        child = start_process(job.command, env=self._slots[slot], output=job.log)
        self._tries[job.name] = self._tries.get(job.name, 0) + 1
        self._running[job.name] = _Running(job, child, slot, time.monotonic())
        self._listener.started(job.name)

    def _look(self, poll_s: float) -> None:
        """Wait a moment, forward signals, and judge the jobs that have ended."""
        _wait_for_any([running.child for running in self._running.values()], poll_s)
        for name, running in [*self._running.items()]:
            self._forward(running)
            seconds = time.monotonic() - running.began
            code = running.child.poll()
            if code is None:
                self._listener.running(name, seconds)
                continue
            del self._running[name]
            self._free.append(running.slot)
            ended = Ended(code, self._caught[0] if self._caught else None)
            state, message = self._judge(running.job, ended, self._tries[name])
            if state != "retry":
                self._end(running.job, JobEnd(state, message, seconds))
            elif self._caught:
                self._end(running.job, JobEnd("stopped", message, seconds))
            else:
                self._ready.append(running.job)

    def _forward(self, running: _Running) -> None:
        for number in self._caught[running.num_forwarded :]:
            send_signal(running.child.pid, FORWARDED[number])
            running.num_forwarded += 1
            self._deadline = min(self._deadline, time.monotonic() + _GRACE_S)
        if time.monotonic() > self._deadline:
            kill_group(running.child)

    def _end(self, job: Job, end: JobEnd) -> None:
        self.ends[job.name] = end
        self._sorter.done(job.name)
        self._listener.ended(job.name, end)


def _wait_for_any(children: Sequence[subprocess.Popen[bytes]], timeout_s: float) -> None:
    """Wait until one of the processes has ended, or the time is over."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline and all(child.poll() is None for child in children):
        time.sleep(min(0.05, timeout_s))
