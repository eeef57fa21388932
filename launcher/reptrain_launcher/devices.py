"""The accelerators of this machine, without importing torch."""

from __future__ import annotations

import os
import re
from pathlib import Path

_GPU = re.compile(r"nvidia\d+")


def count_gpus(dev: Path = Path("/dev")) -> int:
    """NVIDIA GPUs that a process started here would see: those present, less what CUDA_VISIBLE_DEVICES hides.

    Args:
        dev: The folder of devices.
    """
    present = sum(1 for entry in dev.iterdir() if _GPU.fullmatch(entry.name))
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return present
    shown = [name for name in visible.split(",") if name.strip() and name.strip() != "-1"]
    return min(present, len(shown))
