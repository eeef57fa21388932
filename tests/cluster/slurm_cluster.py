"""A real Slurm on this machine: a controller, and two nodes that are two daemons on two ports.

It has two partitions. A job in ``high`` preempts jobs in ``low``, which get their user signal, then a grace
time, and are requeued.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel", "scontrol", "sinfo")
_CONFIG = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
ReturnToService=2
MpiDefault=none
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2,sched_min_interval=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
{preempt_parameters}
KillWait=5
MinJobAge=300
NodeName=node0 NodeHostName={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=2 RealMemory=4000
NodeName=node1 NodeHostName={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=2 RealMemory=4000
PartitionName=low Nodes=node[0-1] Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=60 MaxTime=60
PartitionName=high Nodes=node[0-1] PriorityTier=10 PreemptMode=OFF MaxTime=60
"""


@dataclass(frozen=True)
class SlurmCluster:
    """A running cluster. Its commands find it by SLURM_CONF."""

    config: Path

    def call(self, *command: str) -> str:
        """The output of a Slurm command."""
        ended = subprocess.run(
            command, env=os.environ | {"SLURM_CONF": str(self.config)}, capture_output=True, text=True
        )
        assert ended.returncode == 0, f"{command}: {ended.stderr}"
        return ended.stdout.strip()

    def occupy(self, nodes: int = 2) -> str:
        """Submit a job to ``high`` that takes whole nodes until it is cancelled; returns its id."""
        return self.call(
            "sbatch", "--parsable", "-p", "high", f"-N{nodes}", "--exclusive", "-o", "/dev/null",
            "--wrap", "sleep 600",
        )  # fmt: skip


def missing_programs() -> list[str]:
    """The programs that this machine lacks, or ``root``."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]
    return missing + ([] if os.geteuid() == 0 else ["root"])


@contextmanager
def slurm_cluster(folder: Path, *, user_signal: bool = True) -> Iterator[SlurmCluster]:
    """Start a cluster, and end its processes at the end.

    Args:
        folder: For its configuration, state and logs.
        user_signal: Whether a preempted job gets its user signal; otherwise SIGTERM only.
    """
    config = folder / "slurm.conf"
    (folder / "state").mkdir(parents=True)
    config.write_text(
        _CONFIG.format(
            folder=folder,
            host=socket.gethostname().partition(".")[0],
            ports=_free_ports(3),
            preempt_parameters="SlurmctldParameters=preempt_send_user_signal" if user_signal else "",
        )
    )
    daemons = [_start_munge(folder)]
    try:
        environment = os.environ | {"SLURM_CONF": str(config), "PATH": _path()}
        for command in (
            ["slurmctld", "-D"],
            ["slurmd", "-D", "-N", "node0"],
            ["slurmd", "-D", "-N", "node1"],
        ):
            log = (folder / f"{'-'.join(command)}.out").open("ab")
            daemons.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
        cluster = SlurmCluster(config)
        _wait_for_nodes(cluster, folder)
        yield cluster
        cluster.call("scancel", "--quiet", "-u", "root")
        # A job reports its end to the controller: without one it would wait, and its node's daemon with it.
        _wait(lambda: not cluster.call("squeue", "--noheader"), "jobs do not end")
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in reversed(daemons):
            daemon.wait(timeout=60)


def _start_munge(folder: Path) -> subprocess.Popen[bytes]:
    room = folder / "munge"
    room.mkdir()
    key = room / "key"
    key.write_bytes(os.urandom(128))
    key.chmod(0o600)
    command = ["munged", "--foreground", "--force", "--key-file", str(key), "--socket", str(room / "socket")]
    command += [
        "--pid-file",
        str(room / "pid"),
        "--log-file",
        str(room / "log"),
        "--seed-file",
        str(room / "seed"),
    ]
    daemon = subprocess.Popen(
        command, env=os.environ | {"PATH": _path()}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    _wait(lambda: (room / "socket").exists(), "munged does not start")
    return daemon


def _wait_for_nodes(cluster: SlurmCluster, folder: Path) -> None:
    def ready() -> bool:
        ended = subprocess.run(
            ["sinfo", "--noheader", "-N", "-p", "low", "-o", "%t"],
            env=os.environ | {"SLURM_CONF": str(cluster.config)}, capture_output=True, text=True,
        )  # fmt: skip
        return ended.stdout.split() == ["idle", "idle"]

    _wait(ready, f"the nodes do not come up; see the logs in {folder}")


def _wait(condition: object, message: str, limit_s: float = 30.0) -> None:
    end = time.monotonic() + limit_s
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < end, message
        time.sleep(0.2)


def _free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for number in sockets:
        number.bind(("127.0.0.1", 0))
    ports: list[int] = [number.getsockname()[1] for number in sockets]
    for number in sockets:
        number.close()
    return ports


def _path() -> str:
    return f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
