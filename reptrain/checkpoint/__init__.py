"""Checkpoints that any number of ranks can read: save, find, load, and average the weights."""

from reptrain.checkpoint.adopt import adopt, intact_manifest
from reptrain.checkpoint.step_folder import (
    CheckpointManifest,
    FoundCheckpoint,
    Topology,
    check_loaded,
    find,
    load,
    restore_records,
    save,
    topology,
)

__all__ = [
    "CheckpointManifest",
    "FoundCheckpoint",
    "Topology",
    "adopt",
    "check_loaded",
    "find",
    "intact_manifest",
    "load",
    "restore_records",
    "save",
    "topology",
]
