"""Commands for single runs."""

from __future__ import annotations

import json
import os
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from reptrain.cli.common import DONE, PREEMPTED, app, config_app, join_launched_ranks, show
from reptrain.cli.options import AsJson, ConfigFile, MaxMinutes, MovedStores, Out, Overrides
from reptrain.errors import ConfigError


@config_app.command("show")
def config_show(
    config: ConfigFile,
    overrides: Overrides = None,
    as_json: AsJson = False,
    plot: Annotated[
        Path | None,
        typer.Option(help="Also plot the learning rate and every schedule to a .png, .svg or .pdf file."),
    ] = None,
    parameters: Annotated[
        bool,
        typer.Option(
            "--parameters", help="Print each parameter's optimizer, learning rate and weight decay instead."
        ),
    ] = False,
) -> None:
    """Print a run's configuration with every default filled in."""
    from reptrain.config import config_fingerprint, load_run_config
    from reptrain.config.load import dump_yaml

    if plot is not None:
        from reptrain.report.schedules import draw_schedules

        draw_schedules(load_run_config(config, overrides or []), plot)
    if parameters:
        _show_parameters(config, overrides or [], as_json=as_json)
        return
    resolved = load_run_config(config, overrides or [])
    data = resolved.model_dump(mode="json")
    text = f"{dump_yaml(data)}# config fingerprint: {config_fingerprint(resolved)}"
    show(data, text, as_json=as_json)


def _show_parameters(config: Path, overrides: list[str], *, as_json: bool) -> None:
    from reptrain.sizes.subject import load_subject, trainable
    from reptrain.training.parameter_table import treatments, treatments_text

    subject = load_subject(config, overrides)
    run, model = trainable(subject, str(config))
    rows = treatments(model, run.optimizer, vocab_size=subject.vocab_size)
    show([row._asdict() for row in rows], treatments_text(rows), as_json=as_json)


@config_app.command("schema")
def config_schema(
    kind: Annotated[
        Literal["run", "finetune", "task", "study"], typer.Argument(help="Kind of configuration.")
    ] = "run",
) -> None:
    """Print the JSON Schema of a configuration: of a run, a fine-tuning run, a task or a study."""
    from pydantic import BaseModel

    from reptrain.config import RunConfig
    from reptrain.config.finetune import FinetuneConfig
    from reptrain.config.task import TaskConfig
    from reptrain.study.schema import StudyConfig

    schemas: dict[str, type[BaseModel]] = {
        "run": RunConfig,
        "finetune": FinetuneConfig,
        "task": TaskConfig,
        "study": StudyConfig,
    }
    typer.echo(json.dumps(schemas[kind].model_json_schema(), indent=2))


@app.command()
def train(
    config: ConfigFile,
    overrides: Overrides = None,
    out: Out = None,
    max_minutes: MaxMinutes = None,
    resume: Annotated[
        bool, typer.Option(help="Resume the run, or refuse a folder that has a checkpoint.")
    ] = True,
) -> None:
    """Train in one process, or join the ranks that deepspeed, torchrun, srun or mpirun started.

    The same command resumes from the newest checkpoint, on any number of ranks and at any ZeRO stage.
    A stop signal or --max-minutes saves a checkpoint and exits with code 3.
    """
    # Torch reads it at import. Spinning threads slow a CPU run down threefold if another process uses the
    # same cores, and gain nothing if none does.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    from reptrain_launcher.rank_environment import is_main_rank, read_rank_environment

    join_launched_ranks()
    # Before torch is loaded, which takes seconds.
    read_rank_environment()
    from reptrain.config import load_run_config
    from reptrain.distributed.stop import StopRequest
    from reptrain.runs.folder import refuse_to_resume
    from reptrain.training.loop import train as run
    from reptrain.training.summary import closing_text

    resolved = load_run_config(config, overrides or [])
    folder = out or Path("runs") / str(resolved.name)
    if not resume:
        refuse_to_resume(folder)
    stop = StopRequest(max_minutes)
    stop.catch()
    try:
        result = run(resolved, folder, stop=stop)
    except BaseException:
        stop.let_go()
        raise
    if result.state == "preempted":
        # A second signal must not change the exit code.
        stop.ignore()
    else:
        stop.let_go()
    if is_main_rank():
        why = f" ({result.reason})" if result.reason else ""
        typer.echo(f"{result.state}{why}: {result.steps} steps in {result.run}")
        if result.state == "preempted":
            typer.echo("The same command resumes the run.")
        else:
            typer.echo(closing_text(result.run))
    raise typer.Exit(PREEMPTED if result.state == "preempted" else DONE)


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


