"""Several ranks through the deepspeed launcher: the command, its environment, and its run."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from reptrain.errors import LaunchError
from reptrain_launcher.devices import count_gpus
from reptrain_launcher.hostfile import read_hostfile
from reptrain_launcher.process import run_process
from reptrain_launcher.ranks import local_ranks

# DeepSpeed logs every exit code but 0 as an error, that of a clean stop too; `run_launch` reports the others.
_LOG_LEVEL = "--log_level=critical"
Device = Literal["auto", "cpu", "cuda"]


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
) -> list[str]:
    """The command that starts the ranks, each of them ``python -m reptrain train CONFIG``.

    Args:
        config: The run's YAML file.
        gpus: Ranks on each host; None: one for each GPU, or each slot of the hostfile.
        hostfile: Lines of ``HOST slots=N``; None: this machine alone.
        device: As in ``train.device``; on ``cpu``, ranks share the cores.
        overrides: ``key=value`` texts for the run.
        out: The run folder.
        max_minutes: Minutes from a rank's start after which all stop with a checkpoint.
        master_port: Where the ranks meet; None: a free port here, or DeepSpeed's own with a hostfile.

    Raises:
        LaunchError: If there are not as many GPUs, the number is missing where there is none, or the
            hostfile is wrong.
    """
    hosts = None if hostfile is None else read_hostfile(hostfile)
    _check_gpus(gpus, device=device, hosts=hosts)
    command = [sys.executable, "-m", "deepspeed.launcher.runner", _LOG_LEVEL]
    if hosts is not None:
        command.append(f"--hostfile={hostfile}")
        if not {*hosts} <= {"localhost", "127.0.0.1", socket.gethostname()}:
            # With one host in the file DeepSpeed would start the ranks here, whatever its name.
            command.append("--force_multi")
    else:
        # A hostfile that stands at DeepSpeed's own place must not turn a local run into another.
        command.append(f"--hostfile={os.devnull}")
    if gpus is not None:
        command.append(f"--num_accelerators={gpus}")
    if master_port is None and hostfile is None:
        master_port = _free_port()
    if master_port is not None:
        command.append(f"--master_port={master_port}")
    command += ["--no_local_rank", "--module", "reptrain", "train", str(config), *overrides]
    if max_minutes is not None:
        command.append(f"--max-minutes={max_minutes:g}")
    return [*command, "--out", str(out)] if out is not None else command


def launch_environment(
    *, gpus: int | None = None, hostfile: Path | None = None, device: Device = "auto"
) -> dict[str, str]:
    """What the command needs in its environment beside what is there.

    Args:
        gpus: As in `launch_command`.
        hostfile: As in `launch_command`; what this machine lacks says nothing of its hosts.
        device: As in `launch_command`.
    """
    # Two ninjas in turn make DeepSpeed compile its operators anew each time: this Python's own comes first.
    folder = str(Path(sys.executable).parent)
    environment = {"PATH": os.pathsep.join([folder, os.environ.get("PATH", os.defpath)])}
    if device == "cpu" or (hostfile is None and _on_cpu(device)):
        cores = len(os.sched_getaffinity(0))
        threads = os.environ.get("OMP_NUM_THREADS", str(max(1, cores // (gpus or 1))))
        environment |= {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": threads}
    return environment


def shell_line(command: Sequence[str], environment: Mapping[str, str]) -> str:
    """The command with its environment as one line that a shell takes."""
    settings = [f"{name}={shlex.quote(value)}" for name, value in environment.items()]
    return " ".join([*settings, shlex.join(command)])


def run_launch(command: Sequence[str], environment: Mapping[str, str]) -> int:
    """Run the ranks to their end, passing signals on to them.

    Returns:
        The exit code: that of a rank that failed or was stopped; 128 + N where signal N killed the launcher.
    """
    ended = run_process(command, env={**os.environ, **environment}, targets=local_ranks)
    code = ended.returncode if ended.returncode >= 0 else 128 - ended.returncode
    if (message := exit_message(code)) is not None:
        sys.stderr.write(f"error: {message}\n")
    return code


def exit_message(code: int) -> str | None:
    """What an exit code of the launcher says where no rank can say it: that a signal killed one.

    Args:
        code: 128 + N where signal N killed the launcher, 256 - N where it killed a rank.
    """
    if code <= 128:
        return None
    number, who = (256 - code, "a rank") if code > 192 else (code - 128, "the launcher")
    cause = " Often the memory was exhausted: look into the system's log." if number == signal.SIGKILL else ""
    return f"{who} was killed by signal {number}.{cause} The same command resumes from the newest checkpoint."


def _on_cpu(device: Device) -> bool:
    return device == "cpu" or (device == "auto" and count_gpus() == 0)


def _check_gpus(gpus: int | None, *, device: Device, hosts: Mapping[str, int] | None) -> None:
    if gpus is not None and gpus < 1:
        raise LaunchError("--gpus", got=gpus, rule="must be at least 1", remedy="Leave it out for all GPUs.")
    if hosts is not None:
        small = {host: slots for host, slots in hosts.items() if slots < (gpus or 1)}
        if small:
            host, slots = next(iter(small.items()))
            raise LaunchError(
                "--gpus",
                got=gpus,
                rule=f"must be at most the {slots} slots of {host}",
                remedy="Lower it, or mend the hostfile.",
            )
    elif _on_cpu(device):
        if gpus is None:
            raise LaunchError(
                "--gpus",
                got="nothing",
                rule="must say how many ranks to start where no GPU tells it",
                remedy="Pass --gpus 2 for two ranks on the CPU.",
            )
    elif gpus is not None and gpus > count_gpus():
        raise LaunchError(
            "--gpus",
            got=gpus,
            rule=f"must be at most the {count_gpus()} GPUs here",
            remedy="Lower it, or pass --hostfile.",
        )


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
