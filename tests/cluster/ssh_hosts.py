"""Two hosts on this machine, each with its own network, names, processes, mounts, and sshd.

Each host is a set of namespaces. The hosts share the file system and so the run folder. A mount on one
host is visible only on that host. When its first process ends, all of its processes end, as in a power cut.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from two_hosts import ADDRESSES, TwoHosts

NAMES = ("host0", "host1")
PROGRAMS = ("sshd", "ssh", "ssh-keygen", "pdsh", "ip", "unshare", "nsenter")
_SSHD = """
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/authorized-%u-{name}
PidFile none
StrictModes no
UsePAM no
PermitRootLogin yes
MaxStartups 100
LogLevel ERROR
"""
_SSH = """
Host *
    IdentityFile {folder}/key
    UserKnownHostsFile /dev/null
    StrictHostKeyChecking no
    LogLevel ERROR
"""
_START = """
mount --make-rprivate / && hostname {name} && ip link set lo up &&
mount -t tmpfs -o size=2g tmpfs /dev/shm && mount -t tmpfs tmpfs /run &&
mkdir -p /run/sshd && mount --bind {folder}/dot-ssh /root/.ssh && mount --bind {folder}/hosts /etc/hosts &&
exec {sshd} -D -e -f {folder}/sshd-{name}
"""
_PATH = f"{os.environ['PATH']}:/usr/sbin:/sbin"


@dataclass
class SshHost:
    """One host.

    Attributes:
        name: Its host name, which both hosts resolve.
        address: Its address.
        init: Its first process, which is sshd.
        network: The name of its network namespace.
        folder: Files of the fixture.
    """

    name: str
    address: str
    init: int
    network: str
    folder: Path

    def command(self, words: Sequence[object]) -> list[str]:
        """A command that runs on this host."""
        return ["nsenter", f"--target={self.init}", "--mount", "--uts", "--pid", "--net", *map(str, words)]

    def run(
        self, *words: object, environ: Mapping[str, str] | None = None, cwd: Path | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Run a command on this host."""
        return subprocess.run(
            self.command(["env", "-C", str(cwd or self.folder), *words]),
            env={**os.environ, "PATH": _PATH, **(environ or {})}, capture_output=True, text=True,
            timeout=240,
        )  # fmt: skip

    def do(self, line: str) -> None:
        """Run a shell line on this host; it must succeed."""
        ended = self.run("sh", "-c", line, cwd=Path("/"))
        assert ended.returncode == 0, f"{line}: {ended.stderr}"

    def kill(self) -> None:
        """End all of its processes at once."""
        os.kill(self.init, 9)


def missing_parts() -> list[str]:
    """The missing programs of this machine; ``root`` if the user is not root."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=_PATH) is None]
    return missing + ([] if os.geteuid() == 0 else ["root"])


@contextmanager
def ssh_hosts(folder: Path) -> Iterator[tuple[SshHost, SshHost]]:
    """Start both hosts, and end them afterwards.

    Raises:
        RuntimeError: If this machine cannot make them, with the reason.
    """
    _write_files(folder)
    network = TwoHosts()
    started: list[subprocess.Popen[bytes]] = []
    try:
        if (reason := network.make()) is not None:
            raise RuntimeError(reason)
        hosts = []
        for name, address, space in zip(NAMES, ADDRESSES, network.hosts, strict=True):
            process, init = _start(folder, name, space)
            started.append(process)
            hosts.append(SshHost(name, address, init, space, folder))
        for host in hosts:
            _wait_for_sshd(host)
        yield hosts[0], hosts[1]
    finally:
        for process in started:
            process.kill()
            process.wait(timeout=30)
        network.remove()


def _write_files(folder: Path) -> None:
    (folder / "dot-ssh").mkdir(parents=True)
    for key in ("key", "host_key"):
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key)], check=True, timeout=60
        )
    (folder / "dot-ssh" / "config").write_text(_SSH.format(folder=folder))
    (folder / "dot-ssh" / "config").chmod(0o600)
    rows = [f"{address} {name}\n" for name, address in zip(NAMES, ADDRESSES, strict=True)]
    (folder / "hosts").write_text("127.0.0.1 localhost\n" + "".join(rows))
    for name in NAMES:
        shutil.copy(folder / "key.pub", folder / f"authorized-root-{name}")
        (folder / f"sshd-{name}").write_text(_SSHD.format(folder=folder, name=name))
    Path("/root/.ssh").mkdir(mode=0o700, exist_ok=True)


def _start(folder: Path, name: str, network: str) -> tuple[subprocess.Popen[bytes], int]:
    """Start sshd as the first process of a host; returns its parent, with which it ends, and its id."""
    sshd = shutil.which("sshd", path=_PATH)
    script = _START.format(folder=folder, name=name, sshd=sshd)
    spaces = ["unshare", "--mount", "--uts", "--pid", "--fork", "--kill-child", "--mount-proc"]
    with (folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(
            ["ip", "netns", "exec", network, *spaces, "sh", "-c", script],
            env={**os.environ, "PATH": _PATH}, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    end = time.monotonic() + 30
    while time.monotonic() < end and process.poll() is None:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        if children:
            return process, int(children[0])
        time.sleep(0.02)
    raise RuntimeError(f"{name} does not start: {(folder / f'{name}.log').read_text()}")


def _wait_for_sshd(host: SshHost) -> None:
    end = time.monotonic() + 30
    while host.run("ssh", "-o", "BatchMode=yes", host.name, "true").returncode:
        if time.monotonic() > end:
            raise RuntimeError(f"sshd of {host.name}: {(host.folder / f'{host.name}.log').read_text()}")
        time.sleep(0.1)
