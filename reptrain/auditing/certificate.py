"""A one-page certificate of how often a run consumed its data: figures and fingerprints, no text or paths."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path

from reptrain.auditing.head_check import signature_of
from reptrain.auditing.report import AuditReport, SourceAudit
from reptrain.errors import RunError
from reptrain.files import write_atomically
from reptrain.runs.folder import RunFolder
from reptrain.runs.parent import read_parent
from reptrain.runs.run_plan import SourcePlan
from reptrain.store import open_store

NAMESPACE = "reptrain-certificate"
"""Namespace of the signature, for `ssh-keygen -Y verify -n`."""


def certify(
    run: Path, report: AuditReport, out: Path, *, stores: Mapping[str, str | Path], key: Path | None = None
) -> None:
    """Write the certificate of an audited run, and its signature as ``OUT.sig``.

    Args:
        run: The run folder.
        report: Its audit.
        out: File of the certificate.
        stores: Path of each source's store, if it has moved.
        key: SSH key to sign with; None: no signature.

    Raises:
        RunError: If the audit found a problem, or evidence is missing.
        ConfigError: If the key cannot be used.
    """
    if not report.as_planned or report.cannot_say:
        raise RunError(
            f"run {run}",
            got=report.head(),
            rule="must have consumed its data as planned to get a certificate",
            remedy="`reptrain audit` lists the problems.",
        )
    text = certificate_text(run, report, stores)
    signature = None if key is None else signature_of(text, key, NAMESPACE)
    write_atomically(out, text)
    if signature is not None:
        write_atomically(out.with_name(f"{out.name}.sig"), signature)


def certificate_text(run: Path, report: AuditReport, stores: Mapping[str, str | Path]) -> str:
    """The certificate as lines of text; the same run and audit give the same text."""
    folder = RunFolder.open(run)
    most = _most_exposures(folder.plan.sources, report)
    head = report.ledger.head if report.ledger else None
    lines = [
        "reptrain certificate: exposures of training data",
        "",
        f"This run consumed each token of its training data at most {most:,} time{'s' * (most != 1)}.",
        "",
        *_rows(
            {
                "verdict": report.head(),
                "level": "raw windows" if report.level == "windows" else "all inputs of the model",
                "data": "hashed again" if report.store_verified else "hashes not checked",
                "steps applied": f"{report.steps:,}",
                "tokens consumed": f"{report.tokens_consumed:,}",
                "config": folder.plan.config_fingerprint,
                "ledger head": head or "none",
                "initial weights": _initial_weights(run, folder),
                **_teacher(folder),
                "reptrain": version("reptrain"),
            }
        ),
    ]
    audits = {audit.name: audit for audit in report.sources}
    for source in folder.plan.sources:
        path = stores.get(source.name, source.store)
        lines += ["", f"source {source.name}", *_source_rows(source, audits[source.name], path)]
    lines += [
        "",
        "Words are separated by white space. Store words and bytes are those of the whole training split, as",
        "its manifest has them; the audit does not count them.",
        "To check: `reptrain audit RUN --head HEAD` with the run folder and its stores.",
    ]
    return "\n".join(lines) + "\n"


def _most_exposures(sources: Sequence[SourcePlan], report: AuditReport) -> int:
    """The largest number of exposures of a token. Sources that share a store may share its tokens."""
    audits = {audit.name: audit for audit in report.sources}
    most: Counter[str] = Counter()
    for source in sources:
        most[source.store_fingerprint] += max(audits[source.name].exposures, default=0)
    return max(most.values(), default=0)


def _initial_weights(run: Path, folder: RunFolder) -> str:
    """The origin of the initial weights: the data of another model is not counted here."""
    if folder.config.init_from is None:
        return "random"
    parent = read_parent(run)
    weights = "unknown weights" if parent is None else f"weights {parent.weights}"
    return f"{weights} of another model; its training data is not counted"


def _teacher(folder: RunFolder) -> dict[str, str]:
    teacher = folder.plan.teacher
    if teacher is None:
        return {}
    return {"teacher": f"weights {teacher} of another model; its training data is not counted"}


def _source_rows(source: SourcePlan, audit: SourceAudit, path: str | Path) -> list[str]:
    split = open_store(path).split("train")
    exposures = ", ".join(f"{tokens:,} x {times:,}" for times, tokens in audit.exposures.items())
    return _rows(
        {
            "store": source.store_fingerprint,
            "subset": source.subset_fingerprint,
            "store tokens": f"{split.num_tokens:,}",
            "store words": "not counted" if split.words is None else f"{split.words:,}",
            "store bytes": f"{split.text_bytes:,}",
            "unique tokens": f"{audit.unique_tokens:,}",
            "epochs": audit.epochs,
            "tokens x times": exposures,
        }
    )


def _rows(facts: Mapping[str, str]) -> list[str]:
    width = max(map(len, facts))
    return [f"  {name:<{width}}  {value}" for name, value in facts.items()]
