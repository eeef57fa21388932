"""Checks of each host: limits, memory, folders, stores and the clock."""

from __future__ import annotations

from collections.abc import Iterator

from reptrain_launcher.doctor.registry import Cluster, Finding, NotApplicableError, check, minority, named

_GIB = 2**30
_LEAST_FILES = 1024
_LEAST_SHM_PER_RANK = 2**27
_LEAST_MEMORY_PER_RANK = 2**30
_MOST_SKEW_S = 2.0
_MOST_SEEN_S = 2.0


@check(
    "limits",
    reads="ulimit -n (open files) and ulimit -l (locked memory)",
    remedy="Raise them in /etc/security/limits.conf, or LimitNOFILE and LimitMEMLOCK of sshd or slurmd.",
)
def _limits(cluster: Cluster) -> Iterator[Finding]:
    for host, limits in cluster.known("limits"):
        if 0 <= limits["nofile"] < _LEAST_FILES:
            yield Finding(f"{host} allows {limits['nofile']} open files, fewer than {_LEAST_FILES}", (host,))
        if not cluster.on_cpu and len(cluster.hosts) > 1 and 0 <= limits["memlock"] < _GIB:
            yield Finding(
                f"{host} allows {limits['memlock']} bytes of locked memory, which InfiniBand needs",
                (host,),
                "warning",
            )


@check(
    "shared-memory",
    reads="free space in /dev/shm",
    remedy="Enlarge it: mount -o remount,size=16G /dev/shm, or docker run --shm-size=16g. Remove files of"
    " killed runs.",
)
def _shared_memory(cluster: Cluster) -> Iterator[Finding]:
    if sum(cluster.hosts.values()) == 1:
        raise NotApplicableError("one rank")
    for host, free in cluster.known("shm_free"):
        least = _LEAST_SHM_PER_RANK * cluster.hosts[host]
        if free < least:
            yield Finding(
                f"/dev/shm of {host} has {free / 2**20:.0f} MiB free; {cluster.hosts[host]} ranks need"
                f" {least / 2**20:.0f} MiB",
                (host,),
            )


@check(
    "memory",
    reads="available memory",
    remedy="End other processes of the host, or start fewer ranks there.",
)
def _memory(cluster: Cluster) -> Iterator[Finding]:
    for host, memory in cluster.known("memory"):
        least = _LEAST_MEMORY_PER_RANK * cluster.hosts[host]
        if memory["available"] < least:
            yield Finding(
                f"{host} has {memory['available'] / _GIB:.1f} GiB available of {memory['total'] / _GIB:.0f};"
                f" {cluster.hosts[host]} ranks need {least / _GIB:.0f} GiB",
                (host,),
            )


@check(
    "disk",
    reads="free space and permissions of the folder of runs",
    remedy="Free space, fix the permissions or the mount options, or pass --out on another file system.",
)
def _disk(cluster: Cluster) -> Iterator[Finding]:
    for host, folder in cluster.known("folder"):
        if not folder["writable"]:
            yield Finding(f"{cluster.run} is not writable on {host}: {folder.get('error')}", (host,))
        needed = 2 * (cluster.checkpoint_bytes or 0) + 2**28
        if folder["free"] < needed:
            yield Finding(
                f"{cluster.run} has {folder['free'] / _GIB:.1f} GiB free on {host}; two checkpoints and the"
                f" logs need {needed / _GIB:.1f} GiB"
            )


@check(
    "shared-folder",
    reads="a file that the first host writes in the folder of runs, on the other hosts",
    remedy="Put the run folder on a file system that all hosts mount at the same path. On NFS, mount with"
    " actimeo=1 or lookupcache=positive.",
)
def _shared_folder(cluster: Cluster) -> Iterator[Finding]:
    if len(cluster.hosts) < 2:
        raise NotApplicableError("one host")
    lost = tuple(host for host, answer in cluster.meetings.items() if answer.get("seen_s", 0.0) is None)
    if lost and not any(
        folder["writable"] for host, folder in cluster.known("folder") if host == cluster.first
    ):
        raise NotApplicableError("the first host cannot write there")
    if lost:
        yield Finding(f"a new file of {cluster.first} in {cluster.run} is not seen on {named(lost)}", lost)
    for host, answer in cluster.meetings.items():
        seen = answer.get("seen_s") or 0.0
        if seen > _MOST_SEEN_S:
            yield Finding(f"{host} sees a new file after {seen:.1f} s", (host,), "warning")


