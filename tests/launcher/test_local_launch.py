"""The deepspeed launcher's command, its environment, and a run of it."""

from __future__ import annotations

import base64
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from reptrain.errors import LaunchError
from reptrain_launcher import launch_command, launch_environment, run_launch, shell_line
from reptrain_launcher.devices import count_gpus, visible_gpus
from reptrain_launcher.local import exit_message

CONFIG = Path("a config.yaml")


def devices_in(command: Sequence[str]) -> list[int | str]:
    """Devices of this machine's ranks in a command of DeepSpeed's per-node launcher."""
    world = next(word.partition("=")[2] for word in command if word.startswith("--world_info="))
    devices: list[int | str] = json.loads(base64.urlsafe_b64decode(world))["localhost"]
    return devices


def make_devices(folder: Path, count: int) -> Path:
    for index in range(count):
        (folder / f"nvidia{index}").touch()
    return folder


@pytest.fixture
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reptrain_launcher.local.visible_gpus", tuple)


@pytest.fixture
def four_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("reptrain_launcher.local.visible_gpus", lambda: (0, 1, 2, 3))


@pytest.mark.usefixtures("no_gpu")
def test_launch_command_starts_the_ranks_as_train_processes() -> None:
    command = launch_command(CONFIG, gpus=2, overrides=["train.zero_stage=1"], out=Path("runs/x"))
    assert command[:4] == [sys.executable, "-u", "-m", "deepspeed.launcher.launch"]
    assert devices_in(command) == [0, 1]
    tail = ["--module", "reptrain", "train", "a config.yaml", "train.zero_stage=1", "--out", "runs/x"]
    assert command[-7:] == tail


@pytest.mark.usefixtures("no_gpu")
def test_launch_command_passes_the_time_limit() -> None:
    command = launch_command(CONFIG, gpus=2, device="cpu", out=Path("runs/x"), max_minutes=7.5)
    assert command[command.index("train") :] == [
        *("train", str(CONFIG), "--max-minutes=7.5", "--out", "runs/x"),
    ]


def test_launch_command_uses_another_port_for_each_local_run() -> None:
    ports = {word for _ in range(3) for word in launch_command(CONFIG, gpus=2) if "master_port" in word}
    assert len(ports) == 3
    assert "--master_port=123" in launch_command(CONFIG, gpus=2, master_port=123)


def test_launch_command_uses_the_slots_of_a_hostfile(tmp_path: Path) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("a slots=8\nb slots=4\n")
    command = launch_command(CONFIG, hostfile=hosts)
    assert f"--hostfile={hosts}" in command
    assert not [word for word in command if "num_accelerators" in word or "master_port" in word]
    with pytest.raises(LaunchError, match="at most the 4 slots of b"):
        launch_command(CONFIG, hostfile=hosts, gpus=5)


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize(
    ("gpus", "error"), [(None, "must be the number of ranks"), (0, "must be at least 1")]
)
def test_launch_command_requires_a_number_of_ranks_without_a_gpu(gpus: int | None, error: str) -> None:
    with pytest.raises(LaunchError, match=error):
        launch_command(CONFIG, gpus=gpus)


@pytest.mark.usefixtures("four_gpus")
def test_launch_command_refuses_more_ranks_than_gpus() -> None:
    with pytest.raises(LaunchError, match="at most the number of visible GPUs, 4, but got 5"):
        launch_command(CONFIG, gpus=5)
    assert devices_in(launch_command(CONFIG, gpus=5, device="cpu")) == [0, 1, 2, 3, 4]
    assert devices_in(launch_command(CONFIG)) == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("visible", "gpus", "devices"),
    [
        ("2,3", 2, [2, 3]),
        ("3, 1", None, [3, 1]),
        ("3,1,0", 2, [3, 1]),
        ("GPU-8f6a,GPU-11", None, ["GPU-8f6a", "GPU-11"]),
        ("MIG-GPU-8f6a/1/0", 1, ["MIG-GPU-8f6a/1/0"]),
    ],
)
def test_launch_command_gives_ranks_the_visible_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: str, gpus: int | None, devices: list[int | str]
) -> None:
    dev = make_devices(tmp_path, 4)
    monkeypatch.setattr(
        "reptrain_launcher.local.visible_gpus", lambda: visible_gpus(dev, tmp_path / "no driver")
    )
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert devices_in(launch_command(CONFIG, gpus=gpus)) == devices
    hosts = tmp_path / "hosts"
    hosts.write_text(f"localhost slots={len(devices)}\n")
    assert devices_in(launch_command(CONFIG, gpus=gpus, hostfile=hosts)) == devices
    with pytest.raises(LaunchError, match=r"number of visible GPUs.*CUDA_VISIBLE_DEVICES is"):
        launch_command(CONFIG, gpus=4)


