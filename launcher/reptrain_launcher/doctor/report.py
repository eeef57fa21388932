"""The report of `reptrain doctor`: one table, one verdict, and a remedy for each finding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from reptrain_launcher.doctor import gpu_checks, launch_checks, node_checks  # noqa: F401
from reptrain_launcher.doctor.registry import CHECKS, Cluster, Finding, NotApplicableError


class Line(NamedTuple):
    """The outcome of one check."""

    id: str
    state: Literal["ok", "skipped", "warning", "fault"]
    findings: tuple[Finding, ...]
    reason: str = ""
    """Why the check was skipped."""


@dataclass(frozen=True)
class DoctorReport:
    """The findings of the check."""

    lines: tuple[Line, ...]
    hosts: dict[str, int]
    details: dict[str, Any]
    """Figures of a healthy cluster: variables that arrived, and the speed of the links."""

    @property
    def ready(self) -> bool:
        """Whether there is no fault."""
        return not any(line.state == "fault" for line in self.lines)

    @property
    def to_exclude(self) -> list[str]:
        """Hosts that have a fault themselves, in the order of the hostfile."""
        faulty = {
            host
            for line in self.lines
            for finding in line.findings
            if finding.level == "fault"
            for host in finding.hosts
        }
        return [host for host in self.hosts if host in faulty]

    @property
    def clean_hostfile(self) -> str | None:
        """The hostfile without these hosts; None if no host has a fault, or all hosts have one."""
        rest = [host for host in self.hosts if host not in self.to_exclude]
        if not self.to_exclude or not rest:
            return None
        return "".join(f"{host} slots={self.hosts[host]}\n" for host in rest)

    def text(self) -> str:
        """The table and the verdict."""
        width = max(len(line.id) for line in self.lines)
        rows = []
        for line in self.lines:
            if line.state in ("ok", "skipped"):
                rows.append(f"{line.id:{width}}  {line.state}" + (f" ({line.reason})" if line.reason else ""))
                continue
            for finding in line.findings:
                remedy = finding.remedy or CHECKS[line.id].remedy
                rows.append(f"{line.id:{width}}  {finding.level.upper()}: {finding.text}")
                rows.append(f"{'':{width}}  -> {remedy}")
        rows += self._figures()
        faults = [line.id for line in self.lines if line.state == "fault"]
        warnings = [line.id for line in self.lines if line.state == "warning"]
        verdict = f"NOT READY: {', '.join(faults)}" if faults else "READY"
        rows.append(verdict + (f" (warnings: {', '.join(warnings)})" if warnings else ""))
        if self.clean_hostfile is not None:
            rows.append(f"To train without the faulty hosts: --exclude {','.join(self.to_exclude)}")
        return "\n".join(rows)

    def _figures(self) -> list[str]:
        shown = []
        if arrived := self.details.get("arrived"):
            shown.append(f"arrived on {len(self.hosts)} hosts: {', '.join(arrived)}")
        for pair, rate in self.details.get("links", {}).items():
            shown.append(
                f"all-reduce {pair}: " + (rate if isinstance(rate, str) else f"{rate / 1e6:.0f} MB/s")
            )
        return shown

    def data(self) -> dict[str, Any]:
        """The report as JSON."""
        return {
            "ready": self.ready,
            "hosts": self.hosts,
            "exclude": self.to_exclude,
            "hostfile": self.clean_hostfile,
            "checks": [
                {
                    "id": line.id,
                    "state": line.state,
                    "reason": line.reason,
                    "findings": [
                        {**finding._asdict(), "remedy": finding.remedy or CHECKS[line.id].remedy}
                        for finding in line.findings
                    ],
                }
                for line in self.lines
            ],
            **self.details,
        }


def diagnose(cluster: Cluster) -> DoctorReport:
    """Run all checks on the facts."""
    lines = []
    for check in CHECKS.values():
        try:
            findings = tuple(check.run(cluster))
        except NotApplicableError as reason:
            lines.append(Line(check.id, "skipped", (), str(reason)))
            continue
        states = {finding.level for finding in findings}
        state: Any = "fault" if "fault" in states else "warning" if states else "ok"
        lines.append(Line(check.id, state, findings))
    details: dict[str, Any] = {}
    if cluster.links:
        details["links"] = {f"{one} - {other}": rate for (one, other), rate in cluster.links.items()}
    if cluster.arrived:
        details["arrived"] = [
            name
            for name, value in cluster.sent.items()
            if all(found.get(name) == value for found in cluster.arrived.values())
        ]
    return DoctorReport(tuple(lines), cluster.hosts, details)
