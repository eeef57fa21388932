"""The command that checks the hosts of a run before it starts."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from reptrain.cli.common import DONE, NO, app, show
from reptrain.cli.options import (
    AsJson,
    Exclude,
    Hostfile,
    MasterAddr,
    MasterPort,
    Overrides,
    SshPort,
    exclude_list,
)
from reptrain.errors import ReptrainError

if TYPE_CHECKING:
    from reptrain.config import RunConfig
    from reptrain_launcher.doctor import DoctorReport


@app.command()
def doctor(
    config: Annotated[
        Path | None,
        typer.Argument(
            metavar="CONFIG", help="YAML file of a run. Its stores and its run folder are checked too."
        ),
    ] = None,
    overrides: Overrides = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            help="Run folder to check.",
            show_default="runs/NAME, with the configuration's name",
        ),
    ] = None,
    gpus: Annotated[int | None, typer.Option("--gpus", min=1, help="Ranks on each host.")] = None,
    hostfile: Hostfile = None,
    exclude: Exclude = None,
    master_addr: MasterAddr = None,
    master_port: MasterPort = None,
    ssh_port: SshPort = None,
    max_minutes: Annotated[
        float | None,
        typer.Option(
            "--max-minutes",
            min=0.0,
            help="Time limit of the run; the check compares it with the time that a checkpoint takes.",
        ),
    ] = None,
    link_seconds: Annotated[
        float, typer.Option("--link-seconds", min=0, help="Seconds of all-reduces for each pair of hosts.")
    ] = 10.0,
    quick: Annotated[
        bool, typer.Option("--quick", help="Skip the test program and the all-reduces.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Check the machine or the hosts before a run.

    Checks this machine, the hosts of a hostfile, or the nodes of a Slurm job. Prints a line for each check,
    and a remedy for each fault. Faulty hosts are listed for --exclude, and HOSTFILE.clean is written without
    them.

    Exit code 0: ready. 1: a fault was found. 2: invalid input.
    """
    from reptrain.files import write_atomically

    report = examine(
        config, overrides or [], out=out, gpus=gpus, hostfile=hostfile, exclude=exclude_list(exclude),
        master_addr=master_addr, master_port=master_port, ssh_port=ssh_port, max_minutes=max_minutes,
        link_seconds=link_seconds, quick=quick,
    )  # fmt: skip
    text = report.text()
    if hostfile is not None and report.clean_hostfile is not None:
        clean = hostfile.with_name(hostfile.name + ".clean")
        write_atomically(clean, report.clean_hostfile)
        text += f"\nor --hostfile {clean}"
    show(report.data(), text, as_json=as_json)
    raise typer.Exit(DONE if report.ready else NO)


def examine(
    config: Path | None,
    overrides: Sequence[str],
    *,
    out: Path | None,
    gpus: int | None,
    hostfile: Path | None,
    exclude: Sequence[str],
    master_addr: str | None,
    master_port: int | None,
    ssh_port: int | None,
    max_minutes: float | None,
    link_seconds: float = 3.0,
    quick: bool = False,
) -> DoctorReport:
    """Check the hosts of a run.

    Raises:
        ConfigError: If the configuration is wrong.
    """
    from reptrain.config import load_run_config
    from reptrain_launcher.doctor import Request, diagnose, gather

    loaded = None if config is None else load_run_config(config, list(overrides))
    run = out or Path("runs") / (str(loaded.name) if loaded is not None else "doctor")
    limit, delay = _time_limit(max_minutes)
    request = Request(
        run=str(run.absolute()),
        hostfile=hostfile,
        exclude=exclude,
        gpus=gpus,
        device="auto" if loaded is None else loaded.train.device,
        stores=[] if loaded is None else _stores(loaded),
        master_addr=master_addr,
        master_port=master_port,
        ssh_port=ssh_port,
        link_seconds=link_seconds,
        is_quick=quick,
        time_limit_s=limit,
        signal_delay_s=delay,
        checkpoint_bytes=None if config is None else _checkpoint_bytes(config, overrides),
        writes_at_stop=1 if loaded is None or loaded.checkpoint.background is False else 2,
    )
    return diagnose(gather(request))


def _stores(config: RunConfig) -> list[str]:
    data = config.with_absolute_stores().data
    named = [source.store for source in (data.sources or {}).values()]
    return [*([data.store] if data.store else []), *named]


def _checkpoint_bytes(config: Path, overrides: Sequence[str]) -> int | None:
    """Size of a checkpoint; None if the size of the vocabulary is unknown."""
    from reptrain.sizes import load_subject
    from reptrain.sizes.memory import saved_bytes

    # The store may be missing on this machine; the report shows this as a fault.
    with suppress(ReptrainError):
        subject = load_subject(config, list(overrides))
        average = subject.run is not None and subject.run.average is not None
        return saved_bytes(subject.parameters.total, average=average)
    return None


def _time_limit(max_minutes: float | None) -> tuple[float | None, float]:
    """Seconds until the run is stopped, and seconds that it then has to save a checkpoint."""
    limits = [] if max_minutes is None else [60 * max_minutes]
    end = os.environ.get("SLURM_JOB_END_TIME", "")
    start = os.environ.get("SLURM_JOB_START_TIME", "")
    if end.isdigit() and start.isdigit():
        limits.append(float(int(end) - int(start)))
    # After --max-minutes, the remaining time of the job is left for the checkpoint.
    delay = 120.0 if end.isdigit() else math.inf
    return min(limits, default=None), delay
