"""The list of hosts and their ranks, in the form that DeepSpeed and Open MPI read: ``HOST slots=N``."""

from __future__ import annotations

import re
from pathlib import Path

from reptrain.errors import LaunchError

_LINE = re.compile(r"(?P<host>\S+)\s+slots=(?P<slots>\d+)\s*(#.*)?")


def read_hostfile(path: Path) -> dict[str, int]:
    """Ranks by host, in the order of the file. Blank lines and lines that begin with ``#`` say nothing.

    Raises:
        LaunchError: If the file cannot be read, names no host, or a line is wrong: names the line.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise LaunchError(
            f"hostfile {path}",
            got=getattr(error, "strerror", None) or error,
            rule="must be a readable text file",
            remedy="Check the path.",
        ) from error
    hosts: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        if line.strip() and not line.lstrip().startswith("#"):
            host, slots = _parse(line.strip(), where=f"hostfile {path}, line {number}")
            if host in hosts:
                raise LaunchError(
                    f"hostfile {path}, line {number}",
                    got=f"{host} again",
                    rule="must name each host once",
                    remedy="Write the sum of its slots on one line.",
                )
            hosts[host] = slots
    if not hosts:
        raise LaunchError(
            f"hostfile {path}",
            got="no host",
            rule="must name at least one host",
            remedy="Write lines such as: node-0 slots=8",
        )
    return hosts


def _parse(line: str, *, where: str) -> tuple[str, int]:
    match = _LINE.fullmatch(line)
    if match is None or int(match["slots"]) < 1:
        raise LaunchError(
            where,
            got=repr(line),
            rule="must be HOST slots=N with N of at least 1",
            remedy="For example: node-0 slots=8",
        )
    return match["host"], int(match["slots"])
