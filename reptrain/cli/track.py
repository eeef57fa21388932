"""The command that sends metrics to an experiment tracker."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from reptrain.cli.common import app, show
from reptrain.cli.options import AsJson, RunFolders
from reptrain.errors import ConfigError


@app.command()
def track(
    runs: RunFolders,
    to: Annotated[Literal["wandb", "mlflow", "tensorboard"], typer.Option("--to", help="The tracker.")],
    project: Annotated[
        str, typer.Option("--project", help="Project of wandb, or experiment of MLflow.")
    ] = "reptrain",
    offline: Annotated[
        bool, typer.Option("--offline", help="With wandb: write a folder for `wandb sync`, and send nothing.")
    ] = False,
    follow: Annotated[
        bool, typer.Option("--follow", help="Wait for more steps until the run ends; for one run.")
    ] = False,
    paths: Annotated[
        bool, typer.Option("--paths", help="Send settings that are paths or addresses, too.")
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="With tensorboard: folder for links to the curves of all runs."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Send metrics to wandb or MLflow, or link TensorBoard curves.

    Sends figures and settings. Paths, text, the machine, the user and the console output are not sent.
    """
    from reptrain.runs.trackers import link_boards
    from reptrain.runs.trackers import track as send

    _refuse_options_of_others(
        to,
        {"--offline": (offline, ["wandb"]), "--out": (out is not None, ["tensorboard"])}
        | {name: (given, ["wandb", "mlflow"]) for name, given in (("--follow", follow), ("--paths", paths))},
    )
    if to == "tensorboard":
        if out is None:
            raise ConfigError(
                "--out", got="nothing", rule="must be given with --to tensorboard", remedy="Pass --out DIR."
            )
        links = link_boards(runs, out)
        text = f"{len(links)} runs: tensorboard --logdir {out}"
        show({"links": [str(link) for link in links]}, text, as_json=as_json)
        return
    if follow and len(runs) > 1:
        raise ConfigError(
            "--follow",
            got=f"{len(runs)} runs",
            rule="must have one run",
            remedy="Start it once for each run.",
        )
    sent = {
        str(run): send(run, to, project=project, offline=offline, follow=follow, paths=paths) for run in runs
    }
    text = "\n".join(f"{run}: {number:,} records" for run, number in sent.items())
    show(sent, text, as_json=as_json)


def _refuse_options_of_others(to: str, options: dict[str, tuple[bool, list[str]]]) -> None:
    """Refuse an option that the tracker does not have: MLflow would send what --offline must not send.

    Args:
        to: The tracker.
        options: Whether each option is given, and the trackers that have it.
    """
    for name, (given, trackers) in options.items():
        if given and to not in trackers:
            raise ConfigError(
                name,
                got=f"--to {to}",
                rule=f"needs --to {' or '.join(trackers)}",
                remedy="Leave it out, or choose another tracker.",
            )
