"""The command that starts the ranks of a run: through deepspeed, torchrun, mpirun or Slurm."""

from __future__ import annotations

import os
import shlex
import subprocess
from pathlib import Path
from typing import Annotated

import typer

from reptrain.cli.common import DONE, NO, PREEMPTED, app
from reptrain.cli.launch_plans import (
    LaunchPlan,
    LaunchSettings,
    beside,
    deepspeed_plan,
    mpi_plan,
    slurm_plan,
    torchrun_plan,
)
from reptrain.cli.options import (
    ConfigFile,
    Exclude,
    Hostfile,
    MasterAddr,
    MasterPort,
    MaxMinutes,
    Out,
    Overrides,
    SshPort,
    VocabSize,
    exclude_list,
)
from reptrain.errors import ConfigError, LaunchError

Gpus = Annotated[
    int | None,
    typer.Option("--gpus", help="Ranks on this machine or on each host; CPU ranks if it has no GPU."),
]
SlurmOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--slurm",
        metavar="KEY=VALUE",
        help="Submit a Slurm job with this option of sbatch; time is required. Repeat it for several:"
        " --slurm time=4:00:00 --slurm nodes=2 --slurm gpus-per-node=8.",
    ),
]
Torchrun = Annotated[
    bool, typer.Option("--torchrun", help="Use torchrun. Run the command on each host of the hostfile.")
]
Mpi = Annotated[bool, typer.Option("--mpi", help="Use the mpirun of Open MPI.")]
NodeRank = Annotated[
    int | None,
    typer.Option(
        "--node-rank",
        min=0,
        help="With --torchrun: index of this host in the hostfile, from 0.",
        show_default="the index of its name",
    ),
]
Variables = Annotated[
    list[str] | None,
    typer.Option("--env", metavar="NAME=VALUE", help="Variable to set for the ranks of every host."),
]
Preflight = Annotated[
    bool,
    typer.Option("--preflight", help="Run `reptrain doctor` first, and start nothing if it finds a fault."),
]
DryRun = Annotated[
    bool, typer.Option("--dry-run", help="Write and print the command or script without running it.")
]
Suggest = Annotated[
    bool,
    typer.Option(
        "--suggest",
        help="Start nothing: print the ZeRO stage, micro-batch and activation checkpointing that fit in"
        " the memory of the GPUs, and the reasons. Exit code 1: nothing fits.",
    ),
]
SuggestedGpu = Annotated[
    str | None,
    typer.Option(
        "--gpu",
        metavar="NAME|GIB",
        help="With --suggest: the GPU, such as A100, or its memory in GiB.",
        show_default="this machine's",
    ),
]
SuggestedAsJson = Annotated[bool, typer.Option("--json", help="With --suggest: print JSON.")]


@app.command()
def launch(
    config: ConfigFile,
    overrides: Overrides = None,
    out: Out = None,
    gpus: Gpus = None,
    hostfile: Hostfile = None,
    exclude: Exclude = None,
    slurm: SlurmOptions = None,
    torchrun: Torchrun = False,
    mpi: Mpi = False,
    node_rank: NodeRank = None,
    master_addr: MasterAddr = None,
    master_port: MasterPort = None,
    ssh_port: SshPort = None,
    env: Variables = None,
    max_minutes: MaxMinutes = None,
    preflight: Preflight = False,
    dry_run: DryRun = False,
    suggest: Suggest = False,
    gpu: SuggestedGpu = None,
    vocab_size: VocabSize = None,
    as_json: SuggestedAsJson = False,
) -> None:
    """Train on several ranks, on one machine, hosts or Slurm.

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
    settings = LaunchSettings(
        config, loaded, overrides or [], out, run, gpus, hostfile, exclude_list(exclude), master_addr,
        master_port, ssh_port, extra, max_minutes,
    )  # fmt: skip
    if slurm:
        plan = slurm_plan(settings, slurm, preflight=preflight)
    elif torchrun:
        plan = torchrun_plan(settings, node_rank)
    elif mpi:
        plan = mpi_plan(settings)
    else:
        plan = deepspeed_plan(settings)
    script = _write(plan, run)
    if dry_run:
        typer.echo(plan.text.rstrip("\n"))
        return
    if slurm:
        raise typer.Exit(_submit(script))
    if preflight and not _is_ready(settings):
        raise typer.Exit(NO)
    raise typer.Exit(_run(plan, run))


def _is_ready(given: LaunchSettings) -> bool:
    """Print the report of `reptrain doctor` on the hosts; returns whether it found no fault."""
    from reptrain.cli.doctor import examine

    report = examine(
        given.config, given.overrides, out=given.out, gpus=given.gpus, hostfile=given.hostfile,
        exclude=given.exclude, master_addr=given.master_addr, master_port=given.master_port,
        ssh_port=given.ssh_port, max_minutes=given.max_minutes,
    )  # fmt: skip
    typer.echo(report.text(), err=True)
    return report.ready


def _refuse_without_suggest(given: dict[str, object]) -> None:
    for name, value in given.items():
        if value is not None:
            raise ConfigError(
                name,
                got=value,
                rule="needs --suggest",
                remedy="Add --suggest, or omit the option. --gpus is the number of ranks.",
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


def _write(plan: LaunchPlan, run: Path) -> Path:
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


def _run(plan: LaunchPlan, run: Path) -> int:
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
