"""The program that reports the facts of one host. It is sent over ssh, so it uses the standard library only.

``python - REQUEST < probe.py`` prints ``MARK`` and one line of JSON. REQUEST is base64 of a JSON object with
the keys of `reptrain_launcher.doctor.gather.Request`.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import importlib.metadata
import importlib.util
import json
import os
import re
import resource
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

MARK = "@@reptrain-facts "
_PACKAGES = ("reptrain", "torch", "deepspeed", "triton", "numpy", "pyarrow")
_GPU = (
    ("name", "name"),
    ("driver", "driver_version"),
    ("ecc_errors", "ecc.errors.uncorrected.volatile.total"),
    ("throttle", "clocks_throttle_reasons.active"),
    ("pcie_width", "pcie.link.width.current"),
    ("pcie_width_max", "pcie.link.width.max"),
    ("memory_used_mib", "memory.used"),
    ("memory_total_mib", "memory.total"),
)


def main(request: dict[str, Any]) -> None:
    """Print the facts that the request asks for."""
    facts: dict[str, Any] = {
        "time": time.time(),
        "hostname": socket.gethostname(),
        "python": sys.version.split()[0],
    }
    facts["executable"] = sys.executable
    for name, read in (
        ("packages", packages),
        ("source", source_hash),
        ("gpus", gpus),
        ("gpu_processes", gpu_processes),
        ("num_devices", num_devices),
        ("memory", memory),
        ("limits", limits),
        ("shm_free", lambda: shutil.disk_usage("/dev/shm").free),
        ("cores", lambda: len(os.sched_getaffinity(0))),
        ("interfaces", interfaces),
        ("own_addresses", own_addresses),
        ("folder", lambda: folder(request["folder"], request["nonce"])),
        ("stores", lambda: {path: fingerprint(path) for path in request["stores"]}),
        ("port_free", lambda: port_free(request["port"])),
    ):
        try:
            facts[name] = read()
        except Exception as error:  # A fact that cannot be read must not hide the others.
            facts[name] = None
            facts.setdefault("unread", {})[name] = f"{type(error).__name__}: {error}"
    sys.stdout.write(MARK + json.dumps(facts) + "\n")


def packages() -> dict[str, str | None]:
    """Installed versions by package; None for a missing one."""
    found: dict[str, str | None] = {}
    for name in _PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    for distribution in importlib.metadata.distributions():
        name = str(distribution.metadata["Name"])
        if name.startswith("nvidia-nccl"):
            found["nccl"] = distribution.version
    return found


def source_hash() -> str | None:
    """A hash of the source of reptrain, which changes with the commit and with local changes."""
    spec = importlib.util.find_spec("reptrain")
    if spec is None or spec.origin is None:
        return None
    root, hashed = Path(spec.origin).parent, hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        hashed.update(str(path.relative_to(root)).encode())
        hashed.update(path.read_bytes())
    return hashed.hexdigest()[:12]


def nvidia_smi(query: str, names: list[str]) -> list[list[str]] | None:
    """Rows of one query of nvidia-smi; None without nvidia-smi, which comes with the driver."""
    if shutil.which("nvidia-smi") is None:
        return None
    ended = subprocess.run(
        ["nvidia-smi", f"--query-{query}={','.join(names)}", "--format=csv,noheader,nounits"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    if ended.returncode:
        raise OSError((ended.stderr or ended.stdout).strip()[:300])
    return [[cell.strip() for cell in row] for row in csv.reader(ended.stdout.splitlines()) if row]


def gpus() -> list[dict[str, str]] | None:
    """A dictionary for each GPU; None without a driver."""
    rows = nvidia_smi("gpu", [field for _, field in _GPU])
    if rows is None:
        return None
    found = [dict(zip([name for name, _ in _GPU], row, strict=True)) for row in rows]
    try:
        remapped = nvidia_smi("remapped-rows", ["remapped_rows.pending", "remapped_rows.failure"]) or []
    except OSError:  # GPUs before A100 have none.
        remapped = []
    for gpu, row in zip(found, remapped, strict=False):
        gpu["rows_pending"], gpu["rows_failed"] = row[0], row[1]
    return found


def gpu_processes() -> list[list[str]] | None:
    """Processes that compute on the GPUs: pid, name, memory in MiB."""
    return nvidia_smi("compute-apps", ["pid", "process_name", "used_memory"])


def num_devices() -> int:
    """GPUs with a device file."""
    return sum(1 for path in Path("/dev").iterdir() if re.fullmatch(r"nvidia\d+", path.name))


def memory() -> dict[str, int]:
    """Available and total memory in bytes."""
    values = dict(re.findall(r"(\w+):\s+(\d+) kB", Path("/proc/meminfo").read_text()))
    return {"available": int(values["MemAvailable"]) * 1024, "total": int(values["MemTotal"]) * 1024}


def limits() -> dict[str, int]:
    """Soft limits; -1 is unlimited."""
    names = {"memlock": "RLIMIT_MEMLOCK", "nofile": "RLIMIT_NOFILE", "nproc": "RLIMIT_NPROC"}
    return {name: resource.getrlimit(getattr(resource, limit))[0] for name, limit in names.items()}


def interfaces() -> dict[str, list[str]]:
    """IPv4 addresses by network interface."""
    ended = subprocess.run(
        ["ip", "-o", "-4", "address", "show"], stdout=subprocess.PIPE, text=True, timeout=20
    )
    found: dict[str, list[str]] = {path.name: [] for path in Path("/sys/class/net").iterdir()}
    for name, address in re.findall(r"^\d+:\s+(\S+)\s+inet\s+([\d.]+)", ended.stdout, re.MULTILINE):
        found.setdefault(name, []).append(address)
    return found


def own_addresses() -> list[str]:
    """The addresses that `hostname -I` prints. DeepSpeed uses the first one."""
    ended = subprocess.run(["hostname", "-I"], stdout=subprocess.PIPE, text=True, timeout=20)
    return ended.stdout.split()


def folder(path: str, nonce: str) -> dict[str, Any]:
    """Whether the folder of runs, or its nearest existing parent, is writable, and the write speed."""
    above = Path(path)
    while not above.is_dir():
        above = above.parent
    found: dict[str, Any] = {"free": shutil.disk_usage(above).free, "writable": False}
    mark = above / f".reptrain-doctor-{nonce}-{socket.gethostname()}"
    try:
        began = time.monotonic()
        with mark.open("wb") as file:
            file.write(b"\0" * 2**24)
            file.flush()
            os.fsync(file.fileno())
        found["bytes_per_s"] = 2**24 / (time.monotonic() - began)
        found["writable"] = True
        mark.unlink()
    except OSError as error:
        found["error"] = str(error.strerror)
    return found


def fingerprint(path: str) -> str | None:
    """A hash of a store's manifest; None if it cannot be read."""
    try:
        return hashlib.sha256((Path(path) / "manifest.json").read_bytes()).hexdigest()[:16]
    except OSError:
        return None


def port_free(port: int) -> bool | str:
    """Whether a server can listen on the port; the reason if not."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            return str(error.strerror)
    return True


if __name__ == "__main__":
    main(json.loads(base64.b64decode(sys.argv[1])))
