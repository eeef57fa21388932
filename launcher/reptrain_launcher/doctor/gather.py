"""Collect the facts of all hosts: reach them, let them meet, launch a test program, measure the links."""

from __future__ import annotations

import json
import os
import secrets
import shutil
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reptrain.errors import LaunchError
from reptrain_launcher.arrival import MARK, fingerprint_of
from reptrain_launcher.devices import visible_gpus
from reptrain_launcher.doctor.launch_checks import master_problem
from reptrain_launcher.doctor.reach import Means, Reach, run_line
from reptrain_launcher.doctor.registry import Cluster
from reptrain_launcher.forwarding import deepspeed_file, forwarded, split_secrets
from reptrain_launcher.hostfile import read_hostfile
from reptrain_launcher.local import Device, is_this_machine, launch_command, launch_environment

_HERE = Path(__file__).parent
_NONCES = ("GLOO_", "HF_", "NCCL_", "OMP_", "TRITON_", "WANDB_")
_PORT = 29500
_LONGEST_START_S = 120.0
_RING_ABOVE = 8


@dataclass(frozen=True)
class Request:
    """What to check.

    Attributes:
        run: The run folder, as an absolute path.
        hostfile: The hostfile; None: this machine, or the nodes of the Slurm job.
        exclude: Hosts of the hostfile to leave out.
        gpus: Ranks on each host; None: the slots, or one per GPU.
        device: As in ``train.device``.
        stores: Folders of token stores.
        master_addr: Address of the first host; None: the one that DeepSpeed uses.
        master_port: Port of the rendezvous.
        ssh_port: Port of sshd.
        link_seconds: Seconds of all-reduces for each pair of hosts; 0: none.
        is_quick: Whether to skip the launch of a test program, and the all-reduces.
        time_limit_s: Time limit of the run.
        signal_delay_s: Seconds before the limit at which the run is stopped.
        checkpoint_bytes: Size of a checkpoint.
        writes_at_stop: Checkpoints that a stop may wait for: with saves in the background the one that is
            being written, and the last.
    """

    run: str
    hostfile: Path | None = None
    exclude: Sequence[str] = ()
    gpus: int | None = None
    device: Device = "auto"
    stores: Sequence[str] = ()
    master_addr: str | None = None
    master_port: int | None = None
    ssh_port: int | None = None
    link_seconds: float = 10.0
    is_quick: bool = False
    time_limit_s: float | None = None
    signal_delay_s: float = 120.0
    checkpoint_bytes: int | None = None
    writes_at_stop: int = 1
    nonce: str = field(default_factory=lambda: secrets.token_hex(6))


def gather(request: Request) -> Cluster:
    """Collect the facts of all hosts. A fault of a host raises no error."""
    cluster, means = _cluster(request)
    if cluster.hostfile_error is not None or cluster.programs:
        return cluster
    reach = Reach(means, folder=cluster.folder, interpreter=cluster.interpreter, ssh_port=request.ssh_port)
    question = {
        "folder": str(Path(cluster.run).parent),
        "stores": [*request.stores],
        "nonce": request.nonce,
        "port": cluster.port,
    }
    cluster.answers = reach.ask(
        _HERE / "probe.py", dict.fromkeys(cluster.hosts, question), timeout_s=_LONGEST_START_S
    )
    own = dict(cluster.known("own_addresses")).get(cluster.first, [])
    cluster.master = request.master_addr or next(iter(own), None)
    is_whole = all(answer.stage == "ok" for answer in cluster.answers.values())
    if len(cluster.hosts) > 1 and is_whole and cluster.master and master_problem(cluster) is None:
        _meet(cluster, reach, request)
        met = all("error" not in meeting for meeting in cluster.meetings.values())
        if means == "ssh" and not request.is_quick:
            _launch(cluster, request)
        if met and request.link_seconds > 0 and not request.is_quick:
            _measure_links(cluster, reach, request)
    return cluster


def _cluster(request: Request) -> tuple[Cluster, Means]:
    """The hosts, without their facts, and how they are reached."""
    on_cpu = request.device == "cpu" or os.environ.get("DS_ACCELERATOR") == "cpu"
    means: Means = "here"
    hosts, error = {socket.gethostname(): 1}, None
    limit = request.time_limit_s
    if request.hostfile is not None:
        try:
            hosts = read_hostfile(request.hostfile, request.exclude)
        except LaunchError as problem:
            error = str(problem)
        means = "here" if is_this_machine(hosts) or error else "ssh"
    elif os.environ.get("SLURM_JOB_NODELIST") and shutil.which("scontrol"):
        hosts, means = _slurm_hosts(), "srun"
    else:
        on_cpu = on_cpu or (request.device == "auto" and not visible_gpus())
        hosts = {socket.gethostname(): 1 if on_cpu else len(visible_gpus())}
    if request.gpus is not None:
        hosts = dict.fromkeys(hosts, request.gpus)
    programs = [name for name in ("ssh", "pdsh") if means == "ssh" and shutil.which(name) is None]
    interface = os.environ.get("GLOO_SOCKET_IFNAME" if on_cpu else "NCCL_SOCKET_IFNAME")
    cluster = Cluster(
        hosts=hosts,
        is_remote=means != "here",
        on_cpu=on_cpu,
        folder=str(Path.cwd()),
        run=request.run,
        interpreter=sys.executable,
        port=request.master_port or _PORT,
        hostfile=None if request.hostfile is None else str(request.hostfile),
        hostfile_error=error,
        programs=tuple(programs),
        interface=interface,
        time_limit_s=limit,
        signal_delay_s=request.signal_delay_s,
        checkpoint_bytes=request.checkpoint_bytes,
        writes_at_stop=request.writes_at_stop,
    )
    return cluster, means


