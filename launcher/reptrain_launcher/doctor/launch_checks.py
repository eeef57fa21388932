"""Checks of the hostfile, ssh, the interpreter, the environment and the address."""

from __future__ import annotations

from collections.abc import Iterator

from reptrain_launcher.doctor.registry import Cluster, Finding, NotApplicableError, check, minority, named

_BRIDGES = ("docker", "br-", "virbr", "cni", "flannel", "veth", "podman")


@check(
    "hostfile",
    reads="the hostfile",
    remedy="Fix the path or the line. DeepSpeed trains on this machine alone if the file is missing.",
)
def _hostfile(cluster: Cluster) -> Iterator[Finding]:
    if cluster.hostfile is None:
        raise NotApplicableError("no --hostfile")
    if cluster.hostfile_error is not None:
        yield Finding(cluster.hostfile_error)


@check(
    "programs",
    reads="PATH of this machine",
    remedy="Install them with the package manager: apt-get install openssh-client pdsh.",
)
def _programs(cluster: Cluster) -> Iterator[Finding]:
    if cluster.programs:
        yield Finding(f"not on PATH: {', '.join(cluster.programs)}")


@check(
    "ssh",
    reads="the output of a command on every host",
    remedy="Run `ssh HOST true` until it asks no question: copy your key with ssh-copy-id, accept the host"
    " key, and start sshd on the host.",
)
def _ssh(cluster: Cluster) -> Iterator[Finding]:
    for host, answer in cluster.answers.items():
        if answer.stage == "unreachable":
            yield Finding(f"{host} is not reachable: {answer.error or 'no output'}", (host,))


@check(
    "working-folder",
    reads="whether the working folder exists on every host",
    remedy="Start from a folder on a file system that all hosts mount at the same path.",
)
def _working_folder(cluster: Cluster) -> Iterator[Finding]:
    lost = tuple(host for host, answer in cluster.answers.items() if answer.stage == "no folder")
    if lost:
        yield Finding(f"{cluster.folder} does not exist on {named(lost)}", lost)


@check(
    "interpreter",
    reads="whether this Python exists on every host, and starts",
    remedy="Create the virtual environment at the same path on every host, or on a shared file system.",
)
def _interpreter(cluster: Cluster) -> Iterator[Finding]:
    for host, answer in cluster.answers.items():
        if answer.stage == "no interpreter":
            yield Finding(f"{cluster.interpreter} does not exist on {host}", (host,))
        elif answer.stage == "failed":
            yield Finding(f"{cluster.interpreter} fails on {host}: {answer.error}", (host,))


@check(
    "environment",
    reads="variables that the launcher sends, on every host",
    remedy="Look for a shell profile, a module or a site hook of the host that changes it. Send other"
    " variables with --env NAME=VALUE.",
)
def _environment(cluster: Cluster) -> Iterator[Finding]:
    if cluster.arrived is None:
        raise NotApplicableError("not tested" if cluster.is_remote else "one machine")
    for host in cluster.hosts:
        if host not in cluster.arrived:
            yield Finding(f"the launcher did not start a rank on {host}: {cluster.arrival_error}", (host,))
            continue
        lost = [name for name, value in cluster.sent.items() if cluster.arrived[host].get(name) != value]
        if lost:
            yield Finding(f"{', '.join(sorted(lost))} did not arrive on {host}", (host,))


@check(
    "master-address",
    reads="addresses of the first host, in the order of `hostname -I`",
    remedy="Pass --master-addr with an address of the first host that the other hosts can reach.",
)
def _master_address(cluster: Cluster) -> Iterator[Finding]:
    if len(cluster.hosts) < 2:
        raise NotApplicableError("one host")
    if cluster.master is None:
        if cluster.answers[cluster.first].stage == "ok":
            yield Finding(f"{cluster.first} prints no address for `hostname -I`")
        return
    problem = master_problem(cluster)
    if problem is not None:
        yield Finding(problem)


def master_problem(cluster: Cluster) -> str | None:
    """Why other hosts cannot reach the master address; None if no reason is known."""
    if cluster.master is None:
        return None
    if cluster.master.startswith("127."):
        return f"{cluster.master} of {cluster.first} is a loopback address"
    for name, addresses in dict(cluster.known("interfaces")).get(cluster.first, {}).items():
        if cluster.master in addresses and name.startswith(_BRIDGES):
            return f"{cluster.master} of {cluster.first} belongs to {name}, a bridge of containers"
    return None


@check(
    "port",
    reads="a connection from every host to the first one, at the port of the rendezvous",
    remedy="End the process that uses the port, open it in the firewall, or pass another --master-port.",
)
def _port(cluster: Cluster) -> Iterator[Finding]:
    if len(cluster.hosts) < 2:
        raise NotApplicableError("one host")
    free = dict(cluster.known("port_free")).get(cluster.first, True)
    if free is not True:
        yield Finding(f"port {cluster.port} of {cluster.first}: {free}")
        return
    for host, meeting in cluster.meetings.items():
        if "error" in meeting and host != cluster.first:
            yield Finding(
                f"{host} cannot connect to {cluster.master}:{cluster.port}: {meeting['error']}", (host,)
            )


@check(
    "network-card",
    reads="the interface that each host uses to reach the first one, NCCL_SOCKET_IFNAME, GLOO_SOCKET_IFNAME",
    remedy="Set NCCL_SOCKET_IFNAME and GLOO_SOCKET_IFNAME to the interface of the fast network, with --env.",
)
def _network_card(cluster: Cluster) -> Iterator[Finding]:
    if len(cluster.hosts) < 2:
        raise NotApplicableError("one host")
    wanted = (cluster.interface or "").lstrip("=^").split(",")[0]
    for host, found in cluster.known("interfaces"):
        if wanted and not (cluster.interface or "").startswith("^"):
            if not any(name.startswith(wanted) for name in found):
                yield Finding(f"{host} has no interface {wanted}, only {', '.join(sorted(found))}", (host,))
            continue
        source = cluster.meetings.get(host, {}).get("source")
        used = next((name for name, addresses in found.items() if source in addresses), None)
        if host != cluster.first and used is not None and used.startswith(("lo", *_BRIDGES)):
            yield Finding(f"{host} would reach {cluster.first} through {used}", (host,))


@check(
    "versions",
    reads="versions of Python, torch, deepspeed, triton, NCCL and the driver, and reptrain's source",
    remedy="Install the same versions on every host: pip install -c constraints.txt -e .",
)
def _versions(cluster: Cluster) -> Iterator[Finding]:
    rows: dict[str, dict[str, str | None]] = {}
    for host, packages in cluster.known("packages"):
        facts = cluster.answers[host].facts
        rows[host] = {**packages, "python": facts["python"], "reptrain source": facts.get("source")}
        if facts.get("gpus"):
            rows[host]["driver"] = facts["gpus"][0]["driver"]
    for name in dict.fromkeys(name for row in rows.values() for name in row):
        usual, others = minority({host: row.get(name) for host, row in rows.items()})
        for host, value in others.items():
            yield Finding(
                f"{name} is {value or 'missing'} on {host}, {usual or 'missing'} on other hosts", (host,)
            )
        if usual is None and name in ("torch", "deepspeed"):
            yield Finding(f"{name} is not installed")
