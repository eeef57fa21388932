"""What a study submits to Slurm, without a Slurm: arrays, options, and the task on a node."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reptrain.errors import StudyError
from reptrain.study.executor import Job, JobOutcome, Listener
from reptrain.study.slurm import SlurmExecutor
from reptrain.study.slurm_arrays import plan_arrays
from reptrain.study.slurm_options import SlurmOptions
from reptrain.study.slurm_queue import check_slurm
from reptrain_launcher.slurm_task import MOST_STALLS, SlurmTask, newest_checkpoint
from reptrain_launcher.worker import WorkerJob


def job(name: str, *follows: str, after: tuple[str, ...] = ()) -> Job:
    return Job(name, ("true",), Path("log"), after=after, follows=follows)


def names(jobs: list[Job]) -> list[tuple[list[str], int | None]]:
    return [([one.name for one in array.jobs], array.corresponds_to) for array in plan_arrays(jobs)]


def test_branches_pair_with_their_prefixes() -> None:
    jobs = [job("a"), job("b"), job("c"), job("b1", "b"), job("c1", "c"), job("c2", "c"), job("x", "b1")]
    assert names(jobs) == [
        (["c", "b", "a"], None),
        (["c1", "b1"], 0),
        (["c2"], 0),
        # Its parent is the second of its array: no pair of indices, so it waits by itself.
        (["x"], None),
    ]


@st.composite
def graphs(draw: st.DrawFn) -> list[Job]:
    jobs: list[Job] = []
    for index in range(draw(st.integers(1, 12))):
        earlier = [one.name for one in jobs]
        before = draw(st.lists(st.sampled_from(earlier), max_size=2, unique=True)) if earlier else []
        cut = draw(st.integers(0, len(before)))
        jobs.append(job(f"j{index}", *before[:cut], after=tuple(before[cut:])))
    return jobs


@given(graphs())
def test_every_job_is_submitted_once_and_after_what_it_waits_for(jobs: list[Job]) -> None:
    arrays = plan_arrays(jobs)
    assert sorted(one.name for array in arrays for one in array.jobs) == sorted(one.name for one in jobs)
    submitted: set[str] = set()
    for array in arrays:
        for index, one in enumerate(array.jobs):
            before = {*one.after, *one.follows}
            assert before <= submitted
            if array.corresponds_to is not None:
                assert before == {arrays[array.corresponds_to].jobs[index].name}
            elif before:
                assert len(array.jobs) == 1 and {*array.after, *array.follows} == before
        submitted |= {one.name for one in array.jobs}


def test_jobs_wait_for_adopted_ones_by_their_ids() -> None:
    (array,) = plan_arrays([job("branch", "prefix")], {"prefix": "12_3"})
    assert (array.corresponds_to, array.follows) == (None, ("prefix",))


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("90", 90), ("90:30", 91), ("1:30:00", 90), ("2-0", 2880), ("1-2:30", 1590), ("1-02:30:01", 1591)],
)
def test_time_limits_are_read_as_sbatch_reads_them(text: str, minutes: int) -> None:
    assert SlurmOptions.parse([f"time={text}"]).minutes == minutes


def test_options_become_resources() -> None:
    options = SlurmOptions.parse(["time=60", "--nodes=2", "mem_per_cpu=4G", "exclusive"], gpus=4, parallel=8)
    assert (options.nodes, options.gpus_per_node, options.ranks_per_node, options.parallel) == (2, 4, 4, 8)
    assert options.others == {"mem-per-cpu": "4G", "exclusive": ""}
    assert SlurmOptions.parse(["time=60", "ntasks-per-node=2"]).ranks_per_node == 2


@pytest.mark.parametrize(
    "texts",
    [[], ["partition=gpu"], ["time=soon"], ["time=0"], ["time=9", "nodes=0"], ["time=9", "=3"],
     ["time=9", "dependency=afterok:3"], ["time=9", "gpus-per-node=two"], ["time=9", "array=0-3"]],
)  # fmt: skip
def test_wrong_options_are_refused(texts: list[str]) -> None:
    with pytest.raises(StudyError, match="--slurm"):
        SlurmOptions.parse(texts)


def test_a_machine_without_slurm_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(StudyError, match="no sbatch"):
        check_slurm()


def clients(folder: Path, **programs: str) -> str:
    """A PATH with stand-ins for Slurm's commands: shell scripts of these lines."""
    folder.mkdir()
    for name in ("sbatch", "srun", "squeue", "scancel", "scontrol"):
        (folder / name).write_text(f"#!/bin/sh\n{programs.get(name, 'true')}\n")
        (folder / name).chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


@pytest.mark.parametrize(
    ("programs", "message"),
    [
        ({"squeue": "echo no controller >&2; exit 1"}, "no answer from squeue"),
        (
            {"sbatch": "echo 'sbatch: error: invalid partition specified: gpu' >&2; exit 1"},
            "invalid partition",
        ),
    ],
)
def test_a_slurm_that_refuses_is_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, programs: dict[str, str], message: str
) -> None:
    monkeypatch.setattr("reptrain.study.slurm._ANSWER_S", 0.1)
    monkeypatch.setenv("PATH", clients(tmp_path / "bin", **programs))
    slurm = SlurmExecutor(tmp_path / "slurm", SlurmOptions.parse(["time=5"]), name="s", poll_s=0.05)
    with pytest.raises(StudyError, match=message):
        slurm.execute([job("one")], lambda *_: JobOutcome("done"), Listener())


