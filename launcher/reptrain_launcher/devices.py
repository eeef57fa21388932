"""The GPUs that are visible to a process on this machine. Imports no torch."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

_NODE = re.compile(r"nvidia\d+")
_UUID = re.compile(r"^GPU UUID:\s*(\S+)", re.MULTILINE)
_INDEX = re.compile(r"[0-9]{1,6}")
_NVIDIA_SMI_S = 60


def visible_gpus(
    dev: Path = Path("/dev"), driver: Path = Path("/proc/driver/nvidia/gpus")
) -> tuple[int | str, ...]:
    """The GPUs that CUDA makes visible to a process on this machine, as named in CUDA_VISIBLE_DEVICES.

    CUDA reads the list up to the first invalid entry. A duplicate entry hides all devices. Of several MIG
    devices only the first is visible.

    Args:
        dev: Folder of device nodes.
        driver: Folder in which the NVIDIA driver describes each GPU; may be missing.

    Returns:
        Indices or UUIDs of GPUs, or the UUID of one MIG device, in the order of the list.

    Source:
        CUDA C++ Programming Guide, "CUDA Environment Variables"; NVIDIA MIG User Guide, "CUDA Device
        Enumeration".
    """
    num_present = sum(1 for entry in dev.iterdir() if _NODE.fullmatch(entry.name))
    listed = os.environ.get("CUDA_VISIBLE_DEVICES")
    if listed is None:
        return tuple(range(num_present))
    if num_present == 0:
        return ()
    entries = [entry.strip() for entry in listed.split(",")]
    if entries[0].startswith("MIG-"):
        return (entries[0],)
    if entries[0].startswith("GPU-"):
        return _by_uuid(entries, num_present, _uuids(driver))
    return _by_index(entries, num_present)


def count_gpus(dev: Path = Path("/dev")) -> int:
    """Number of GPUs that CUDA makes visible to a process on this machine.

    Args:
        dev: Folder of device nodes.
    """
    return len(visible_gpus(dev))


def gpu_memory_bytes() -> int | None:
    """Memory of the smallest GPU of this machine; None if nvidia-smi is missing or reports none."""
    try:
        ended = subprocess.run(
            ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"],
            capture_output=True,
            text=True,
            timeout=_NVIDIA_SMI_S,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    sizes = [int(line) for line in ended.stdout.split("\n") if line.strip().isdecimal()]
    return min(sizes) << 20 if sizes and ended.returncode == 0 else None


def _by_index(entries: list[str], num_present: int) -> tuple[int, ...]:
    visible: list[int] = []
    for entry in entries:
        if not _INDEX.fullmatch(entry) or int(entry) >= num_present:
            break
        if int(entry) in visible:
            return ()
        visible.append(int(entry))
    return tuple(visible)


def _by_uuid(entries: list[str], num_present: int, known: list[str]) -> tuple[str, ...]:
    """UUIDs may be abbreviated to a unique prefix. Without the driver's list every entry counts as a GPU."""
    visible: list[str] = []
    for entry in entries:
        matches = [uuid for uuid in known if uuid.startswith(entry)] if known else [entry]
        if not entry.startswith("GPU-") or len(matches) != 1:
            break
        if matches[0] in visible:
            return ()
        visible.append(matches[0])
    return tuple(visible[:num_present])


def _uuids(driver: Path) -> list[str]:
    try:
        texts = [path.read_text(errors="replace") for path in sorted(driver.glob("*/information"))]
    except OSError:
        return []
    return [match[1] for text in texts if (match := _UUID.search(text))]
