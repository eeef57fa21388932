"""Checks of the GPUs of each host, from nvidia-smi."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from reptrain_launcher.doctor.registry import Cluster, Finding, NotApplicableError, check, minority

# Bits of clocks_throttle_reasons.active: hardware slowdown, software thermal, hardware thermal, power brake.
_SLOWDOWNS = {0x8: "hardware slowdown", 0x20: "heat", 0x40: "heat", 0x80: "power brake"}


def _gpus(cluster: Cluster) -> Iterator[tuple[str, int, dict[str, Any]]]:
    if cluster.on_cpu:
        raise NotApplicableError("ranks on the CPU")
    for host, gpus in cluster.known("gpus"):
        for index, gpu in enumerate(gpus):
            yield host, index, gpu


def _integer(text: str | None) -> int:
    """A number printed by nvidia-smi; 0 for N/A."""
    try:
        return int(str(text), 0)
    except ValueError:
        return 0


@check(
    "gpus",
    reads="the number and model of the GPUs of every host",
    remedy="Fix slots in the hostfile. If a GPU is missing, look for Xid errors in dmesg, and reboot.",
)
def _count(cluster: Cluster) -> Iterator[Finding]:
    if cluster.on_cpu:
        raise NotApplicableError("ranks on the CPU")
    models: dict[str, str] = {}
    for host, answer in cluster.answers.items():
        if answer.stage != "ok":
            continue
        gpus = answer.facts.get("gpus")
        unread = answer.facts.get("unread", {}).get("gpus")
        number = answer.facts.get("num_devices") if gpus is None else len(gpus)
        if unread:
            yield Finding(f"nvidia-smi fails on {host}: {unread}", (host,))
        elif (number or 0) < cluster.hosts[host]:
            yield Finding(f"{host} has {number or 0} GPUs for {cluster.hosts[host]} slots", (host,))
        if gpus:
            models[host] = gpus[0]["name"]
    usual, others = minority(models)
    for host, model in others.items():
        yield Finding(f"{host} has {model}, other hosts have {usual}", (host,), "warning")


@check(
    "gpu-memory-errors",
    reads="uncorrected ECC errors and remapped rows",
    remedy="Reset the GPU or reboot the host; replace the GPU if rows can no longer be remapped.",
)
def _memory_errors(cluster: Cluster) -> Iterator[Finding]:
    for host, index, gpu in _gpus(cluster):
        if _integer(gpu.get("ecc_errors")):
            yield Finding(f"GPU {index} of {host} has {gpu['ecc_errors']} uncorrected memory errors", (host,))
        if _flag(gpu.get("rows_pending")):
            yield Finding(f"GPU {index} of {host} has rows to remap at the next reset", (host,), "warning")
        if _flag(gpu.get("rows_failed")):
            yield Finding(f"GPU {index} of {host} could not remap a row", (host,))


def _flag(text: str | None) -> bool:
    return str(text).lower() in ("yes", "1")


@check(
    "gpu-slowdown",
    reads="the reasons for reduced clocks",
    remedy="Check cooling and power of the host; nvidia-smi -q -d PERFORMANCE shows the reason.",
)
def _slowdown(cluster: Cluster) -> Iterator[Finding]:
    for host, index, gpu in _gpus(cluster):
        active = _integer(gpu.get("throttle"))
        causes = sorted({name for bit, name in _SLOWDOWNS.items() if active & bit})
        if causes:
            yield Finding(f"GPU {index} of {host} runs at reduced clocks: {', '.join(causes)}", (host,))


@check(
    "gpu-pcie",
    reads="the width of the PCIe link",
    remedy="Reseat the card or the riser. Some GPUs reduce the link width while idle: test again under load.",
)
def _pcie(cluster: Cluster) -> Iterator[Finding]:
    for host, index, gpu in _gpus(cluster):
        width, most = _integer(gpu.get("pcie_width")), _integer(gpu.get("pcie_width_max"))
        if 0 < width < most:
            yield Finding(f"GPU {index} of {host} uses PCIe x{width} of x{most}", (host,), "warning")


@check(
    "gpu-processes",
    reads="processes that compute on the GPUs",
    remedy="End them on the host, by their process id, if they remain from an earlier run.",
)
def _processes(cluster: Cluster) -> Iterator[Finding]:
    if cluster.on_cpu:
        raise NotApplicableError("ranks on the CPU")
    for host, processes in cluster.known("gpu_processes"):
        for pid, name, used in processes:
            yield Finding(f"process {pid} ({name}) of {host} uses {used} MiB of a GPU", (host,))
