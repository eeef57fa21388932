"""Launching ranks with the deepspeed launcher: its command, environment and exit code."""

from __future__ import annotations

import base64
import json
import os
import re
import shlex
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, NamedTuple

from reptrain.errors import LaunchError
from reptrain_launcher.devices import visible_gpus
from reptrain_launcher.forwarding import deepspeed_argument
from reptrain_launcher.hostfile import read_hostfile, written_for_deepspeed
from reptrain_launcher.process import run_process
from reptrain_launcher.ranks import local_ranks

# DeepSpeed logs every exit code except 0 as an error, even that of a clean stop; `run_launch` reports errors.
_LOG_LEVEL = "--log_level=critical"
Device = Literal["auto", "cpu", "cuda"]
_NAMES_A_GPU = re.compile(r"\s*([0-9]|GPU-|MIG-)")


def launch_command(
    config: Path,
    *,
    gpus: int | None = None,
    hostfile: Path | None = None,
    device: Device = "auto",
    overrides: Sequence[str] = (),
    out: Path | None = None,
    max_minutes: float | None = None,
    master_port: int | None = None,
    master_addr: str | None = None,
    ssh_port: int | None = None,
    exclude: Sequence[str] = (),
) -> list[str]:
    """The command that starts the ranks; each runs ``python -m reptrain train CONFIG``.

    On this machine the ranks use the first GPUs of CUDA_VISIBLE_DEVICES. DeepSpeed's runner would ignore the
    variable and count from GPU 0, so its per-node launcher is called directly.

    Args:
        config: The run's YAML file.
        gpus: Ranks on each host; None: one per GPU, or per slot of the hostfile.
        hostfile: File with lines of ``HOST slots=N``; None: this machine only.
        device: As in ``train.device``; on ``cpu`` the ranks share the cores.
        overrides: ``key=value`` overrides of the config.
        out: The run folder.
        max_minutes: Time limit in minutes from the start of a rank; then all ranks stop with a checkpoint.
        master_port: Port of the rendezvous; None: a free port, or DeepSpeed's default with other hosts.
        master_addr: Address of the first host; None: the first address that ``hostname -I`` prints on it.
        ssh_port: Port of sshd on the hosts; None: that of the ssh configuration.
        exclude: Hosts of the hostfile to leave out.

    Raises:
        LaunchError: If there are too few GPUs, ``gpus`` is missing without a GPU, the hostfile is wrong, or
            CUDA_VISIBLE_DEVICES cannot be respected on its hosts.
    """
    hosts = None if hostfile is None else read_hostfile(hostfile, exclude)
    _check_gpus(gpus, device=device, hosts=hosts)
    train = train_arguments(config, overrides=overrides, out=out, max_minutes=max_minutes)
    if hostfile is None or hosts is None or is_this_machine(hosts):
        num_ranks = gpus if gpus is not None or hosts is None else next(iter(hosts.values()))
        command = _local_command(num_ranks, device=device, master_port=master_port)
    else:
        if device != "cpu":
            _check_hosts_use_visible(hosts, gpus)
        command = [sys.executable, "-m", "deepspeed.launcher.runner", _LOG_LEVEL]
        command.append(f"--hostfile={written_for_deepspeed(hostfile, hosts)}")
        if len(hosts) == 1:
            # Otherwise DeepSpeed starts the ranks of a single host on this machine, whatever its name.
            command.append("--force_multi")
        if gpus is not None:
            command.append(f"--num_accelerators={gpus}")
        if master_port is not None:
            command.append(f"--master_port={master_port}")
        if master_addr is not None:
            command.append(f"--master_addr={master_addr}")
        if ssh_port is not None:
            command.append(f"--ssh_port={ssh_port}")
        train = [deepspeed_argument(word) for word in train]
    return [*command, "--no_local_rank", "--module", "reptrain", *train]


def train_arguments(
    config: Path, *, overrides: Sequence[str] = (), out: Path | None = None, max_minutes: float | None = None
) -> list[str]:
    """The arguments of ``reptrain``: ``train CONFIG ...``."""
    words = ["train", str(config), *overrides]
    if max_minutes is not None:
        words.append(f"--max-minutes={max_minutes:g}")
    return [*words, "--out", str(out)] if out is not None else words


def _local_command(num_ranks: int | None, *, device: Device, master_port: int | None) -> list[str]:
    """DeepSpeed's per-node launcher, with one device per rank."""
    devices = _listed_for_cpu(num_ranks or 0) if _on_cpu(device) else visible_gpus()[:num_ranks]
    world = base64.urlsafe_b64encode(json.dumps({"localhost": [*devices]}).encode()).decode()
    return [
        *(sys.executable, "-u", "-m", "deepspeed.launcher.launch", _LOG_LEVEL),
        f"--world_info={world}",
        "--master_addr=127.0.0.1",
        f"--master_port={free_port() if master_port is None else master_port}",
    ]


def _listed_for_cpu(num_ranks: int) -> Sequence[int | str]:
    """Devices of ranks on the CPU, which DeepSpeed lists in CUDA_VISIBLE_DEVICES. Hidden GPUs stay hidden."""
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is None:
        return range(num_ranks)
    entries = [entry or "-1" for entry in listed.split(",")]
    return [*entries, *["-1"] * num_ranks][:num_ranks]


