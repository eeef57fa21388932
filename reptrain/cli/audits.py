"""The command that recounts a run from its ledger and stores."""

from __future__ import annotations

import json
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from reptrain.cli.common import app, show
from reptrain.cli.options import AsJson, MovedStores
from reptrain.errors import ConfigError

if TYPE_CHECKING:
    from reptrain.auditing.head_check import Signed
    from reptrain.auditing.report import AuditReport

AuditedRun = Annotated[
    Path,
    typer.Argument(metavar="RUN", help="Folder of a run, or of a fine-tuning run (audited at level inputs)."),
]
Exposures = Annotated[
    Path | None,
    typer.Option(
        "--exposures", metavar="FILE.arrow", help="Also write the number of exposures of every token."
    ),
]
Level = Annotated[
    Literal["windows", "inputs"],
    typer.Option(
        "--level",
        help="windows: compare the raw windows that reached the device. inputs: also rebuild and compare"
        " the inputs of the model: input ids, targets, their weights, attention masks. Needs torch;"
        " takes time in proportion to the tokens seen.",
    ),
]
Processes = Annotated[
    int,
    typer.Option(
        "--processes", min=1, max=1024, help="Processes that rebuild the inputs, with --level inputs."
    ),
]
Head = Annotated[
    str | None,
    typer.Option(
        "--head",
        metavar="HASH",
        help="Check that the ledger contains this head, which was published earlier.",
    ),
]
Signature = Annotated[
    Path | None,
    typer.Option("--signature", metavar="FILE", help="Check this signature of the ledger's head."),
]
Signers = Annotated[
    Path | None,
    typer.Option(
        "--signers",
        metavar="FILE",
        help="Allowed signers: lines of NAME PUBLIC-KEY, as in ssh-keygen(1).",
    ),
]
SigningKey = Annotated[
    Path | None,
    typer.Option(
        "--sign",
        metavar="KEY",
        help="Sign the ledger's head with this SSH key, as ledger.sig in the run.",
    ),
]
Certificate = Annotated[
    Path | None,
    typer.Option(
        "--certificate",
        metavar="FILE",
        help="Also write a one-page certificate of the exposures, without text or paths; with --sign"
        " also its signature, FILE.sig.",
    ),
]


@app.command()
def audit(
    run: AuditedRun,
    store: MovedStores = None,
    exposures: Exposures = None,
    level: Level = "windows",
    processes: Processes = 1,
    head: Head = None,
    signature: Signature = None,
    signers: Signers = None,
    sign: SigningKey = None,
    certificate: Certificate = None,
    as_json: AsJson = False,
) -> None:
    """Recount how often each token reached the model.

    The counts come from the ledger of the run and from the token store.

    The report is written to audit.json in the run folder, which `reptrain runs` and the tables read.
    A report of level `windows` does not replace one of level `inputs` on the same ledger.

    Exit code 0: exact. 1: not exact. 2: invalid input. 4: no result, because files are damaged or missing.

    A run is exact if, after k epochs, it used each token of its subset floor(k) or ceil(k) times. A run with
    the order `mixed` is exact only after a whole number of epochs. Between epochs, a correct run is reported
    `as planned`, with exit code 1.
    """
    from reptrain.auditing.audit import audit as recount
    from reptrain.auditing.audit import store_places
    from reptrain.cli.inputs_audit import finetuning_audit, inputs_audit, is_finetuning
    from reptrain.progress import stage_progress

    if is_finetuning(run):
        given = {"--store": store, "--exposures": exposures, "--head": head, "--signature": signature}
        given |= {"--signers": signers, "--sign": sign, "--certificate": certificate}
        tuned = finetuning_audit(run, given)
        show(json.loads(tuned.model_dump_json()), tuned.text(), as_json=as_json)
        raise typer.Exit(tuned.exit_code)
    signed = _signed(signature, signers)
    _check_certificate(certificate, sign)
    stores = store_places(run, store or [])
    if level == "inputs":
        recount = partial(inputs_audit("--level inputs"), processes=processes)
    with stage_progress() as progress:
        report = recount(
            run, progress=progress, store=stores or None, exposures=exposures, head=head, signature=signed
        )
    _keep(report, run)
    show(json.loads(report.to_json()), report.text(), as_json=as_json)
    _sign(report, run, sign, certificate, stores)
    raise typer.Exit(report.exit_code)


def _signed(signature: Path | None, signers: Path | None) -> Signed | None:
    """The signature to check, with the file of allowed signers."""
    from reptrain.auditing.head_check import Signed

    if (signature is None) != (signers is None):
        raise ConfigError(
            "--signature and --signers",
            got="one of them",
            rule="must be given together",
            remedy="Name the signature and the file of allowed signers.",
        )
    return Signed(signature, signers) if signature and signers else None


def _check_certificate(certificate: Path | None, key: Path | None) -> None:
    """Refuse a wrong path before the audit, which may take hours."""
    if certificate is not None and (certificate.is_dir() or not certificate.parent.is_dir()):
        raise ConfigError(
            f"--certificate {certificate}",
            got="a folder" if certificate.is_dir() else "no such folder",
            rule="must be a file in an existing folder",
            remedy="Check the path.",
        )
    if key is not None and not key.is_file():
        raise ConfigError(
            f"--sign {key}",
            got="no such file",
            rule="must be a key that ssh-keygen can sign with",
            remedy="Create one with `ssh-keygen -t ed25519 -f FILE`.",
        )


def _keep(report: AuditReport, run: Path) -> None:
    """Write audit.json, unless it holds a report of a higher level on the same ledger."""
    # A run that can only be read can be audited too.
    with suppress(OSError):
        kept = report.keep(run)
        if kept.level != report.level:
            typer.echo(
                f"{run / 'audit.json'} keeps the report of level {kept.level} on this ledger", err=True
            )


def _sign(
    report: AuditReport, run: Path, key: Path | None, certificate: Path | None, stores: dict[str, Path]
) -> None:
    """Write the signature of the ledger's head and the certificate, as asked."""
    from reptrain.auditing.certificate import certify
    from reptrain.auditing.head_check import sign_head

    if key is not None and report.ledger is not None:
        sign_head(report.ledger.head, key, run / "ledger.sig")
        typer.echo(f"signed as {run / 'ledger.sig'}", err=True)
    if certificate is not None:
        certify(run, report, certificate, stores=stores, key=key)
        typer.echo(f"certificate: {certificate}", err=True)
