"""The machines that a study ran on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from reptrain.runs.folder import RunFolder
from reptrain.study.collect import ArmRow
from reptrain.study.paths import run_path
from reptrain.study.words import plain

# Entries with another name, shown first and in this order; other entries follow.
_NAMES = {
    "cpu": "processor",
    "cores": "cores",
    "device": "device",
    "platform": "system",
    "python": "Python",
    "commit": "commit",
}
# They describe a start or the data, not a machine.
_LEFT_OUT = {"packages", "command", "host", "earlier", "time", "pid", "vocab_size"}


class Machine(NamedTuple):
    """An environment, and the arms that ran in it."""

    arms: list[str]
    facts: list[tuple[str, str]]


def machines(rows: Sequence[ArmRow], out: Path) -> list[Machine]:
    """The different environments of the runs, usually one."""
    result: list[Machine] = []
    for row in rows:
        if row.is_elsewhere or row.state in ("waiting", "other config", "other numerics"):
            continue
        facts = environment_facts(RunFolder.open(run_path(out, row.arm)).environment)
        same = [machine for machine in result if machine.facts == facts]
        if same:
            same[0].arms.append(row.arm)
        elif facts:
            result.append(Machine([row.arm], facts))
    return result


def environment_facts(environment: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(name, value) pairs of an environment record, the important ones first."""
    known = [key for key in _NAMES if environment.get(key) is not None]
    others = [k for k, v in environment.items() if v is not None and k not in _NAMES and k not in _LEFT_OUT]
    facts = [
        (_NAMES.get(key, key.replace("_", " ")), _shown(key, environment[key])) for key in [*known, *others]
    ]
    packages = environment.get("packages") or {}
    return [*facts, *packages.items()]


def _shown(key: str, value: Any) -> str:
    if key == "commit":
        number, mark, rest = str(value).partition("+")
        return f"{number[:12]}{mark}{rest}"
    return plain(value)
