"""The process of one job: it ends with its parent, holds the job's lock, and keeps the result.

``python -m reptrain_launcher.worker JOB.json`` runs the command of a `WorkerJob`. A command without a result
file replaces this process. The lock is inherited, so it is free when the command has ended, however it ended.
"""

from __future__ import annotations

import ctypes
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

EXIT_STOPPED = 3
_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class WorkerJob:
    """The content of a job file.

    Attributes:
        command: The program and its arguments.
        lock: File to lock while the command runs.
        parent: Process with which the job ends; None: it ends by itself, as under Slurm.
        result: File for the command's output, which must be JSON; None: the output is not kept.
        record: Stored in the result file beside the output.
        wait_s: Seconds to wait until another process releases the lock.
    """

    command: list[str]
    lock: str
    parent: int | None = None
    result: str | None = None
    record: dict[str, Any] = field(default_factory=dict)
    wait_s: float = 120.0

    def text(self) -> str:
        """The job as the text of a job file."""
        return json.dumps(asdict(self), indent=1) + "\n"


def main(path: str) -> int:
    """Run the job in a file; returns the exit code of its command."""
    job = WorkerJob(**json.loads(Path(path).read_text(encoding="utf-8")))
    if job.parent is not None and not end_with_parent(job.parent):
        return EXIT_STOPPED
    lock = _locked(job)
    if lock is None:
        return 1
    if job.result is None:
        os.execvp(job.command[0], job.command)
    return _keep_result(job, Path(job.result), lock)


def end_with_parent(parent: int) -> bool:
    """Ask Linux to send SIGTERM to this process when its parent ends; False if it has ended already.

    The request survives `exec`. A training then saves a checkpoint before it ends.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
    return os.getppid() == parent


def _locked(job: WorkerJob) -> int | None:
    """Lock the job with a handle that the command inherits; None if another process keeps the lock.

    An earlier process may still be ending.
    """
    handle = os.open(job.lock, os.O_RDWR | os.O_CREAT, 0o666)
    os.set_inheritable(handle, True)
    deadline, told = time.monotonic() + job.wait_s, False
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return handle
        except BlockingIOError:
            if time.monotonic() > deadline:
                _say(f"error: {job.lock} is still locked by another process after {job.wait_s:g} seconds")
                return None
            if not told:
                _say(f"waiting for an earlier process of this job, which holds {job.lock}")
                told = True
            time.sleep(0.2)


def _keep_result(job: WorkerJob, result: Path, lock: int) -> int:
    """Run the command, and store its output with the job's record."""
    part = result.with_suffix(".part")
    with part.open("wb") as stream:
        child = subprocess.Popen(job.command, stdout=stream, stdin=subprocess.DEVNULL, pass_fds=[lock])
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
            signal.signal(number, lambda number, frame: child.send_signal(number))
        code = child.wait()
    if code != 0:
        return code if code >= 0 else 128 - code
    try:
        output = json.loads(part.read_text(encoding="utf-8"))
    except ValueError as error:
        _say(f"error: the command printed no JSON: {error}")
        return 1
    part.write_text(json.dumps({**job.record, "output": output}, indent=1) + "\n", encoding="utf-8")
    part.replace(result)
    return 0


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
