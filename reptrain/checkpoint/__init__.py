"""Checkpoints that any number of ranks can read: save, find, load, and average the weights."""

from reptrain.checkpoint.adopt import adopt, intact_manifest
from reptrain.checkpoint.background import Background
from reptrain.checkpoint.host_copy import HostCopy, state_bytes
from reptrain.checkpoint.saving import save, save_in_parts
from reptrain.checkpoint.step_folder import (
    CheckpointManifest,
    FoundCheckpoint,
    Topology,
    check_loaded,
    find,
    load,
    restore_records,
    topology,
)

__all__ = [
    "Background",
    "CheckpointManifest",
    "FoundCheckpoint",
    "HostCopy",
    "Topology",
    "adopt",
    "check_loaded",
    "find",
    "intact_manifest",
    "load",
    "restore_records",
    "save",
    "save_in_parts",
    "state_bytes",
    "topology",
]
