"""Checkpoints of any number of ranks: save, find, load, and the average of the weights."""

from reptrain.checkpoint.step_folder import (
    CheckpointManifest,
    FoundCheckpoint,
    Topology,
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
    "find",
    "load",
    "restore_records",
    "save",
    "topology",
]
