"""The command that starts the ranks of a run: through deepspeed, torchrun, mpirun or Slurm."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from reptrain.cli.common import DONE, NO, PREEMPTED, app
from reptrain.cli.options import (
    ConfigFile,
    Exclude,
    Hostfile,
    MasterAddr,
    MaxMinutes,
    Out,
    Overrides,
    SshPort,
    VocabSize,
)
from reptrain.errors import ConfigError, LaunchError

if TYPE_CHECKING:
    from reptrain.config import RunConfig


class _Plan(NamedTuple):
    """What a launch runs, and the files that it needs."""

    command: list[str]
    environment: dict[str, str]
    text: str
    """The exact command or script."""
    files: dict[Path, str]
    secrets: dict[str, str]
    """Sent in a file; empty if the launcher sends the whole environment."""


@app.command()
def launch(
    config: ConfigFile,
    overrides: Overrides = None,
    out: Out = None,
    gpus: Annotated[
        int | None,
        typer.Option("--gpus", help="Ranks on this machine or on each host; CPU ranks if it has no GPU."),
    ] = None,
    hostfile: Hostfile = None,
    exclude: Exclude = None,
    slurm: Annotated[
        list[str] | None,
        typer.Option(
            "--slurm",
            metavar="KEY=VALUE",
            help="Submit a Slurm job with this option of sbatch; time is required. Repeat it for several:"
            " --slurm time=4:00:00 --slurm nodes=2 --slurm gpus-per-node=8.",
        ),
    ] = None,
    torchrun: Annotated[
        bool, typer.Option("--torchrun", help="Use torchrun. Run the command on each host of the hostfile.")
    ] = False,
    mpi: Annotated[bool, typer.Option("--mpi", help="Use the mpirun of Open MPI.")] = False,
    node_rank: Annotated[
        int | None,
        typer.Option(
            "--node-rank",
            min=0,
            help="With --torchrun: index of this host in the hostfile, from 0.",
            show_default="the index of its name",
        ),
    ] = None,
    master_addr: MasterAddr = None,
    master_port: Annotated[
        int | None, typer.Option("--master-port", min=1, max=65535, help="Port where the ranks meet.")
    ] = None,
    ssh_port: SshPort = None,
    env: Annotated[
        list[str] | None,
        typer.Option("--env", metavar="NAME=VALUE", help="Variable to set for the ranks of every host."),
    ] = None,
    max_minutes: MaxMinutes = None,
    preflight: Annotated[
        bool,
        typer.Option(
            "--preflight", help="Run `reptrain doctor` first, and start nothing if it finds a fault."
        ),
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Write and print the command or script without running it.")
    ] = False,
    suggest: Annotated[
        bool,
        typer.Option(
            "--suggest",
            help="Start nothing: print the ZeRO stage, micro-batch and activation checkpointing that fit into"
            " the memory of the GPUs, and the reasons. Exit code 1: nothing fits.",
        ),
    ] = False,
    gpu: Annotated[
        str | None,
        typer.Option(
            "--gpu",
            metavar="NAME|GIB",
            help="With --suggest: the GPU, such as A100, or its memory in GiB.",
            show_default="this machine's",
        ),
    ] = None,
    vocab_size: VocabSize = None,
    as_json: Annotated[bool, typer.Option("--json", help="With --suggest: print JSON.")] = False,
) -> None:
    """Train on several ranks: on this machine, on the hosts of a hostfile, or in a Slurm job.

    The exact command or script is written next to the run folder, as NAME.launch.sh. To resume the run,
    repeat the same `reptrain launch`.
    """
    from reptrain.config import load_run_config
    from reptrain_launcher.forwarding import parse_settings

    _check_engines(slurm=bool(slurm), torchrun=torchrun, mpi=mpi, hostfile=hostfile)
    if suggest:
        from reptrain.cli.suggestion import print_suggestion

        code = print_suggestion(
            config, overrides or [], gpus=gpus, hostfile=hostfile, exclude=exclude_list(exclude),
            slurm=slurm or [], gpu=gpu, vocab_size=vocab_size, as_json=as_json,
        )  # fmt: skip
        raise typer.Exit(code)
    _refuse_without_suggest({"--gpu": gpu, "--vocab-size": vocab_size, "--json": as_json or None})
    loaded = load_run_config(config, overrides or [])
    run = out or Path("runs") / str(loaded.name)
    extra = parse_settings(env or [])
    os.environ.update(extra)
    settings = _Settings(
        config, loaded, overrides or [], out, run, gpus, hostfile, exclude_list(exclude), master_addr,
        master_port, ssh_port, extra, max_minutes,
    )  # fmt: skip
    if slurm:
        plan = _slurm(settings, slurm, preflight=preflight)
    elif torchrun:
        plan = _torchrun(settings, node_rank)
    elif mpi:
        plan = _mpi(settings)
    else:
        plan = _deepspeed(settings)
    script = _write(plan, run)
    if dry_run:
        typer.echo(plan.text.rstrip("\n"))
        return
    if slurm:
        raise typer.Exit(_submit(script))
    if preflight:
        from reptrain.cli.doctor import examine

        report = examine(
            config, overrides or [], out=out, gpus=gpus, hostfile=hostfile, exclude=settings.exclude,
            master_addr=master_addr, master_port=master_port, ssh_port=ssh_port, max_minutes=max_minutes,
        )  # fmt: skip
        typer.echo(report.text(), err=True)
        if not report.ready:
            raise typer.Exit(NO)
    raise typer.Exit(_run(plan, run))


def _refuse_without_suggest(given: dict[str, object]) -> None:
    for name, value in given.items():
        if value is not None:
            raise ConfigError(
                name,
                got=value,
                rule="needs --suggest",
                remedy="Add --suggest, or leave it out; --gpus is the number of ranks.",
            )


def exclude_list(texts: list[str] | None) -> list[str]:
    """The hosts of ``--exclude a,b``, which may be repeated."""
    return [name for text in texts or [] for name in text.split(",") if name]


class _Settings(NamedTuple):
    config: Path
    loaded: RunConfig
    overrides: list[str]
    out: Path | None
    run: Path
    gpus: int | None
    hostfile: Path | None
    exclude: list[str]
    master_addr: str | None
    master_port: int | None
    ssh_port: int | None
    extra: dict[str, str]
    max_minutes: float | None

    def train(self) -> list[str]:
        """The arguments of the ranks."""
        from reptrain_launcher.local import train_arguments

        return train_arguments(
            self.config, overrides=self.overrides, out=self.out, max_minutes=self.max_minutes
        )


def _check_engines(*, slurm: bool, torchrun: bool, mpi: bool, hostfile: Path | None) -> None:
    chosen = [name for name, given in (("--slurm", slurm), ("--torchrun", torchrun), ("--mpi", mpi)) if given]
    if slurm and hostfile is not None:
        chosen.append("--hostfile")
    if len(chosen) > 1:
        raise ConfigError(
            " and ".join(chosen),
            got="both",
            rule="must not be combined",
            remedy="Choose one: Slurm selects the hosts of a job.",
        )


def _deepspeed(given: _Settings) -> _Plan:
    from reptrain_launcher import launch_command, launch_environment, read_hostfile, shell_line
    from reptrain_launcher.forwarding import SECRETS_FILE, deepspeed_file, forwarded, split_secrets
    from reptrain_launcher.local import is_this_machine

    device = given.loaded.train.device
    command = launch_command(
        given.config,
        gpus=given.gpus,
        hostfile=given.hostfile,
        device=device,
        overrides=given.overrides,
        out=given.out,
        max_minutes=given.max_minutes,
        master_port=given.master_port,
        master_addr=given.master_addr,
        ssh_port=given.ssh_port,
        exclude=given.exclude,
    )
    environment = launch_environment(
        gpus=given.gpus, hostfile=given.hostfile, device=device, exclude=given.exclude
    )
    shown, secrets = split_secrets(given.extra)
    files: dict[Path, str] = {}
    if given.hostfile is None or is_this_machine(read_hostfile(given.hostfile, given.exclude)):
        return _Plan(command, environment | given.extra, shell_line(command, environment | shown), files, {})
    own = {name: value for name, value in environment.items() if name != "PATH"}
    sent, secrets = split_secrets(forwarded(os.environ, own | given.extra))
    if secrets:
        sent[SECRETS_FILE] = str(beside(given.run, "secrets").absolute())
    listed = beside(given.run, "env").absolute()
    files[listed] = deepspeed_file(sent)
    environment["DS_ENV_FILE"] = str(listed)
    return _Plan(command, environment, shell_line(command, environment), files, secrets)


def _torchrun(given: _Settings, node_rank: int | None) -> _Plan:
    from reptrain_launcher import launch_environment, read_hostfile, shell_line
    from reptrain_launcher.devices import visible_gpus
    from reptrain_launcher.engines import torchrun_command
    from reptrain_launcher.forwarding import split_secrets

    device = given.loaded.train.device
    hosts = None if given.hostfile is None else read_hostfile(given.hostfile, given.exclude)
    gpus = given.gpus
    if hosts is None and gpus is None:
        gpus = None if device == "cpu" else len(visible_gpus()) or None
        _require_ranks(gpus)
    command = torchrun_command(
        given.train(), hosts=hosts, gpus=gpus, node_rank=node_rank, master_addr=given.master_addr,
        master_port=given.master_port,
    )  # fmt: skip
    environment = launch_environment(gpus=gpus, hostfile=given.hostfile, device=device, exclude=given.exclude)
    shown, _ = split_secrets(given.extra)
    return _Plan(command, environment | given.extra, shell_line(command, environment | shown), {}, {})


def _mpi(given: _Settings) -> _Plan:
    from reptrain_launcher import launch_environment, read_hostfile, shell_line
    from reptrain_launcher.devices import visible_gpus
    from reptrain_launcher.engines import mpi_command
    from reptrain_launcher.forwarding import forwarded, split_secrets

    device = given.loaded.train.device
    hosts = None if given.hostfile is None else read_hostfile(given.hostfile, given.exclude)
    gpus = given.gpus
    if hosts is None and gpus is None:
        gpus = None if device == "cpu" else len(visible_gpus()) or None
        _require_ranks(gpus)
    environment = launch_environment(gpus=gpus, hostfile=given.hostfile, device=device, exclude=given.exclude)
    command = mpi_command(
        given.train(), hostfile=given.hostfile, hosts=hosts, gpus=gpus, master_addr=given.master_addr,
        master_port=given.master_port, variables=forwarded(os.environ, environment | given.extra),
    )  # fmt: skip
    shown, _ = split_secrets(given.extra)
    return _Plan(command, environment | given.extra, shell_line(command, environment | shown), {}, {})


def _require_ranks(gpus: int | None) -> None:
    if gpus is None:
        raise LaunchError(
            "--gpus",
            got="nothing",
            rule="must be the number of ranks if there is no GPU",
            remedy="Pass --gpus 2 for two ranks on the CPU.",
        )


def _slurm(given: _Settings, options: list[str], *, preflight: bool) -> _Plan:
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
    return _Plan([], {}, script, {}, {})


def beside(run: Path, name: str) -> Path:
    """The path of a launch file, next to the run folder."""
    return run.with_name(f"{run.name}.launch.{name}")


def _write(plan: _Plan, run: Path) -> Path:
    """Write the command or script next to the run folder, and the files that it needs."""
    from reptrain.files import write_atomically

    script = beside(run, "sh")
    script.parent.mkdir(parents=True, exist_ok=True)
    text = plan.text
    if not text.startswith("#!"):
        folder = shlex.quote(str(Path.cwd()))
        text = f"#!/bin/sh\n# Written by `reptrain launch`.\ncd {folder} || exit 2\n{text}\n"
    write_atomically(script, text)
    script.chmod(0o755)
    for path, content in plan.files.items():
        write_atomically(path, content)
    return script


def _run(plan: _Plan, run: Path) -> int:
    """Run the command until all ranks have ended; returns its exit code, or 3 if they were stopped."""
    from reptrain_launcher import run_launch
    from reptrain_launcher.forwarding import write_secrets

    secrets = beside(run, "secrets")
    if plan.secrets:
        write_secrets(secrets, plan.secrets)
    try:
        code, stopped = run_launch(plan.command, plan.environment)
    finally:
        if plan.secrets:
            secrets.unlink(missing_ok=True)
    # Launchers of several hosts return their own exit code, not that of the ranks.
    if stopped and code not in (DONE, PREEMPTED) and _is_preempted(run):
        return PREEMPTED
    return code


def _is_preempted(run: Path) -> bool:
    from reptrain.runs.folder import RunFolder

    return RunFolder(run).status().state == "preempted"


def _submit(script: Path) -> int:
    try:
        ended = subprocess.run(["sbatch", "--parsable", str(script)], capture_output=True, text=True)
    except FileNotFoundError as error:
        raise LaunchError(
            "sbatch",
            got="no such program",
            rule="must be on PATH for --slurm",
            remedy="Run the command on a login node of the cluster.",
        ) from error
    if ended.returncode:
        raise LaunchError(
            f"sbatch {script}",
            got=ended.stderr.strip() or f"exit code {ended.returncode}",
            rule="must accept the script",
            remedy="Fix the --slurm options.",
        )
    typer.echo(f"submitted job {ended.stdout.strip().partition(';')[0]}: {script}")
    return DONE
