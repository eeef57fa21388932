"""Child processes: exit code, output and forwarded signals."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from time_limits import START_S

from reptrain_launcher import run_process
from reptrain_launcher.ranks import local_ranks

WAIT = """
import signal, sys, time
signal.signal(signal.{name}, lambda *_: sys.exit(7))
print("ready", flush=True)
time.sleep(60)
"""


def send_when_ready(output: Path, number: int, *, times: int = 1) -> object:
    """A poll callback that signals this process once the child is ready."""
    left = [times]

    def listen() -> None:
        if left[0] and output.exists() and "ready" in output.read_text():
            left[0] -= 1
            os.kill(os.getpid(), number)

    return listen


def test_run_process_returns_the_exit_code_and_appends_the_output(tmp_path: Path) -> None:
    output = tmp_path / "out.log"
    for word in ("one", "two"):
        code = f"import sys; print('{word}', file=sys.stderr); sys.exit(5)"
        assert run_process([sys.executable, "-c", code], output=output) == (5, None)
    assert output.read_text() == "one\ntwo\n"


@pytest.fixture
def nothing_ignored() -> Iterator[None]:
    """Default handlers: background processes ignore SIGHUP and SIGINT, which `run_process` keeps."""
    usual = {signal.SIGHUP: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
    before = {number: signal.signal(number, handler) for number, handler in usual.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize(
    ("sent", "got"),
    [("SIGINT", "SIGINT"), ("SIGTERM", "SIGTERM"), ("SIGUSR1", "SIGUSR1"), ("SIGHUP", "SIGTERM")],
)
def test_run_process_forwards_signals_and_survives(
    tmp_path: Path, sent: str, got: str, nothing_ignored: None
) -> None:
    output, number = tmp_path / "out.log", getattr(signal, sent)
    before = signal.getsignal(number)
    ended = run_process(
        [sys.executable, "-c", WAIT.format(name=got)],
        output=output,
        on_poll=send_when_ready(output, number),
        poll_s=0.05,
    )
    assert ended == (7, number)
    assert signal.getsignal(number) is before


def test_run_process_kills_a_child_after_the_grace_period(tmp_path: Path) -> None:
    output = tmp_path / "out.log"
    code = (
        "import signal, time; signal.signal(15, signal.SIG_IGN); print('ready', flush=True); time.sleep(60)"
    )
    ended = run_process(
        [sys.executable, "-c", code],
        output=output,
        on_poll=send_when_ready(output, signal.SIGTERM),
        poll_s=0.05,
        grace_s=0.2,
    )
    assert ended == (-signal.SIGKILL, signal.SIGTERM)


def test_run_process_leaves_ignored_signals_ignored(tmp_path: Path) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        output = tmp_path / "out.log"
        code = "import time; print('ready', flush=True); time.sleep(0.5)"
        listen = send_when_ready(output, signal.SIGHUP)
        assert run_process([sys.executable, "-c", code], output=output, on_poll=listen, poll_s=0.05) == (
            0,
            None,
        )
    finally:
        signal.signal(signal.SIGHUP, before)


def test_run_process_works_outside_the_main_thread() -> None:
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(run_process(["true"]).returncode))
    thread.start()
    thread.join(timeout=START_S)
    assert codes == [0]


def test_run_process_signals_the_targets_instead_of_the_child(tmp_path: Path) -> None:
    # A parent that would die of the signal and lose the exit code, and below it the one who handles it.
    rank = WAIT.format(name="SIGTERM")
    code = f"import subprocess, sys; sys.exit(subprocess.call([sys.executable, '-c', {rank!r}]))"
    output = tmp_path / "out.log"

    def children(pid: int) -> list[int]:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]

    ended = run_process(
        [sys.executable, "-c", code],
        output=output,
        on_poll=send_when_ready(output, signal.SIGTERM),
        targets=children,
        poll_s=0.05,
    )
    assert ended == (7, signal.SIGTERM)


def write_process(proc: Path, pid: int, parent: int, *command: str, name: str = "python") -> None:
    folder = proc / str(pid)
    folder.mkdir()
    (folder / "stat").write_text(f"{pid} ({name}) S {parent} 1 1 0")
    (folder / "cmdline").write_bytes(b"\0".join(word.encode() for word in command))


def test_local_ranks_are_the_children_of_the_node_launcher_below_a_runner(tmp_path: Path) -> None:
    write_process(tmp_path, 10, 1, "python", "-m", "deepspeed.launcher.runner")
    write_process(tmp_path, 11, 10, "python", "-u", "-m", "deepspeed.launcher.launch", name="a) (b c")
    write_process(tmp_path, 12, 11, "python", "-m", "reptrain", "train")
    write_process(tmp_path, 13, 11, "python", "-m", "reptrain", "train")
    write_process(tmp_path, 14, 13, "a compiler below a rank")
    write_process(tmp_path, 20, 1, "python", "-m", "deepspeed.launcher.launch")
    write_process(tmp_path, 21, 20, "a rank of another run")
    (tmp_path / "meminfo").touch()
    assert sorted(local_ranks(10, tmp_path)) == [12, 13]


def test_local_ranks_are_the_children_of_the_node_launcher(tmp_path: Path) -> None:
    write_process(tmp_path, 10, 1, "python", "-u", "-m", "deepspeed.launcher.launch")
    write_process(tmp_path, 11, 10, "python", "-m", "reptrain", "train")
    assert local_ranks(10, tmp_path) == [11]


def test_local_ranks_is_the_launcher_while_there_are_no_ranks(tmp_path: Path) -> None:
    write_process(tmp_path, 10, 1, "python", "-m", "deepspeed.launcher.runner")
    assert local_ranks(10, tmp_path) == [10]
