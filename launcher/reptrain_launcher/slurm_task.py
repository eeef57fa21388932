"""The process of one job under Slurm, started by submitit: it runs a job file and stops with a checkpoint.

What a cluster does, and what this process makes of it:

- Slurm starts one process for each rank, and submitit calls `checkpoint` in the first only. It passes SIGTERM
  to its training; the ranks of a training agree on a stop after each step.
- A preempted job gets submitit's user signal only if the cluster has `preempt_send_user_signal`, otherwise
  SIGTERM, which submitit ignores. Here both save a checkpoint. After the user signal the job is requeued;
  after SIGTERM it ends, since SIGTERM also means that a user has canceled it.
- Slurm sends the user signal to every process of the job, and the training would die of it: it ignores it.
- submitit counts a signal late in the time limit as a time-out and allows three. A long run needs more: here
  three stops in a row without a new checkpoint end the job.
- Requeueing needs `scontrol`, which may not be on the PATH of a node: the usual folders are added. Without
  it the job ends with its checkpoint.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any

from reptrain_launcher.joining import slurm_ranks

MOST_STALLS = 3
"""Stops without a new checkpoint after which a job is not started again."""
MANY_TIMEOUTS = 10**6
"""For submitit, whose own limit is replaced by `MOST_STALLS`."""
_GRACE_S = 600.0
_POLL_S = 0.1
_SLURM_FOLDERS = ("/usr/bin", "/usr/local/bin", "/opt/slurm/bin", "/usr/local/slurm/bin")
_STOPPED = 3


@dataclass
class SlurmTask:
    """What submitit starts on the nodes: the function of one job.

    Attributes:
        job_file: File of the `reptrain_launcher.worker.WorkerJob`.
        log: File for its output.
        exit_file: File for the exit code of the first rank; missing while the job runs.
        checkpoint_file: File that names the newest checkpoint; None for a job without checkpoints.
        stalls: Stops without a new checkpoint, in a row.
        checkpoint_before: The newest checkpoint at the last stop.
    """

    job_file: str
    log: str
    exit_file: str
    checkpoint_file: str | None = None
    stalls: int = 0
    checkpoint_before: str | None = None
    _child: _Child | None = field(default=None, repr=False)

    def __call__(self) -> None:
        """Run the job. A failure ends the process with the exit code, which Slurm's dependencies see."""
        os.environ["PATH"] = _path_with_scontrol(os.environ.get("PATH", os.defpath))
        ranks = slurm_ranks(os.environ)
        is_first = ranks.get("RANK", "0") == "0"
        command = [sys.executable, "-m", "reptrain_launcher.worker", self.job_file]
        job = json.loads(Path(self.job_file).read_text(encoding="utf-8"))
        if is_first:
            Path(self.exit_file).unlink(missing_ok=True)
        elif job["result"] is None:
            # The first rank holds the lock of the job for all.
            command = job["command"]
        else:
            return
        if job["result"] is not None:
            # Only a training has several ranks.
            ranks = {}
        self._child = _Child(command, os.environ | ranks, self.log)
        # After submitit has installed its handler, which ignores SIGTERM.
        signal.signal(signal.SIGTERM, self._stop)
        code = self._child.wait()
        if is_first:
            self._end(code)
        if code:
            sys.exit(code)

    def checkpoint(self) -> Any:
        """Stop with a checkpoint. Called by submitit in the first rank, at its user signal.

        Returns:
            The function to submit again; None to end the job.
        """
        from submitit.helpers import DelayedSubmission

        assert self._child is not None
        self._child.terminate()
        code = self._child.wait(_GRACE_S)
        newest = newest_checkpoint(self.checkpoint_file)
        stalls = self.stalls + 1 if newest == self.checkpoint_before else 0
        # A training that has just ended is done at once when it is started again.
        if code not in (0, _STOPPED) or stalls >= MOST_STALLS or shutil.which("scontrol") is None:
            self._end(code)
            return None
        again = replace(self, stalls=stalls, checkpoint_before=newest, _child=None)
        return DelayedSubmission(again)

    def _stop(self, number: int, frame: FrameType | None) -> None:
        if self._child is not None:
            self._child.terminate()

    def _end(self, code: int) -> None:
        """Record the exit code."""
        path = Path(self.exit_file)
        part = path.with_suffix(".part")
        part.write_text(json.dumps({"code": code, "slurm_job": os.environ.get("SLURM_JOB_ID")}) + "\n")
        part.replace(path)


class _Child:
    """A child process that a signal handler can wait for while the main program waits too.

    `subprocess.Popen.wait` holds a lock that a handler in the same thread would wait for without end.
    """

    def __init__(self, command: list[str], environment: Mapping[str, str], log: str) -> None:
        with Path(log).open("ab") as stream:
            child = subprocess.Popen(
                command, env=environment, stdout=stream, stderr=stream, stdin=subprocess.DEVNULL,
                start_new_session=True, preexec_fn=_ignore_user_signals,
            )  # fmt: skip
        self._child = child
        self._code: int | None = None

    def terminate(self) -> None:
        """Ask the child to stop, if it has not ended."""
        if self._poll() is None:
            os.kill(self._child.pid, signal.SIGTERM)

    def wait(self, limit_s: float = float("inf")) -> int:
        """Wait until it has ended; kill it after the limit.

        Returns:
            Its exit code; 128 + N if signal N ended it.
        """
        deadline = time.monotonic() + limit_s
        while (code := self._poll()) is None:
            if time.monotonic() > deadline:
                os.killpg(self._child.pid, signal.SIGKILL)
                deadline = float("inf")
            time.sleep(_POLL_S)
        return code

    def _poll(self) -> int | None:
        if self._code is None:
            try:
                found = os.waitid(os.P_PID, self._child.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                found = None
            if found is not None:
                is_exit = found.si_code == os.CLD_EXITED
                self._code = found.si_status if is_exit else 128 + found.si_status
        return self._code


def _ignore_user_signals() -> None:
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    signal.signal(signal.SIGCONT, signal.SIG_DFL)


def newest_checkpoint(path: str | os.PathLike[str] | None) -> str | None:
    """The name in a file that names the newest checkpoint; None if there is none."""
    if path is None:
        return None
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return None


def _path_with_scontrol(path: str) -> str:
    """The PATH, with the usual folders of Slurm at its end if it has no scontrol."""
    if shutil.which("scontrol", path=path):
        return path
    return os.pathsep.join([path, *_SLURM_FOLDERS])
