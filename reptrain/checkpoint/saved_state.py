"""The state hash of a checkpoint's files, computed without an engine."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from reptrain.checkpoint.state_hash import counters_hash, name_key, values_hash
from reptrain.checkpoint.step_folder import CheckpointManifest


def saved_state(path: Path) -> str:
    """Hash the tensors and counters of a checkpoint.

    Args:
        path: Its folder.

    Returns:
        16 hexadecimal digits: those of `state` in the manifest, if the files are intact.

    Raises:
        ValueError: If the manifest or a state file is damaged.
        ResumeError: If it has another format.
        OSError: If a file is missing or unreadable.
    """
    manifest = CheckpointManifest.read(path)
    counters = {
        "step": manifest.step,
        "optimizer_steps": manifest.optimizer_steps,
        "averaged_steps": manifest.averaged_steps,
    }
    total = counters_hash(counters, manifest.expert_bias, manifest.loss_scaling)
    try:
        for name in manifest.files:
            total += _file_hash(path / name)
    except SafetensorError as error:
        raise ValueError(f"{name}: {error}") from error
    return f"{total % 2**64:016x}"


def _file_hash(path: Path) -> int:
    file: Any
    total = 0
    with safe_open(path, "pt") as file:
        for key in file.keys():  # noqa: SIM118 - a safetensors file is not a mapping
            tensor, _, start = key.rpartition("@")
            total += values_hash(name_key(tensor), file.get_tensor(key), int(start))
    return total
