"""The state of a study, read from the ends of its runs' records."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from reptrain.runs.folder import RunFolder
from reptrain.runs.records import FrozenRecord
from reptrain.study.arm_progress import read_progress
from reptrain.study.build import build_graph
from reptrain.study.collect import RowState
from reptrain.study.done_table import load_done
from reptrain.study.graph import Kind, Node
from reptrain.study.looks import load_looks
from reptrain.study.node_state import stored_fingerprint
from reptrain.study.paths import difference, result_path, run_path
from reptrain.study.schema import StudyConfig
from reptrain.study.words import hash_lines
from reptrain.tables.read_run import read_audit


class ArmStatus(FrozenRecord):
    """The state of one node, or the look that a claim with `max_seeds` is at.

    Attributes:
        arm: Its name.
        kind: Its command, or ``claim``.
        state: State of its run; ``waiting`` if it has not started; ``done elsewhere``: counted by ``--done``;
            ``not tuned``: its settings have not been tuned yet. For a claim, its look.
        reason: Why it failed or stopped.
        tokens: Tokens consumed so far.
        tokens_per_s: Latest training speed.
        audit_verdict: Verdict of the last audit, as in the tables; None: the run is not audited.
        audit_level: Level of that audit.
    """

    arm: str
    kind: Kind | Literal["claim"] = "train"
    state: RowState | Literal["done elsewhere", "not tuned", "first look", "second look"]
    reason: str | None = None
    tokens: int = 0
    tokens_per_s: float | None = None
    audit_verdict: str | None = None
    audit_level: str | None = None


def study_status(study: StudyConfig, out: Path) -> list[ArmStatus]:
    """The state of every node, inputs first; then the look of every claim that may have a second one.

    Raises:
        StudyError: If the study itself is wrong.
        RunError: If a run folder cannot be read.
    """
    elsewhere = load_done(out)
    return [
        _status(node, out, is_elsewhere=node.fingerprint in elsewhere)
        for node in build_graph(study, out).nodes
    ] + _looks(study, out)


def _looks(study: StudyConfig, out: Path) -> list[ArmStatus]:
    looks, rows = load_looks(out), []
    for claim in study.claims:
        if claim.max_seeds is None:
            continue
        look = looks.get(claim.name)
        reason = "not judged yet" if look is None else f"{look.verdict} at {claim.seeds} seeds"
        if look is not None and look.look == 2:
            reason += f"; {len(look.seeds)} more seeds for {', '.join(look.arms)}"
        is_second = look is not None and look.look == 2
        state: Literal["first look", "second look"] = "second look" if is_second else "first look"
        rows.append(ArmStatus(arm=claim.name, kind="claim", state=state, reason=reason))
    return rows


def _status(node: Node, out: Path, *, is_elsewhere: bool) -> ArmStatus:
    run = run_path(out, node.name)
    if node.pending:
        return ArmStatus(arm=node.name, kind=node.kind, state="not tuned")
    if node.config is None:
        is_done = stored_fingerprint(result_path(out, node.name)) == node.fingerprint
        return ArmStatus(arm=node.name, kind=node.kind, state="done" if is_done else "waiting")
    if not (run / "plan.json").exists():
        return ArmStatus(arm=node.name, state="done elsewhere" if is_elsewhere else "waiting")
    folder = RunFolder.open(run)
    differs = difference(node.config, folder)
    if differs is not None:
        return ArmStatus(arm=node.name, state=differs)
    status, progress = folder.status(), read_progress(run)
    return ArmStatus(
        arm=node.name,
        state=status.state,
        reason=status.reason,
        tokens=progress.tokens,
        tokens_per_s=progress.tokens_per_s,
        **read_audit(folder.path / "audit.json", status),
    )


def status_text(rows: Sequence[ArmStatus], audit: str, hashed: Mapping[str, str] | None = None) -> str:
    """One line for each node, the number of nodes in each state, and the level of the study's audits.

    Args:
        rows: The nodes.
        audit: The study's key `audit`.
        hashed: The settings behind the hashes in their names (`hashed_settings`).
    """
    lines = []
    for row in rows:
        line = f"{'claim ' if row.kind == 'claim' else ''}{row.arm}: {row.state}"
        if row.kind == "train":
            line += f", {row.tokens:,} tokens"
        if row.state == "running" and row.tokens_per_s:
            line += f", {row.tokens_per_s:,.0f} tokens/s"
        if row.audit_verdict:
            line += f", {row.audit_verdict} (audit of level {row.audit_level or 'windows'})"
        lines.append(line + (f" ({row.reason})" if row.reason else ""))
    counts = Counter(str(row.state) for row in rows if row.kind != "claim")
    states = ", ".join(f"{number} {state}" for state, number in counts.items())
    return "\n".join([*lines, *hash_lines(hashed or {}), states, f"audits: {audit}"])