def test_ranks_see_the_visible_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """DeepSpeed's launcher passes the names to the ranks, UUIDs too."""
    dev = make_devices(tmp_path, 4)
    monkeypatch.setattr(
        "reptrain_launcher.local.visible_gpus", lambda: visible_gpus(dev, tmp_path / "no driver")
    )
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    (tmp_path / "probe.py").write_text(
        "import os, pathlib\n"
        "pathlib.Path(__file__).with_name(os.environ['RANK']).write_text(os.environ['CUDA_VISIBLE_DEVICES'])"
    )
    # The last list hides all GPUs, so the ranks run on the CPU and must not see any either.
    for listed, seen in (("GPU-2,GPU-3", "GPU-2,GPU-3"), ("-1", "-1,-1")):
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)
        command = launch_command(CONFIG, gpus=2)
        subprocess.run([*command[: command.index("--module")], str(tmp_path / "probe.py")], check=True)
        assert [(tmp_path / rank).read_text() for rank in "01"] == [seen, seen]


@pytest.mark.usefixtures("no_gpu")
@pytest.mark.parametrize(
    ("listed", "devices"),
    [
        (None, [0, 1]),
        ("2,3", ["2", "3"]),
        ("3", ["3", "-1"]),
        ("0,1,2", ["0", "1"]),
        ("", ["-1", "-1"]),
        ("NoDevFiles", ["NoDevFiles", "-1"]),
    ],
)
def test_launch_command_shows_ranks_on_the_cpu_no_hidden_gpu(
    monkeypatch: pytest.MonkeyPatch, listed: str | None, devices: list[int | str]
) -> None:
    """With 0,1 instead, ranks with ``train.device: auto`` would find GPUs that the user has hidden."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if listed is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)
    assert devices_in(launch_command(CONFIG, gpus=2)) == devices
    assert devices_in(launch_command(CONFIG, gpus=2, device="cpu")) == devices


@pytest.mark.parametrize(
    ("visible", "refused"),
    [("2,3", True), ("0", True), ("GPU-1,GPU-2", True), ("1,0", False), ("0,1,2", False), ("", False)],
)
def test_launch_command_refuses_hosts_whose_first_gpus_are_not_visible(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, visible: str, refused: bool
) -> None:
    hosts = tmp_path / "hosts"
    hosts.write_text("a slots=2\nb slots=2\n")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    if refused:
        with pytest.raises(LaunchError, match="CUDA_VISIBLE_DEVICES: must include 0 to 1"):
            launch_command(CONFIG, hostfile=hosts)
    else:
        assert f"--hostfile={hosts}" in launch_command(CONFIG, hostfile=hosts)
    assert launch_command(CONFIG, hostfile=hosts, device="cpu")


def test_launch_command_writes_a_plain_hostfile_for_deepspeed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    hosts = tmp_path / "hosts"
    hosts.write_bytes(b"\xef\xbb\xbfa max_slots=8 slots=4\r\n\r\nb\tslots=2 # half\n")
    word = next(word for word in launch_command(CONFIG, hostfile=hosts) if word.startswith("--hostfile="))
    assert Path(word.partition("=")[2]).read_bytes() == b"a slots=4\nb slots=2\n"


@pytest.mark.usefixtures("four_gpus")
def test_launch_environment_shares_the_cores_on_a_cpu_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)))
    assert launch_environment(gpus=4).keys() == {"PATH"}
    on_cpu = launch_environment(gpus=4, device="cpu")
    assert (on_cpu["DS_ACCELERATOR"], on_cpu["OMP_NUM_THREADS"]) == ("cpu", "2")
    assert launch_environment(gpus=64, device="cpu")["OMP_NUM_THREADS"] == "1"
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert launch_environment(gpus=4, device="cpu")["OMP_NUM_THREADS"] == "5"


def test_shell_line_round_trips_through_a_shell() -> None:
    line = shell_line(["python", "a b", "x=1"], {"A": "1 2"})
    assert shlex.split(line) == ["A=1 2", "python", "a b", "x=1"]
    assert subprocess.check_output(["sh", "-c", shell_line(["printenv", "A"], {"A": "1 $2"})]) == b"1 $2\n"


@pytest.mark.parametrize(
    ("listed", "shown"),
    [
        (None, (0, 1, 2, 3)),
        ("", ()),
        ("-1", ()),
        ("none", ()),
        ("NoDevFiles", ()),
        ("0,-1,1", (0,)),
        ("-1,0", ()),
        ("0,9,1", (0,)),
        ("7", ()),
        ("0,0", ()),
        ("0,1,0", ()),
        (" 3 , 1 ", (3, 1)),
        ("0,,1", (0,)),
        (",0", ()),
        ("1,", (1,)),
        ("0 1", ()),
        ("0;1", ()),
        ("all", ()),
        ("0x1", ()),
        ("9" * 300, ()),
        ("٣", ()),
        ("2,GPU-a", (2,)),
        ("GPU-a1,GPU-b", ("GPU-a1-full", "GPU-b-full")),
        ("GPU-b,2", ("GPU-b-full",)),
        ("GPU-a", ()),
        ("GPU-b,GPU-b-full", ()),
        ("GPU-b,GPU-x,GPU-a1", ("GPU-b-full",)),
        ("gpu-b", ()),
        ("MIG-c,MIG-d", ("MIG-c",)),
        ("MIG-GPU-a1/3/0", ("MIG-GPU-a1/3/0",)),
    ],
)
def test_visible_gpus_match_cuda(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, listed: str | None, shown: tuple[int | str, ...]
) -> None:
    dev = make_devices(tmp_path, 4)
    for name in ("nvidiactl", "nvidia-uvm", "null"):
        (tmp_path / name).touch()
    for place, uuid in enumerate(("a1", "a2", "b", "c")):
        (tmp_path / "gpus" / str(place)).mkdir(parents=True)
        text = f"Model: \t NVIDIA H200\nGPU UUID: \t GPU-{uuid}-full\n"
        (tmp_path / "gpus" / str(place) / "information").write_text(text)
    if listed is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", listed)
    assert visible_gpus(dev, tmp_path / "gpus") == shown
    assert visible_gpus(tmp_path / "gpus", tmp_path) == ()
    if not listed or "GPU" not in listed:
        assert count_gpus(dev) == len(shown)


def test_run_launch_returns_the_exit_code_and_sets_the_environment() -> None:
    code = "import os, sys; sys.exit(int(os.environ['CODE']))"
    assert run_launch([sys.executable, "-c", code], {"CODE": "3"}).code == 3
    kill = "import os; os.kill(os.getpid(), 9)"
    assert run_launch([sys.executable, "-c", kill], {}).code == 128 + signal.SIGKILL


def test_run_launch_reports_a_rank_that_a_signal_killed(capfd: pytest.CaptureFixture[str]) -> None:
    # DeepSpeed's launcher ends with the negative code of the rank.
    for code, words in (
        (-9, "a rank was killed by signal 9. The usual cause"),
        (3, ""),
        (2, ""),
        (1, ""),
    ):
        assert run_launch([sys.executable, "-c", f"import sys; sys.exit({code})"], {}).code == code % 256
        printed = capfd.readouterr().err
        assert words in printed and bool(printed) == bool(words)
    assert exit_message(137) is not None and "the launcher" in str(exit_message(137))
