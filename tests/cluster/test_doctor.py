"""`reptrain doctor` on two hosts with sshd finds each planted fault, and none on healthy hosts."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ssh_hosts import SshHost, missing_parts, ssh_hosts

from reptrain.config import RunConfig
from reptrain.config.load import dump_yaml
from reptrain_launcher.doctor import CHECKS

pytestmark = pytest.mark.timeout(300)
PACKAGES = next(Path(path) for path in sys.path if path.endswith("site-packages"))


class Pair:
    """Two hosts and the files of a run on both.

    Attributes:
        folder: The working folder, with ``config.yaml``, ``hostfile`` and ``store``.
        undo: Shell lines, by host, that remove the planted faults.
    """

    def __init__(self, first: SshHost, second: SshHost, folder: Path) -> None:
        self.first, self.second, self.folder = first, second, folder
        self.environ = {"OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
        self.options: list[str] = []
        self.undo: list[tuple[SshHost, str]] = []

    def plant(self, host: SshHost, line: str, undo: str) -> None:
        """Run a line on a host, and another line at the end of the test."""
        self.undo.insert(0, (host, undo))
        host.do(line)

    def cover(self, host: SshHost, path: Path | str, content: str) -> None:
        """Replace the content of a file on one host."""
        other = self.folder / f"cover-{len(self.undo)}"
        other.write_text(content)
        other.chmod(0o755)
        self.plant(host, f"mount --bind {other} {path}", f"umount {path}")

    def overlay(self, host: SshHost, path: Path, files: dict[str, str]) -> None:
        """Add or replace files in a folder on one host."""
        room = self.folder / f"overlay-{len(self.undo)}"
        for part in ("upper", "work"):
            (room / part).mkdir(parents=True)
        for name, content in files.items():
            (room / "upper" / name).parent.mkdir(parents=True, exist_ok=True)
            (room / "upper" / name).write_text(content)
        layers = f"lowerdir={path},upperdir={room}/upper,workdir={room}/work"
        self.plant(host, f"mount -t overlay overlay -o {layers} {path}", f"umount -l {path}")

    def doctor(self, *options: str) -> tuple[dict[str, Any], str]:
        """The report, as JSON, of `reptrain doctor` on the first host; and stderr."""
        words = ["doctor", "config.yaml", "--out", "runs/x", "--json", *options, *self.options]
        if "--hostfile" not in words:
            words += ["--hostfile", "hostfile"]
        ended = self.first.run(
            sys.executable, "-m", "reptrain", *words, environ=self.environ, cwd=self.folder
        )
        assert ended.returncode in (0, 1), ended.stderr
        report: dict[str, Any] = json.loads(ended.stdout)
        assert report["ready"] == (ended.returncode == 0)
        return report, ended.stderr


@pytest.fixture(scope="module")
def on_disk() -> Iterator[Path]:
    """A folder outside of /dev/shm: each host has a /dev/shm of its own."""
    with tempfile.TemporaryDirectory(prefix="hosts-", dir="/var/tmp") as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def hosts(on_disk: Path) -> Iterator[tuple[SshHost, SshHost]]:
    if missing := missing_parts():
        pytest.skip(f"two hosts on this machine need {', '.join(missing)}")
    try:
        with ssh_hosts(on_disk / "h") as pair:
            yield pair
    except RuntimeError as reason:
        pytest.skip(str(reason))


@pytest.fixture
def pair(
    hosts: tuple[SshHost, SshHost],
    tiny: Callable[..., RunConfig],
    store_path: Path,
    on_disk: Path,
) -> Iterator[Pair]:
    folder = Path(tempfile.mkdtemp(dir=on_disk)) / "shared" / "work"
    (folder / "runs").mkdir(parents=True)
    shutil.copytree(store_path, folder / "store")
    config = tiny(f"data.store={folder / 'store'}").model_dump(mode="json")
    (folder / "config.yaml").write_text(dump_yaml(config))
    (folder / "hostfile").write_text("host0 slots=1\nhost1 slots=1\n")
    made = Pair(*hosts, folder)
    yield made
    for host, line in made.undo:
        host.do(line)


def no_hostfile(pair: Pair) -> None:
    pair.options = ["--hostfile", "no-such-file"]


def no_answer(pair: Pair) -> None:
    pair.plant(pair.second, "ip link set card down", "ip link set card up")


def refused_key(pair: Pair) -> None:
    pair.cover(pair.second, pair.second.folder / "authorized-root-host1", "")


def no_interpreter(pair: Pair) -> None:
    folder = Path(sys.executable).parent
    pair.plant(pair.second, f"mount -t tmpfs tmpfs {folder}", f"umount {folder}")


def no_folder(pair: Pair) -> None:
    above = pair.folder.parent
    pair.plant(pair.second, f"mount -t tmpfs tmpfs {above}", f"umount {above}")


def other_torch(pair: Pair) -> None:
    (info,) = PACKAGES.glob("torch-*.dist-info")
    text = (info / "METADATA").read_text()
    version = next(line for line in text.splitlines() if line.startswith("Version:"))
    pair.overlay(pair.second, info, {"METADATA": text.replace(version, "Version: 2.10.0")})


def other_source(pair: Pair) -> None:
    file = Path(__file__).parents[2] / "reptrain" / "errors.py"
    pair.cover(pair.second, file, file.read_text() + "# changed\n")


def docker_bridge(pair: Pair) -> None:
    lines = (
        "ip link add docker0 type bridge",
        "ip address add 10.17.0.1/16 dev docker0",
        "ip link set docker0 up",
    )
    pair.plant(pair.first, " && ".join(lines), "ip link del docker0")
    pair.options = ["--master-addr", "10.17.0.1"]


def port_in_use(pair: Pair) -> None:
    code = "import socket, time; s = socket.create_server(('', 29500)); time.sleep(600)"
    pid = pair.folder / "listener"
    line = f'{sys.executable} -c "{code}" >/dev/null 2>&1 & echo $! > {pid}; sleep 1'
    pair.plant(pair.first, line, f"kill $(cat {pid})")


def unknown_interface(pair: Pair) -> None:
    pair.environ["GLOO_SOCKET_IFNAME"] = "ib0"


def unshared_folder(pair: Pair) -> None:
    runs = pair.folder / "runs"
    pair.plant(pair.second, f"mount -t tmpfs -o size=1g tmpfs {runs}", f"umount {runs}")


def read_only_folder(pair: Pair) -> None:
    runs = pair.folder / "runs"
    pair.plant(
        pair.second, f"mount --bind {runs} {runs} && mount -o remount,bind,ro {runs}", f"umount {runs}"
    )


def other_store(pair: Pair) -> None:
    manifest = pair.folder / "store" / "manifest.json"
    pair.cover(pair.second, manifest, manifest.read_text() + "\n")


def missing_store(pair: Pair) -> None:
    store = pair.folder / "store"
    pair.plant(pair.second, f"mount -t tmpfs tmpfs {store}", f"umount {store}")


def small_shm(pair: Pair) -> None:
    pair.plant(pair.second, "mount -t tmpfs -o size=16m tmpfs /dev/shm", "umount /dev/shm")


def little_memory(pair: Pair) -> None:
    text = Path("/proc/meminfo").read_text()
    available = next(line for line in text.splitlines() if line.startswith("MemAvailable"))
    pair.cover(pair.second, "/proc/meminfo", text.replace(available, "MemAvailable: 300000 kB"))


def few_files(pair: Pair) -> None:
    # sshd passes its limits to the commands that it starts.
    before = pair.second.run("sh", "-c", "ulimit -n").stdout.strip()
    pair.plant(pair.second, "prlimit --pid 1 --nofile=256:", f"prlimit --pid 1 --nofile={before}:")


def wrong_clock(pair: Pair) -> None:
    """The interpreter runs under libfaketime, 90 seconds late."""
    library = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
    if library is None:
        pytest.skip("another time on one host needs Debian's package faketime")
    real = Path(sys.executable).resolve()
    copy = pair.folder / "real-python"
    shutil.copy(real, copy)
    code = f'#!/bin/sh\nLD_PRELOAD={library} FAKETIME=-90s exec -a "$0" {copy} "$@"\n'
    pair.cover(pair.second, real, code.replace("#!/bin/sh", "#!/bin/bash"))


def no_time_for_a_checkpoint(pair: Pair) -> None:
    pair.options = ["--max-minutes", "0.00001"]


def too_many_slots(pair: Pair) -> None:
    pair.environ["DS_ACCELERATOR"] = "cuda"
    config = pair.folder / "config.yaml"
    config.write_text(config.read_text().replace("device: cpu", "device: auto"))


FAULTS: dict[Callable[[Pair], None], tuple[str, str, bool]] = {
    no_hostfile: ("hostfile", "no-such-file", False),
    no_answer: ("ssh", "host1 is not reachable", True),
    refused_key: ("ssh", "Permission denied", True),
    no_interpreter: ("interpreter", "does not exist on host1", True),
    no_folder: ("working-folder", "does not exist on host1", True),
    other_torch: ("versions", "torch is 2.10.0 on host1", True),
    other_source: ("versions", "reptrain source is", True),
    docker_bridge: ("master-address", "docker0, a bridge of containers", False),
    port_in_use: ("port", "port 29500 of host0: Address already in use", False),
    unknown_interface: ("network-card", "host1 has no interface ib0", True),
    unshared_folder: ("shared-folder", "is not seen on host1", True),
    read_only_folder: ("disk", "is not writable on host1: Read-only file system", True),
    other_store: ("store", "on host1 has fingerprint", True),
    missing_store: ("store", "cannot be read on host1", True),
    small_shm: ("shared-memory", "/dev/shm of host1 has 16 MiB free", True),
    little_memory: ("memory", "host1 has 0.3 GiB available", True),
    few_files: ("limits", "host1 allows 256 open files", True),
    wrong_clock: ("clock", "the clock of host1 differs by at least", True),
    no_time_for_a_checkpoint: ("time-limit", "saving at a stop takes about", False),
    too_many_slots: ("gpus", "host1 has 0 GPUs for 1 slots", True),
}
"""Faults, with the check that finds each, part of its message, and whether host1 should be excluded."""
SHORT = (no_hostfile, refused_key)


def check_fault(pair: Pair, plant: Callable[[Pair], None], *options: str) -> None:
    """Plant a fault: only its check reports a fault, with its remedy."""
    id, words, is_of_host = FAULTS.get(plant) or LONG_FAULTS[plant]
    plant(pair)
    report, _ = pair.doctor(*options)
    # The limits of this machine may give a warning.
    found = [line for line in report["checks"] if line["state"] == "fault"]
    assert [line["id"] for line in found] == [id], found
    texts = [finding["text"] for finding in found[0]["findings"]]
    assert any(words in text for text in texts), texts
    assert {finding["remedy"] for finding in found[0]["findings"]} == {CHECKS[id].remedy}
    assert ("host1" in report["exclude"]) == is_of_host
    if report["exclude"] == ["host1"]:
        clean = (pair.folder / "hostfile.clean").read_text()
        assert clean == report["hostfile"] == "host0 slots=1\n"


@pytest.mark.parametrize("plant", SHORT, ids=lambda plant: plant.__name__)
def test_doctor_finds_a_fault_before_it_reaches_all_hosts(pair: Pair, plant: Callable[[Pair], None]) -> None:
    check_fault(pair, plant, "--quick")


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.parametrize(
    "plant", [fault for fault in FAULTS if fault not in SHORT], ids=lambda plant: plant.__name__
)
def test_doctor_finds_a_planted_fault(pair: Pair, plant: Callable[[Pair], None]) -> None:
    check_fault(pair, plant, "--quick")


def lost_variable(pair: Pair) -> None:
    """A site hook of the host unsets a cache variable."""
    pair.environ["HF_HOME"] = "/shared/hf"
    code = "import os\nos.environ.pop('HF_HOME', None)\n"
    pair.overlay(pair.second, PACKAGES, {"sitecustomize.py": code})


def slow_link(pair: Pair) -> None:
    line = "tc qdisc add dev card root tbf rate 80mbit burst 64kbit latency 400ms"
    pair.plant(pair.second, line, "tc qdisc del dev card root")


LONG_FAULTS: dict[Callable[[Pair], None], tuple[str, str, bool]] = {
    lost_variable: ("environment", "HF_HOME did not arrive on host1", True),
    slow_link: ("slow-link", "host0 and host1:", False),
}


@pytest.mark.slow
@pytest.mark.cluster
@pytest.mark.parametrize("plant", LONG_FAULTS, ids=lambda plant: plant.__name__)
def test_doctor_finds_a_fault_of_the_launch_or_of_a_link(pair: Pair, plant: Callable[[Pair], None]) -> None:
    check_fault(pair, plant, "--link-seconds", "2")


@pytest.mark.slow
@pytest.mark.cluster
def test_doctor_is_silent_on_a_healthy_pair(pair: Pair) -> None:
    # DeepSpeed and pdsh pass the value on through two shells.
    pair.environ |= {"WANDB_MODE": 'off%line "$HOME" `id` \\', "HF_TOKEN": "secret"}
    report, problem = pair.doctor("--link-seconds", "1")
    assert report["ready"] and not [line for line in report["checks"] if line["findings"]], report
    assert {"OMP_NUM_THREADS", "WANDB_MODE", "GLOO_REPTRAIN_NONCE"} <= {*report["arrived"]}
    assert [*report["links"]] == ["host0 - host1"] and not problem
    left = [path.name for path in (pair.folder / "runs").iterdir()]
    assert not left and not [*pair.folder.glob(".reptrain-doctor-*")]
