"""`reptrain launch --suggest`: the launcher's ranks, and the settings that fit into their memory."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from reptrain.cli.common import DONE, NO, show
from reptrain.errors import ConfigError, LaunchError

# Memory that nvidia-smi reports, in GiB, by the name of a GPU.
_GPU_GIB = {
    "A100": 80, "A100-40": 40, "H100": 79, "H200": 140, "B200": 178, "V100": 32, "V100-16": 16, "L40S": 44,
    "A6000": 47, "A10": 22, "L4": 22, "T4": 15, "RTX4090": 23,
}  # fmt: skip


class Ranks(NamedTuple):
    """The ranks of a launch, and their devices."""

    number: int
    on_each_host: int
    device: str
    """cuda or cpu."""


def print_suggestion(
    config: Path,
    overrides: Sequence[str],
    *,
    gpus: int | None,
    hostfile: Path | None,
    exclude: Sequence[str],
    slurm: Sequence[str],
    gpu: str | None,
    vocab_size: int | None,
    as_json: bool,
) -> int:
    """Print the settings that fit; returns the exit code.

    Args:
        config: The run's file.
        overrides: ``key=value`` texts.
        gpus: Ranks on each host.
        hostfile: The hostfile of the launch.
        exclude: Its hosts to leave out.
        slurm: The options of the Slurm job.
        gpu: Name or GiB of the GPU; None: that of this machine.
        vocab_size: Vocabulary size, if neither the model nor a store gives it.
        as_json: Print JSON.
    """
    from reptrain.sizes import load_subject, suggest

    subject = load_subject(config, overrides, vocab_size=vocab_size)
    on_cpu = subject.run is not None and subject.run.train.device == "cpu"
    ranks = _ranks(gpus, hostfile, exclude, slurm, on_cpu=on_cpu, named=gpu is not None)
    suggestion = suggest(
        subject, world_size=ranks.number, device=ranks.device, device_bytes=_device_bytes(ranks, gpu)
    )
    show(suggestion.data(), suggestion.text(), as_json=as_json)
    return DONE if suggestion.chosen is not None else NO


def _ranks(
    gpus: int | None,
    hostfile: Path | None,
    exclude: Sequence[str],
    slurm: Sequence[str],
    *,
    on_cpu: bool,
    named: bool,
) -> Ranks:
    from reptrain_launcher import read_hostfile
    from reptrain_launcher.devices import count_gpus
    from reptrain_launcher.local import check_ranks_of_hosts
    from reptrain_launcher.slurm_script import SlurmJob

    hosts = None if hostfile is None else read_hostfile(hostfile, exclude)
    check_ranks_of_hosts(gpus, hosts)
    if slurm:
        job = SlurmJob.parse(slurm, gpus=gpus)
        number, most = job.nodes * job.ranks_per_node, job.ranks_per_node
    elif hosts is not None:
        slots = [gpus or slots for slots in hosts.values()]
        number, most = sum(slots), max(slots)
    else:
        number = most = gpus or (1 if on_cpu else count_gpus()) or 1
    here = hosts is None and not slurm
    device = "cpu" if on_cpu or (here and not named and count_gpus() == 0) else "cuda"
    return Ranks(number, most, device)


def _device_bytes(ranks: Ranks, gpu: str | None) -> int:
    """Memory of one rank's device."""
    from reptrain_launcher.devices import gpu_memory_bytes

    if gpu is not None:
        return _named_bytes(gpu)
    if ranks.device == "cpu":
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // ranks.on_each_host
    found = gpu_memory_bytes()
    if found is None:
        raise LaunchError(
            "--gpu",
            got="nothing, and nvidia-smi reports no GPU on this machine",
            rule="must name the GPU of the ranks",
            remedy=f"Pass --gpu A100, or its memory in GiB. Known names: {', '.join(_GPU_GIB)}.",
        )
    return found


def _named_bytes(gpu: str) -> int:
    names = {name.lower(): size for name, size in _GPU_GIB.items()}
    size = names.get(gpu.lower().replace("_", "-").removesuffix("gib"))
    if size is None:
        try:
            size = int(gpu.lower().removesuffix("gib").strip())
        except ValueError:
            size = 0
    if not 0 < size < 1 << 14:
        raise ConfigError(
            "--gpu",
            got=repr(gpu),
            rule=f"must be one of {', '.join(_GPU_GIB)}, or its memory in GiB",
            remedy="For example --gpu H100, or --gpu 48.",
        )
    return size << 30
