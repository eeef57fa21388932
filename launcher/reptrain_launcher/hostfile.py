"""Hostfiles in the format of DeepSpeed and Open MPI: ``HOST slots=N``."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path

from platformdirs import user_cache_path

from reptrain.errors import LaunchError
from reptrain.files import read_small, write_atomically
from reptrain.reading import ReadError, decode

_HOST = re.compile(
    r"([A-Za-z0-9_][A-Za-z0-9_.-]*@)?([A-Za-z0-9_][A-Za-z0-9_.-]*|[0-9A-Fa-f]*(:[0-9A-Fa-f]*){2,7})"
)
_SETTING = re.compile(r"(slots|max[_-]slots)=([0-9]{1,4})")
_LARGEST_BYTES = 2**20
_LARGEST_SLOTS = 1024
_REMEDY = "Write one host a line, such as: node-0 slots=8"


def read_hostfile(path: Path, exclude: Sequence[str] = ()) -> dict[str, int]:
    """Number of ranks of each host, in the order of the file.

    Blank lines and text after ``#`` are ignored, as is Open MPI's ``max_slots=N`` (or ``max-slots``).

    Args:
        path: The hostfile.
        exclude: Hosts to leave out.

    Raises:
        LaunchError: If the file cannot be read, names no host or has an invalid line, or if ``exclude``
            has a host that is not in the file, or all hosts.
    """
    hosts: dict[str, int] = {}
    names = set[str]()
    for number, line in enumerate(_read(path).split("\n"), start=1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        where = f"hostfile {path}, line {number}"
        host, slots = _parse(words, where=where)
        # Names of hosts have no case; a user or a final dot names no other host.
        if (name := host.rpartition("@")[2].rstrip(".").lower()) in names:
            raise LaunchError(
                where,
                got=f"{host} again",
                rule="must name each host once",
                remedy="Write one line with the sum of its slots.",
            )
        names.add(name)
        hosts[host] = slots
    if not hosts:
        raise LaunchError(
            f"hostfile {path}", got="no host", rule="must name at least one host", remedy=f"{_REMEDY}."
        )
    return _without(hosts, exclude, path)


def _without(hosts: dict[str, int], exclude: Sequence[str], path: Path) -> dict[str, int]:
    unknown = [host for host in exclude if host not in hosts]
    if unknown or set(exclude) == hosts.keys():
        raise LaunchError(
            "--exclude",
            got=", ".join(unknown or exclude),
            rule=f"must name some of the hosts of {path}, and not all",
            remedy="Write the names as in the hostfile, separated by commas.",
        )
    return {host: slots for host, slots in hosts.items() if host not in exclude}


def written_for_deepspeed(path: Path, hosts: dict[str, int]) -> Path:
    """Path of a hostfile that DeepSpeed can read: the given file, or a normalized copy.

    DeepSpeed treats a byte order mark as part of a name and requires a fixed order of the settings.

    Args:
        path: The hostfile.
        hosts: The result of `read_hostfile` for it.
    """
    plain = [f"{host} slots={slots}" for host, slots in hosts.items()]
    lines = [line.strip() for line in path.read_text(encoding="utf-8").split("\n")]
    if [line for line in lines if line and not line.startswith("#")] == plain:
        return path
    content = "".join(line + "\n" for line in plain)
    folder = user_cache_path("reptrain") / "hostfiles"
    folder.mkdir(parents=True, exist_ok=True)
    copy = folder / f"{hashlib.sha256(content.encode()).hexdigest()[:16]}.txt"
    write_atomically(copy, content)
    return copy


def _read(path: Path) -> str:
    try:
        return decode(read_small(path, _LARGEST_BYTES))
    except OSError as error:
        raise LaunchError(
            f"hostfile {path}",
            got=error.strerror or error,
            rule="must be a readable text file",
            remedy="Check the path.",
        ) from error
    except ReadError as error:
        raise LaunchError(f"hostfile {path}", got=error.got, rule=error.rule, remedy=error.remedy) from error


def _parse(words: list[str], *, where: str) -> tuple[str, int]:
    """
    >>> _parse(["a", "slots=4", "max_slots=8"], where="hosts, line 1")
    ('a', 4)
    """
    host, *rest = words
    if "[" in host[1:]:
        raise LaunchError(
            where,
            got=repr(host),
            rule="must name one host, not a range",
            remedy="Expand it, for example with `scontrol show hostnames`.",
        )
    settings = dict[str, int]()
    for word in rest:
        match = _SETTING.fullmatch(word)
        if match is None or match[1].replace("-", "_") in settings:
            raise _wrong(where, words)
        settings[match[1].replace("-", "_")] = int(match[2])
    if not _HOST.fullmatch(host):
        raise _wrong(where, words)
    if "slots" not in settings:
        raise LaunchError(
            where,
            got=repr(" ".join(words)),
            rule="must have slots=N after the host",
            remedy=f"{_REMEDY}. A PBS node file has one line per slot: write their number.",
        )
    slots = settings["slots"]
    if not 1 <= slots <= min(settings.get("max_slots", _LARGEST_SLOTS), _LARGEST_SLOTS):
        raise LaunchError(
            where,
            got=f"slots={slots}",
            rule=f"must have slots from 1 to max_slots, at most {_LARGEST_SLOTS}",
            remedy="Write the number of the host's GPUs to use.",
        )
    return host, slots


def _wrong(where: str, words: list[str]) -> LaunchError:
    return LaunchError(
        where,
        got=repr(" ".join(words)),
        rule="must be HOST slots=N with N at least 1",
        remedy=f"{_REMEDY}.",
    )
