"""The progress of a run, read from the end of its metrics while another process writes them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import NamedTuple

# A record has a few hundred bytes: this is some dozens of records.
_TAIL_BYTES = 16_384


class ArmProgress(NamedTuple):
    """Tokens consumed, and the latest speed; None before the first step."""

    tokens: int = 0
    tokens_per_s: float | None = None


def read_progress(run: Path) -> ArmProgress:
    """The progress in the last complete train record of a run folder, which need not exist yet.

    Reads only the end of the file, so that it can be called often.
    """
    for line in reversed(_tail_lines(run / "metrics.jsonl")):
        record = json.loads(line)
        if record["kind"] == "train":
            return ArmProgress(record["tokens"], record["tokens_per_s"])
    return ArmProgress()


def _tail_lines(path: Path) -> list[bytes]:
    """The complete lines at the end of a file; a line that is still being written is left out."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, 2)
            start = max(0, size - _TAIL_BYTES)
            file.seek(start)
            data = file.read()
    except FileNotFoundError:
        return []
    lines = data.split(b"\n")[:-1]
    return lines if start == 0 else lines[1:]