def launch_environment(
    *,
    gpus: int | None = None,
    hostfile: Path | None = None,
    device: Device = "auto",
    exclude: Sequence[str] = (),
) -> dict[str, str]:
    """Environment variables for the command, in addition to the current ones.

    Args:
        gpus: As in `launch_command`.
        hostfile: As in `launch_command`; with other hosts, this machine's GPUs are not considered.
        device: As in `launch_command`.
        exclude: As in `launch_command`.
    """
    # DeepSpeed recompiles its operators whenever it finds another ninja: put that of this Python first.
    folder = str(Path(sys.executable).parent)
    environment = {"PATH": os.pathsep.join([folder, os.environ.get("PATH", os.defpath)])}
    hosts = None if hostfile is None else read_hostfile(hostfile, exclude)
    is_local = hosts is None or is_this_machine(hosts)
    if device == "cpu" or (is_local and _on_cpu(device)):
        cores = len(os.sched_getaffinity(0))
        ranks = gpus or max((hosts or {"": 1}).values())
        threads = os.environ.get("OMP_NUM_THREADS", str(max(1, cores // ranks)))
        environment |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": threads}
    return environment


def shell_line(command: Sequence[str], environment: Mapping[str, str]) -> str:
    """The command and its environment as one shell line."""
    settings = [f"{name}={shlex.quote(value)}" for name, value in environment.items()]
    return " ".join([*settings, shlex.join(command)])


class Finished(NamedTuple):
    """How a launch ended."""

    code: int
    stopped: bool


def run_launch(command: Sequence[str], environment: Mapping[str, str]) -> Finished:
    """Run the command until all ranks have ended, and forward signals to the ranks.

    Returns:
        The exit code of a rank that failed or was stopped, 128 + N if signal N killed the launcher; and
        whether a signal was forwarded.
    """
    ended = run_process(command, env={**os.environ, **environment}, targets=local_ranks)
    code = ended.returncode if ended.returncode >= 0 else 128 - ended.returncode
    if (message := exit_message(code)) is not None:
        sys.stderr.write(f"error: {message}\n")
    return Finished(code, ended.signal is not None)


def exit_message(code: int) -> str | None:
    """Message for a process that was killed by a signal; None for other exit codes.

    Args:
        code: 128 + N if signal N killed the launcher, 256 - N if it killed a rank.
    """
    if code <= 128:
        return None
    number, who = (256 - code, "a rank") if code > 192 else (code - 128, "the launcher")
    cause = " The usual cause is lack of memory: see the system log." if number == signal.SIGKILL else ""
    return f"{who} was killed by signal {number}.{cause} The same command resumes from the last checkpoint."


def _on_cpu(device: Device) -> bool:
    return device == "cpu" or (device == "auto" and not visible_gpus())


def _own_names() -> set[str]:
    return {"localhost", "127.0.0.1", socket.gethostname()}


def is_this_machine(hosts: Mapping[str, int]) -> bool:
    """Whether the only host is this machine, so that no ssh is needed."""
    return len(hosts) == 1 and set(hosts) <= _own_names()


def check_ranks_of_hosts(gpus: int | None, hosts: Mapping[str, int] | None) -> None:
    """Check the number of ranks on each host.

    Args:
        gpus: Ranks on each host; None: one for each slot or GPU.
        hosts: The slots of each host; None: this machine.

    Raises:
        LaunchError: If it is not positive, or more than the slots of a host.
    """
    if gpus is not None and gpus < 1:
        raise LaunchError("--gpus", got=gpus, rule="must be at least 1", remedy="Omit it to use all GPUs.")
    for host, slots in (hosts or {}).items():
        if slots < (gpus or 1):
            raise LaunchError(
                "--gpus",
                got=gpus,
                rule=f"must be at most the {slots} slots of {host}",
                remedy="Lower it, or fix the hostfile.",
            )


def _check_gpus(gpus: int | None, *, device: Device, hosts: Mapping[str, int] | None) -> None:
    check_ranks_of_hosts(gpus, hosts)
    if hosts is not None and not is_this_machine(hosts):
        return
    wanted = gpus if gpus is not None or hosts is None else next(iter(hosts.values()))
    if _on_cpu(device):
        if wanted is None:
            raise LaunchError(
                "--gpus",
                got="nothing",
                rule=f"must be the number of ranks if there is no GPU{_listed()}",
                remedy="Pass --gpus 2 for two ranks on the CPU.",
            )
    elif not visible_gpus() or (wanted is not None and wanted > len(visible_gpus())):
        raise LaunchError(
            "--gpus" if gpus is not None or hosts is None else "slots",
            got="nothing" if wanted is None else wanted,
            rule=f"must be at most the number of visible GPUs, {len(visible_gpus())}{_listed()}",
            remedy="Lower it, list more GPUs in CUDA_VISIBLE_DEVICES, or pass --hostfile.",
        )


def _listed() -> str:
    """The value of CUDA_VISIBLE_DEVICES, for a message."""
    value = os.environ.get("CUDA_VISIBLE_DEVICES")
    return "" if value is None else f" (CUDA_VISIBLE_DEVICES is {value[:60]!r})"


def _check_hosts_use_visible(hosts: Mapping[str, int], gpus: int | None) -> None:
    """Refuse a CUDA_VISIBLE_DEVICES with other GPUs than 0 to N-1, which DeepSpeed uses on other hosts."""
    value = os.environ.get("CUDA_VISIBLE_DEVICES")
    if value is None:
        return
    # An empty list hides this machine's GPUs, but the hosts need not include this machine.
    if not _own_names() & hosts.keys() and not _NAMES_A_GPU.match(value):
        return
    largest = gpus or max(hosts.values())
    if not {str(index) for index in range(largest)} <= {entry.strip() for entry in value.split(",")}:
        raise LaunchError(
            "CUDA_VISIBLE_DEVICES",
            got=repr(value[:60]),
            rule=f"must include 0 to {largest - 1} with --hostfile: ranks use the first GPUs of a host",
            remedy="Unset it if the first GPUs are available, or start the ranks with srun or torchrun.",
        )


def free_port() -> int:
    """A port of this machine that no process listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