@app.command()
def audit(
    run: Annotated[
        Path, typer.Argument(help="Folder of a run, or of a fine-tuning run (audited at level inputs).")
    ],
    store: MovedStores = None,
    exposures: Annotated[
        Path | None,
        typer.Option(
            "--exposures", metavar="FILE.arrow", help="Also write the number of uses of every token."
        ),
    ] = None,
    level: Annotated[
        Literal["windows", "inputs"],
        typer.Option(
            help="windows: compare the raw windows that reached the device. inputs: also rebuild and compare"
            " the inputs of the model: input ids, targets, their weights, attention masks. Needs torch;"
            " takes time in proportion to the tokens seen."
        ),
    ] = "windows",
    processes: Annotated[
        int, typer.Option(min=1, max=1024, help="Processes that rebuild the inputs, with --level inputs.")
    ] = 1,
    head: Annotated[
        str | None,
        typer.Option(
            metavar="HASH", help="Check that the ledger contains this head, which was published earlier."
        ),
    ] = None,
    signature: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Check this signature of the ledger's head.")
    ] = None,
    signers: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Allowed signers: lines of NAME PUBLIC-KEY, as in ssh-keygen(1)."),
    ] = None,
    sign: Annotated[
        Path | None,
        typer.Option(
            metavar="KEY", help="Sign the ledger's head with this SSH key, as ledger.sig in the run."
        ),
    ] = None,
    certificate: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Also write a one-page certificate of the exposures, without text and paths; with --sign"
            " also its signature, FILE.sig.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Recount how often each token reached the model, from ledger and store.

    The report is written to audit.json in the run folder, which `reptrain runs` and the tables read.
    A report of level `windows` does not replace one of level `inputs` on the same ledger.

    Exit code 0: exact. 1: not exact. 2: wrong input. 4: no result, because files are damaged or missing.

    A run is exact if, after k epochs, it used each token of its subset floor(k) or ceil(k) times. A run with
    the order `mixed` is exact only after a whole number of epochs. Between epochs, a correct run is reported
    `as planned`, with exit code 1.
    """
    from reptrain.auditing.audit import audit as recount
    from reptrain.auditing.audit import store_places
    from reptrain.auditing.head_check import Signed, sign_head
    from reptrain.cli.inputs_audit import finetuning_audit, inputs_audit, is_finetuning
    from reptrain.progress import stage_progress

    if is_finetuning(run):
        given = {"--store": store, "--exposures": exposures, "--head": head, "--signature": signature}
        given |= {"--signers": signers, "--sign": sign, "--certificate": certificate}
        tuned = finetuning_audit(run, given)
        show(json.loads(tuned.model_dump_json()), tuned.text(), as_json=as_json)
        raise typer.Exit(tuned.exit_code)
    if (signature is None) != (signers is None):
        raise ConfigError(
            "--signature and --signers",
            got="one of them",
            rule="must be given together",
            remedy="Name the signature and the file of allowed signers.",
        )
    _check_certificate(certificate, sign)
    options: dict[str, Any] = {"store": store_places(run, store or []) or None, "exposures": exposures}
    options |= {"head": head, "signature": Signed(signature, signers) if signature and signers else None}
    if level == "inputs":
        recount = partial(inputs_audit("--level inputs"), processes=processes)
    with stage_progress() as progress:
        report = recount(run, progress=progress, **options)
    with suppress(OSError):  # A run that can only be read can be audited too.
        kept = report.keep(run)
        if kept.level != report.level:
            typer.echo(
                f"{run / 'audit.json'} keeps the report of level {kept.level} on this ledger", err=True
            )
    show(json.loads(report.to_json()), report.text(), as_json=as_json)
    if sign is not None and report.ledger is not None:
        sign_head(report.ledger.head, sign, run / "ledger.sig")
        typer.echo(f"signed as {run / 'ledger.sig'}", err=True)
    if certificate is not None:
        from reptrain.auditing.certificate import certify

        certify(run, report, certificate, stores=options["store"] or {}, key=sign)
        typer.echo(f"certificate: {certificate}", err=True)
    raise typer.Exit(report.exit_code)