def _slurm_hosts() -> dict[str, int]:
    nodes, _ = run_line(
        ["scontrol", "show", "hostnames", os.environ["SLURM_JOB_NODELIST"]], os.environ, timeout_s=60
    )
    ranks = os.environ.get("SLURM_NTASKS_PER_NODE", "1")
    return dict.fromkeys(nodes.split(), int(ranks) if ranks.isdigit() else 1)


def _meet(cluster: Cluster, reach: Reach, request: Request) -> None:
    if dict(cluster.known("port_free")).get(cluster.first) is not True:
        return
    question: dict[str, Any] = {
        "address": cluster.master,
        "port": cluster.port,
        "folder": str(Path(cluster.run).parent),
        "nonce": request.nonce,
        "others": len(cluster.hosts) - 1,
        "wait_s": 15,
        "file_s": 15,
    }
    questions = {host: {**question, "first": host == cluster.first} for host in cluster.hosts}
    answers = reach.ask(_HERE / "meeting.py", questions, timeout_s=_LONGEST_START_S)
    for host, answer in answers.items():
        cluster.meetings[host] = answer.facts if answer.stage == "ok" else {"error": answer.error}


def _launch(cluster: Cluster, request: Request) -> None:
    """Start one rank on each host through the real launcher, and compare the environments."""
    assert request.hostfile is not None
    nonces = {f"{start}REPTRAIN_NONCE": request.nonce for start in _NONCES}
    command = launch_command(
        Path("unused"),
        gpus=1,
        hostfile=request.hostfile,
        device=request.device,
        master_port=cluster.port,
        master_addr=cluster.master,
        ssh_port=request.ssh_port,
        exclude=request.exclude,
    )
    own = launch_environment(
        gpus=1, hostfile=request.hostfile, device=request.device, exclude=request.exclude
    )
    sent, _ = split_secrets(forwarded(os.environ, nonces | {n: v for n, v in own.items() if n != "PATH"}))
    cluster.sent = {name: fingerprint_of(value) for name, value in sent.items()}
    listed = Path(cluster.folder) / f".reptrain-doctor-{request.nonce}.env"
    command = command[: command.index("--module")]
    command += ["--module", "reptrain_launcher.arrival", *sent]
    cluster.arrived = {}
    try:
        listed.write_text(deepspeed_file(sent))
        output, problem = run_line(
            command, {**os.environ, **own, "DS_ENV_FILE": str(listed)}, timeout_s=_LONGEST_START_S
        )
    except OSError as error:
        output, problem = "", str(error)
    finally:
        listed.unlink(missing_ok=True)
    for line in output.splitlines():
        # pdsh puts the host before each line.
        host, _, report = line.partition(MARK)
        if report:
            cluster.arrived[host.strip().rstrip(":")] = json.loads(report)["variables"]
    cluster.arrival_error = " ".join(problem.split())[-300:] or "no output"


def _measure_links(cluster: Cluster, reach: Reach, request: Request) -> None:
    """Measure pairs of hosts. Pairs without a common host are measured at the same time."""
    addresses = {host: meeting.get("source") for host, meeting in cluster.meetings.items()}
    addresses[cluster.first] = cluster.master
    for round_number, pairs in enumerate(rounds([*cluster.hosts])):
        questions = {}
        for one, other in pairs:
            question = {
                "address": addresses[one],
                # A different port for each round: the port of the previous round may still be closing.
                "port": cluster.port + 1 + round_number % 100,
                "cpu": cluster.on_cpu,
                "seconds": request.link_seconds,
            }
            for rank, host in enumerate((one, other)):
                interfaces = cluster.answers[host].facts.get("interfaces") or {}
                used = [name for name, found in interfaces.items() if addresses[host] in found]
                interface = cluster.interface or next(iter(used), None)
                questions[host] = {**question, "rank": rank, "interface": interface}
        answers = reach.ask(_HERE / "link.py", questions, timeout_s=_LONGEST_START_S + request.link_seconds)
        for one, other in pairs:
            facts = [answers[host].facts for host in (one, other)]
            errors = [str(fact["error"]) for fact in facts if "error" in fact]
            errors += [answers[host].error for host in (one, other) if answers[host].stage != "ok"]
            cluster.links[one, other] = errors[0] if errors else min(fact["bytes_per_s"] for fact in facts)


def rounds(hosts: Sequence[str]) -> list[list[tuple[str, str]]]:
    """Pairs of hosts in rounds, each host once in a round: all pairs, or two rings of many hosts.

    >>> rounds(["a", "b", "c"])
    [[('b', 'c')], [('a', 'c')], [('a', 'b')]]
    """
    places: list[str | None] = [*hosts, *([None] if len(hosts) % 2 else [])]
    size = len(places)
    found = []
    # The circle method: the first place stays, the others rotate.
    for _ in range(size - 1):
        pairs = [(places[k], places[size - 1 - k]) for k in range(size // 2)]
        kept = [(one, other) for one, other in pairs if one is not None and other is not None]
        found.append([(a, b) if hosts.index(a) < hosts.index(b) else (b, a) for a, b in kept])
        places = [places[0], places[-1], *places[1:-1]]
    return found if len(hosts) <= _RING_ABOVE else found[:4]
