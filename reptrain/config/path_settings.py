"""Settings that are paths or addresses, which published records leave out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from reptrain.config.fingerprint import flatten

_PATHS = ("data.store", "init_from", "branch.run", "checkpoint.mirror", "distill.teacher")


def is_path(key: str, value: object) -> bool:
    """Whether a setting is a path or an address, by its dotted key or by its value."""
    if key in _PATHS or (key.startswith("data.sources.") and key.endswith(".store")):
        return True
    if isinstance(value, Mapping):
        return any(is_path("", item) for item in (*value, *value.values()))
    if isinstance(value, (list, tuple)):
        return any(is_path("", item) for item in value)
    return isinstance(value, str) and ("/" in value or "\\" in value)


def path_texts(settings: Mapping[str, Any]) -> Iterator[str]:
    """The paths and addresses among settings."""
    for key, value in flatten(settings):
        for text in value if isinstance(value, list) else [value]:
            if isinstance(text, str) and is_path(key, text):
                yield text