@check(
    "store",
    reads="the manifest of each token store of the configuration",
    remedy="Copy the same store to every host, or use a shared file system; check it with"
    " `reptrain store verify`.",
)
def _store(cluster: Cluster) -> Iterator[Finding]:
    by_host = dict(cluster.known("stores"))
    for path in dict.fromkeys(path for stores in by_host.values() for path in stores):
        values = {host: stores.get(path) for host, stores in by_host.items()}
        missing = tuple(host for host, value in values.items() if value is None)
        if missing:
            yield Finding(f"{path} cannot be read on {named(missing)}", missing)
        usual, others = minority({host: value for host, value in values.items() if value is not None})
        for host, value in others.items():
            yield Finding(f"{path} on {host} has fingerprint {value}, on other hosts {usual}", (host,))


@check(
    "clock",
    reads="the time on every host, compared with the times of the request and the answer",
    remedy="Start a time service on the host: timedatectl set-ntp true, or chronyc makestep.",
)
def _clock(cluster: Cluster) -> Iterator[Finding]:
    for host, theirs in cluster.known("time"):
        answer = cluster.answers[host]
        skew = max(answer.sent - theirs, theirs - answer.received, 0.0)
        if skew > _MOST_SKEW_S:
            yield Finding(f"the clock of {host} differs by at least {skew:.0f} s", (host,))


@check(
    "time-limit",
    reads="the time limit of the run, the size of its checkpoint and the speed of the disk",
    remedy="Raise the time limit or signal-delay-s, or write to a faster file system.",
)
def _time_limit(cluster: Cluster) -> Iterator[Finding]:
    if cluster.time_limit_s is None:
        raise NotApplicableError("no time limit")
    if cluster.checkpoint_bytes is None:
        raise NotApplicableError("the size of a checkpoint is unknown")
    speeds = [folder["bytes_per_s"] for _, folder in cluster.known("folder") if folder.get("bytes_per_s")]
    if not speeds:
        return
    seconds = cluster.writes_at_stop * cluster.checkpoint_bytes / min(speeds)
    allowed = min(cluster.signal_delay_s, cluster.time_limit_s / 2)
    if seconds > allowed:
        yield Finding(
            f"saving at a stop takes about {seconds:.0f} s ({cluster.writes_at_stop} x"
            f" {cluster.checkpoint_bytes / _GIB:.1f} GiB), but only {allowed:.0f} s are reserved for it"
            " before the time limit"
        )


@check(
    "slow-link",
    reads="an all-reduce of 16 MiB between pairs of hosts",
    remedy="Check the cable, the switch port, and the speed of the card (ethtool, ibstat). Exclude"
    " the host until then.",
)
def _slow_link(cluster: Cluster) -> Iterator[Finding]:
    if not cluster.links:
        raise NotApplicableError("one host" if len(cluster.hosts) < 2 else "not measured")
    rates = sorted(rate for rate in cluster.links.values() if not isinstance(rate, str))
    least = max(50e6, 0.5 * rates[len(rates) // 2]) if rates else 0.0
    slow = {pair: rate for pair, rate in cluster.links.items() if isinstance(rate, str) or rate < least}
    ends = [host for pair in slow for host in pair]
    for (one, other), rate in slow.items():
        # In a slow pair, the host with more slow pairs is the cause.
        count = ends.count(one), ends.count(other)
        cause = () if count[0] == count[1] else ((one,) if count[0] > count[1] else (other,))
        text = rate if isinstance(rate, str) else f"{rate / 1e6:.0f} MB/s, less than {least / 1e6:.0f}"
        yield Finding(f"{one} and {other}: {text}", cause)