_CHILD = """
import signal, sys, time
from pathlib import Path
folder = Path(sys.argv[1])
stopped = []
signal.signal(signal.SIGTERM, lambda number, frame: stopped.append(number))
(folder / "ready").touch()
while not stopped:
    time.sleep(0.01)
if (folder / "next").exists():
    (folder / "latest").write_text((folder / "next").read_text())
sys.exit(3)
"""
_TASK = """
import os, signal, sys, time
from pathlib import Path
from reptrain_launcher.slurm_task import SlurmTask
folder = Path(sys.argv[1])
task = SlurmTask(
    str(folder / "job.json"), str(folder / "log"), str(folder / "exit.json"), str(folder / "latest"),
    stalls=int(sys.argv[2]), checkpoint_before="step-1",
)
def user_signal(number, frame):
    delayed = task.checkpoint()
    again = "none" if delayed is None else f"{delayed.function.stalls} {delayed.function.checkpoint_before}"
    (folder / "again").write_text(again)
    sys.exit(9)
signal.signal(signal.SIGTERM, signal.SIG_IGN)
signal.signal(signal.SIGUSR2, user_signal)
(folder / "started").touch()
task()
"""


class Node:
    """A process as submitit starts it on a node, with a child that is stopped by SIGTERM."""

    def __init__(self, folder: Path, *, stalls: int = 0, path: str | None = None) -> None:
        self.folder = folder
        (folder / "latest").write_text("step-1")
        (folder / "child.py").write_text(_CHILD)
        child = [sys.executable, str(folder / "child.py"), str(folder)]
        (folder / "job.json").write_text(WorkerJob(child, str(folder / "lock")).text())
        environment = os.environ | ({} if path is None else {"PATH": path})
        self.process = subprocess.Popen(
            [sys.executable, "-c", _TASK, str(folder), str(stalls)], env=environment, start_new_session=True
        )
        end = time.monotonic() + 60
        while not (folder / "ready").exists():
            assert time.monotonic() < end
            time.sleep(0.02)

    def signal(self, number: signal.Signals, *, whole_job: bool) -> int:
        """Send a signal to the process, or to all processes of the job as Slurm does; its exit code."""
        if whole_job:
            # The child has a session of its own, which Slurm's tracking of processes includes.
            children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
            for child in children:
                os.kill(int(child), number)
        self.process.send_signal(number)
        return self.process.wait(timeout=60)

    @property
    def exit_code(self) -> int | None:
        path = self.folder / "exit.json"
        return json.loads(path.read_text())["code"] if path.exists() else None


@pytest.fixture
def scontrol(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A `scontrol` on PATH, which is not called."""
    room = tmp_path_factory.mktemp("bin")
    (room / "scontrol").write_text("#!/bin/sh\n")
    (room / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{room}:{os.environ['PATH']}")


@pytest.mark.usefixtures("scontrol")
def test_the_user_signal_stops_the_training_and_asks_for_another_start(tmp_path: Path) -> None:
    node = Node(tmp_path, stalls=2)
    (tmp_path / "next").write_text("step-7")
    # The child would die of the signal if it did not ignore it.
    assert node.signal(signal.SIGUSR2, whole_job=True) == 9
    assert (tmp_path / "again").read_text() == "0 step-7" and node.exit_code is None


@pytest.mark.usefixtures("scontrol")
def test_stops_without_a_new_checkpoint_are_counted_and_end_the_job(tmp_path: Path) -> None:
    node = Node(tmp_path, stalls=MOST_STALLS - 2)
    node.signal(signal.SIGUSR2, whole_job=False)
    assert (tmp_path / "again").read_text() == f"{MOST_STALLS - 1} step-1"
    (tmp_path / "ready").unlink()
    node = Node(tmp_path, stalls=MOST_STALLS - 1)
    node.signal(signal.SIGUSR2, whole_job=False)
    assert (tmp_path / "again").read_text() == "none" and node.exit_code == 3


def test_sigterm_saves_a_checkpoint_and_ends_the_job(tmp_path: Path) -> None:
    node = Node(tmp_path)
    (tmp_path / "next").write_text("step-7")
    assert node.signal(signal.SIGTERM, whole_job=False) == 3
    assert newest_checkpoint(tmp_path / "latest") == "step-7" and node.exit_code == 3


def test_without_scontrol_the_job_ends_with_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import reptrain_launcher.slurm_task as module

    monkeypatch.setattr(module, "_SLURM_FOLDERS", ())
    monkeypatch.setenv("PATH", str(tmp_path))
    task = SlurmTask("job", "log", str(tmp_path / "exit.json"), str(tmp_path / "latest"))

    class Ended:
        def terminate(self) -> None: ...

        def wait(self, limit_s: float = 0) -> int:
            return 3

    task._child = Ended()  # type: ignore[assignment]
    assert task.checkpoint() is None
    assert json.loads((tmp_path / "exit.json").read_text())["code"] == 3


def test_scontrol_in_a_usual_folder_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import reptrain_launcher.slurm_task as module

    (tmp_path / "scontrol").write_text("")
    (tmp_path / "scontrol").chmod(0o755)
    monkeypatch.setattr(module, "_SLURM_FOLDERS", (str(tmp_path),))
    assert module._path_with_scontrol("/bin/nowhere") == f"/bin/nowhere:{tmp_path}"
    assert module._path_with_scontrol(str(tmp_path)) == str(tmp_path)
