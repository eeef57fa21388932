"""What of a configuration changes the mathematics of a run, and its fingerprint."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

from reptrain.config.schema import RunConfig

# The same run by another road: these may differ on resume. The store is held by its own fingerprint.
_NOT_MATHEMATICS = (
    "name",
    "data.store",
    "data.sources.*.store",
    "model.moe.backend",
    "train.micro_batch_windows",
    "train.zero_stage",
    "train.expert_parallel_size",
    "train.device",
    "train.compile",
    "train.activation_checkpointing",
    "train.rank_timeout_seconds",
    # The ledger tells each step that was not applied.
    "train.on_nonfinite",
    "evaluate",
    "checkpoint",
)

_PRECISION = "train.precision"


def flatten(data: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Each value by its dotted key."""
    for key, value in data.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from flatten(value, f"{name}.")
        else:
            yield name, value


def mathematics(config: RunConfig) -> dict[str, Any]:
    """The settings that change the mathematics, by dotted key."""
    return _of_mathematics(config.model_dump(mode="json"))


def _of_mathematics(settings: Mapping[str, Any]) -> dict[str, Any]:
    flat = dict(flatten(settings))
    # Where nothing chose another precision, `auto` is fp32: a run folder holds the one that was used.
    if flat.get(_PRECISION) == "auto":
        flat[_PRECISION] = "fp32"
    return {
        key: value
        for key, value in flat.items()
        if not any(fnmatchcase(key, other) or key.startswith(f"{other}.") for other in _NOT_MATHEMATICS)
    }


def fingerprint(data: Any) -> str:
    """The first 128 bits of the SHA-256 of ``data`` as canonical JSON, in hexadecimal."""
    text = json.dumps(data, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def config_fingerprint(config: RunConfig) -> str:
    """Fingerprint of the settings that change the mathematics and are not the default.

    So a version with new settings goes on with the runs of an older one, if their defaults change nothing.
    """
    changed = _of_mathematics(config.model_dump(mode="json", exclude_defaults=True))
    if changed.get(_PRECISION) == "fp32":
        del changed[_PRECISION]
    return fingerprint(changed)


def differing_keys(old: RunConfig, new: RunConfig) -> list[tuple[str, Any, Any]]:
    """Dotted keys that change the mathematics and differ: (key, old value, new value)."""
    before, after = mathematics(old), mathematics(new)
    keys = sorted(before.keys() | after.keys())
    return [(k, before.get(k), after.get(k)) for k in keys if before.get(k) != after.get(k)]
