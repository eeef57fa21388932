"""The deepspeed launcher's command, its environment, and a run of it."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from reptrain.errors import LaunchError
from reptrain_launcher import launch_command, launch_environment, run_launch, shell_line
from reptrain_launcher.devices import count_gpus
from reptrain_launcher.local import exit_message

CONFIG = Path("a config.yaml")


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reptrain_launcher.local.count_gpus", lambda: 0)


@pytest.fixture
def four_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reptrain_launcher.local.count_gpus", lambda: 4)


@pytest.mark.usefixtures("no_gpu")
def test_launch_command_starts_the_ranks_as_train_processes() -> None:
    command = launch_command(CONFIG, gpus=2, overrides=["train.zero_stage=1"], out=Path("runs/x"))
    assert command[:3] == [sys.executable, "-m", "deepspeed.launcher.runner"]
    assert "--num_accelerators=2" in command
    tail = ["--module", "reptrain", "train", "a config.yaml", "train.zero_stage=1", "--out", "runs/x"]
    assert command[-7:] == tail


@pytest.mark.usefixtures("no_gpu")
def test_launch_command_passes_the_time_limit_on() -> None:
    command = launch_command(CONFIG, gpus=2, device="cpu", out=Path("runs/x"), max_minutes=7.5)
    assert command[command.index("train") :] == [
        *("train", str(CONFIG), "--max-minutes=7.5", "--out", "runs/x"),
    ]


def test_launch_command_meets_at_another_port_for_each_local_run() -> None:
    ports = {word for _ in range(3) for word in launch_command(CONFIG, gpus=2) if "master_port" in word}
    assert len(ports) == 3
    assert "--master_port=123" in launch_command(CONFIG, gpus=2, master_port=123)


def test_launch_command_takes_the_slots_of_a_hostfile(tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("a slots=8\nb slots=4\n")
    command = launch_command(CONFIG, hostfile=hosts)
    assert f"--hostfile={hosts}" in command
    assert not [word for word in command if "num_accelerators" in word or "master_port" in word]
    with pytest.raises(LaunchError, match="at most the 4 slots of b"):
        launch_command(CONFIG, hostfile=hosts, gpus=5)


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize(("gpus", "error"), [(None, "must say how many ranks"), (0, "must be at least 1")])
def test_launch_command_refuses_ranks_that_nothing_tells(gpus: int | None, error: str) -> None:
    with pytest.raises(LaunchError, match=error):
        launch_command(CONFIG, gpus=gpus)


@pytest.mark.usefixtures("four_gpus")
def test_launch_command_refuses_more_ranks_than_gpus() -> None:
    with pytest.raises(LaunchError, match="at most the 4 GPUs here, but got 5"):
        launch_command(CONFIG, gpus=5)
    assert launch_command(CONFIG, gpus=5, device="cpu")
    assert launch_command(CONFIG)


@pytest.mark.usefixtures("four_gpus")
def test_launch_environment_shares_the_cores_on_a_cpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    assert launch_environment(gpus=4).keys() == {"PATH"}
    on_cpu = launch_environment(gpus=4, device="cpu")
    assert (on_cpu["DS_ACCELERATOR"], on_cpu["OMP_NUM_THREADS"]) == ("cpu", "2")
    assert launch_environment(gpus=64, device="cpu")["OMP_NUM_THREADS"] == "1"
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert launch_environment(gpus=4, device="cpu")["OMP_NUM_THREADS"] == "5"


def test_shell_line_is_what_a_shell_takes_apart_again() -> None:
    line = shell_line(["python", "a b", "x=1"], {"A": "1 2"})
    assert shlex.split(line) == ["A=1 2", "python", "a b", "x=1"]
    assert subprocess.check_output(["sh", "-c", shell_line(["printenv", "A"], {"A": "1 $2"})]) == b"1 $2\n"


def test_count_gpus_counts_devices_that_are_visible(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("nvidia0", "nvidia1", "nvidia10", "nvidiactl", "nvidia-uvm", "null"):
        (tmp_path / name).touch()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert count_gpus(tmp_path) == 3
    for visible, count in (("0,10", 2), ("", 0), ("-1", 0)):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
        assert count_gpus(tmp_path) == count


def test_run_launch_returns_the_exit_code_and_sets_the_environment() -> None:
    code = "import os, sys; sys.exit(int(os.environ['CODE']))"
    assert run_launch([sys.executable, "-c", code], {"CODE": "3"}) == 3
    kill = "import os; os.kill(os.getpid(), 9)"
    assert run_launch([sys.executable, "-c", kill], {}) == 128 + signal.SIGKILL


def test_run_launch_reports_a_rank_that_a_signal_killed(capfd: pytest.CaptureFixture[str]) -> None:
    # DeepSpeed's launcher ends with the negative code of the rank.
    for code, words in ((-9, "a rank was killed by signal 9. Often the memory"), (3, ""), (2, ""), (1, "")):
        assert run_launch([sys.executable, "-c", f"import sys; sys.exit({code})"], {}) == code % 256
        printed = capfd.readouterr().err
        assert words in printed and bool(printed) == bool(words)
    assert exit_message(137) is not None and "the launcher" in str(exit_message(137))
