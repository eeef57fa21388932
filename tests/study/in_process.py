"""An executor without processes: a function stands in for training, so that a test of a study is quick."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import fake_trainer

from reptrain.study.executor import Job, JobEnd, Judge, Listener
from reptrain_launcher.process import Ended


class InProcess:
    """Executes the jobs one after another; a job that is no training prints its arguments."""

    is_local = True

    def execute(self, jobs: Sequence[Job], judge: Judge, listener: Listener) -> Mapping[str, JobEnd]:
        ends: dict[str, JobEnd] = {}
        left = [*jobs]
        while left:
            job = next(job for job in left if {*job.after, *job.follows} <= ends.keys())
            left.remove(job)
            if any(ends[name].state != "done" for name in job.after):
                ends[job.name] = JobEnd("blocked")
                continue
            listener.started(job.name)
            state, message = judge(job, Ended(_run(job), None), 3)
            assert state != "retry"
            ends[job.name] = JobEnd(state, message, 1.0)
            listener.ended(job.name, ends[job.name])
        return ends


def _run(job: Job) -> int:
    spec = json.loads(Path(job.command[-1]).read_text())
    if spec["result"] is None:
        return fake_trainer.train(*spec["command"][-3::2])
    output = spec["command"][3:]
    Path(spec["result"]).write_text(json.dumps({**spec["record"], "output": output}))
    return 0
