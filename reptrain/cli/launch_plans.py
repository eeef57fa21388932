"""The command or the script of a launch: through deepspeed, torchrun, mpirun or Slurm."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from reptrain.errors import LaunchError

if TYPE_CHECKING:
    from reptrain.config import RunConfig


class LaunchSettings(NamedTuple):
    """The options of a launch, and the run that they start."""

    config: Path
    loaded: RunConfig
    """The run, with its overrides."""
    overrides: list[str]
    out: Path | None
    run: Path
    """The run folder: ``out``, or the default."""
    gpus: int | None
    hostfile: Path | None
    exclude: list[str]
    master_addr: str | None
    master_port: int | None
    ssh_port: int | None
    extra: dict[str, str]
    """Variables to set for the ranks."""
    max_minutes: float | None

    def train(self) -> list[str]:
        """The arguments of the ranks."""
        from reptrain_launcher.local import train_arguments

        return train_arguments(
            self.config, overrides=self.overrides, out=self.out, max_minutes=self.max_minutes
        )


class LaunchPlan(NamedTuple):
    """What a launch runs, and the files that it needs."""

    command: list[str]
    environment: dict[str, str]
    text: str
    """The exact command or script."""
    files: dict[Path, str]
    secrets: dict[str, str]
    """Sent in a file; empty if the launcher sends the whole environment."""


def deepspeed_plan(given: LaunchSettings) -> LaunchPlan:
    """The launch by DeepSpeed's launcher: on this machine, or by pdsh on the hosts of the hostfile."""
    from reptrain_launcher import launch_command, read_hostfile, shell_line
    from reptrain_launcher.forwarding import SECRETS_FILE, deepspeed_file, forwarded, split_secrets
    from reptrain_launcher.local import is_this_machine

    command = launch_command(
        given.config,
        gpus=given.gpus,
        hostfile=given.hostfile,
        device=given.loaded.train.device,
        overrides=given.overrides,
        out=given.out,
        max_minutes=given.max_minutes,
        master_port=given.master_port,
        master_addr=given.master_addr,
        ssh_port=given.ssh_port,
        exclude=given.exclude,
    )
    environment = _environment(given, given.gpus)
    if given.hostfile is None or is_this_machine(read_hostfile(given.hostfile, given.exclude)):
        return _sent_as_is(command, environment, given.extra)
    own = {name: value for name, value in environment.items() if name != "PATH"}
    sent, secrets = split_secrets(forwarded(os.environ, own | given.extra))
    if secrets:
        sent[SECRETS_FILE] = str(beside(given.run, "secrets").absolute())
    listed = beside(given.run, "env").absolute()
    environment["DS_ENV_FILE"] = str(listed)
    files = {listed: deepspeed_file(sent)}
    return LaunchPlan(command, environment, shell_line(command, environment), files, secrets)


def torchrun_plan(given: LaunchSettings, node_rank: int | None) -> LaunchPlan:
    """The launch by torchrun, which is started on each host."""
    from reptrain_launcher.engines import torchrun_command

    hosts, gpus = _hosts(given)
    command = torchrun_command(
        given.train(), hosts=hosts, gpus=gpus, node_rank=node_rank, master_addr=given.master_addr,
        master_port=given.master_port,
    )  # fmt: skip
    return _sent_as_is(command, _environment(given, gpus), given.extra)


def mpi_plan(given: LaunchSettings) -> LaunchPlan:
    """The launch by Open MPI's mpirun."""
    from reptrain_launcher.engines import mpi_command
    from reptrain_launcher.forwarding import forwarded

    hosts, gpus = _hosts(given)
    environment = _environment(given, gpus)
    command = mpi_command(
        given.train(), hostfile=given.hostfile, hosts=hosts, gpus=gpus, master_addr=given.master_addr,
        master_port=given.master_port, variables=forwarded(os.environ, environment | given.extra),
    )  # fmt: skip
    return _sent_as_is(command, environment, given.extra)


def _hosts(given: LaunchSettings) -> tuple[dict[str, int] | None, int | None]:
    """The ranks of each host of the hostfile, and the ranks of each host or of this machine.

    Raises:
        LaunchError: If there is neither a hostfile nor a number of ranks nor a GPU.
    """
    from reptrain_launcher import read_hostfile
    from reptrain_launcher.devices import visible_gpus

    if given.hostfile is not None:
        return read_hostfile(given.hostfile, given.exclude), given.gpus
    gpus = given.gpus
    if gpus is None and given.loaded.train.device != "cpu":
        gpus = len(visible_gpus()) or None
    if gpus is None:
        raise LaunchError(
            "--gpus",
            got="nothing",
            rule="must be the number of ranks if there is no GPU",
            remedy="Pass --gpus 2 for two ranks on the CPU.",
        )
    return None, gpus


def _environment(given: LaunchSettings, gpus: int | None) -> dict[str, str]:
    from reptrain_launcher import launch_environment

    device = given.loaded.train.device
    return launch_environment(gpus=gpus, hostfile=given.hostfile, device=device, exclude=given.exclude)


def _sent_as_is(command: list[str], environment: dict[str, str], extra: dict[str, str]) -> LaunchPlan:
    """A launch whose ranks inherit the whole environment; the printed command has no secrets."""
    from reptrain_launcher import shell_line
    from reptrain_launcher.forwarding import split_secrets

    shown, _ = split_secrets(extra)
    return LaunchPlan(command, environment | extra, shell_line(command, environment | shown), {}, {})


def slurm_plan(given: LaunchSettings, options: list[str], *, preflight: bool) -> LaunchPlan:
    """The script of a Slurm job."""
    from reptrain_launcher.forwarding import forwarded, split_secrets
    from reptrain_launcher.slurm_script import SlurmJob, slurm_script

    job = SlurmJob.parse(options, gpus=given.gpus)
    own: dict[str, str] = {}
    if given.loaded.train.device == "cpu":
        own = {"DS_ACCELERATOR": "cpu", "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")}
    # sbatch sends the secrets with the rest of the environment.
    shown, _ = split_secrets(forwarded(os.environ, own | given.extra))
    check: list[str] = []
    if preflight:
        check = [sys.executable, "-m", "reptrain", "doctor", str(given.config), *given.overrides]
        check += ["--out", str(given.out)] if given.out is not None else []
    script = slurm_script(
        job, given.train(), run=given.run, folder=Path.cwd(), variables=shown, preflight=check
    )
    return LaunchPlan([], {}, script, {}, {})


def beside(run: Path, name: str) -> Path:
    """The path of a launch file, next to the run folder."""
    return run.with_name(f"{run.name}.launch.{name}")
