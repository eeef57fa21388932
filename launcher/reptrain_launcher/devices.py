"""The GPUs that a process on this machine may use, without importing torch."""

from __future__ import annotations

import os
import re
from pathlib import Path

_NODE = re.compile(r"nvidia\d+")
_UUID = re.compile(r"^GPU UUID:\s*(\S+)", re.MULTILINE)
_INDEX = re.compile(r"[0-9]{1,6}")


def visible_gpus(
    dev: Path = Path("/dev"), driver: Path = Path("/proc/driver/nvidia/gpus")
) -> tuple[int | str, ...]:
    """The GPUs that CUDA shows to a process started here, as CUDA_VISIBLE_DEVICES names them.

    CUDA reads the list up to the first entry that names no device, and shows nothing where a device is
    named twice. Of MIG devices it shows the first alone.

    Args:
        dev: Folder of device nodes.
        driver: Folder in which the NVIDIA driver describes each GPU; may be missing.

    Returns:
        Indices, or UUIDs of GPUs or of one MIG device, in the order of the list.

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
    """How many GPUs CUDA shows to a process started here.

    Args:
        dev: Folder of device nodes.
    """
    return len(visible_gpus(dev))


def _by_index(entries: list[str], num_present: int) -> tuple[int, ...]:
    shown: list[int] = []
    for entry in entries:
        if not _INDEX.fullmatch(entry) or int(entry) >= num_present:
            break
        if int(entry) in shown:
            return ()
        shown.append(int(entry))
    return tuple(shown)


def _by_uuid(entries: list[str], num_present: int, known: list[str]) -> tuple[str, ...]:
    """A UUID may be shortened as long as one GPU alone has it; without the driver's list each counts."""
    shown: list[str] = []
    for entry in entries:
        meant = [uuid for uuid in known if uuid.startswith(entry)] if known else [entry]
        if not entry.startswith("GPU-") or len(meant) != 1:
            break
        if meant[0] in shown:
            return ()
        shown.append(meant[0])
    return tuple(shown[:num_present])


def _uuids(driver: Path) -> list[str]:
    try:
        texts = [path.read_text(errors="replace") for path in sorted(driver.glob("*/information"))]
    except OSError:
        return []
    return [match[1] for text in texts if (match := _UUID.search(text))]
