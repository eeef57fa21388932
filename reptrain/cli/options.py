"""Options and arguments that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file of a run.")]
RunFolders = Annotated[list[Path], typer.Argument(metavar="RUN", help="Run folders.")]
Models = Annotated[list[Path], typer.Argument(metavar="RUN", help="Runs, or fine-tuned or imported models.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="KEY=VALUE", help="Overrides, such as train.total_tokens=64epochs."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="DIR",
        help="Run folder to write.",
        show_default="runs/NAME, with the configuration's name",
    ),
]
StoreFolder = Annotated[Path, typer.Argument(metavar="STORE", help="Folder or URL of the token store.")]
MovedStores = Annotated[
    list[str] | None,
    typer.Option("--store", metavar="PATH", help="New location of a moved store; in a mixture NAME=PATH."),
]
Step = Annotated[
    int | None, typer.Option("--step", help="Step of the checkpoint to use.", show_default="the newest")
]
TokenizerFile = Annotated[
    Path | None, typer.Option("--tokenizer", help="Tokenizer file, if the run's store no longer exists.")
]
Average = Annotated[bool, typer.Option("--average", help="Use the weight average of the run (`average`).")]
Device = Annotated[Literal["auto", "cpu", "cuda"], typer.Option("--device", help="Device to score on.")]
MaxExamples = Annotated[
    int | None,
    typer.Option("--max-examples", min=1, help="Largest number of examples per task.", show_default="all"),
]
MaxMinutes = Annotated[
    float | None,
    typer.Option(
        "--max-minutes",
        min=0.0,
        help="Save a checkpoint and stop this many minutes after the process starts.",
    ),
]

Hostfile = Annotated[
    Path | None, typer.Option("--hostfile", help="Hostfile with lines of HOST slots=N; reached by ssh.")
]
Exclude = Annotated[
    list[str] | None,
    typer.Option("--exclude", metavar="HOST,...", help="Hosts of the hostfile to leave out."),
]
MasterAddr = Annotated[
    str | None,
    typer.Option(
        "--master-addr",
        metavar="ADDRESS",
        help="Rendezvous address of the ranks: that of the first host.",
        show_default="the first that `hostname -I` prints there",
    ),
]
MasterPort = Annotated[
    int | None,
    typer.Option("--master-port", min=1, max=65535, help="Rendezvous port of the ranks, on the first host."),
]
SshPort = Annotated[
    int | None, typer.Option("--ssh-port", min=1, max=65535, help="Port of sshd on the hosts.")
]


def count_option(*names: str, least: int = 1, **settings: Any) -> Any:
    """An option that takes a count: 8192, 2**13, 64k."""

    def parse(text: str) -> int:
        from reptrain.config.quantities import parse_count

        try:
            number = int(parse_count(text))
        except ValueError as error:
            raise typer.BadParameter(f"{text!r} {error}") from error
        if number < least:
            raise typer.BadParameter(f"{text!r} must be at least {least}")
        return number

    return typer.Option(*names, parser=parse, metavar=settings.pop("metavar", "N"), **settings)


VocabSize = Annotated[
    int | None,
    count_option("--vocab-size", help="Vocabulary size, if neither model.vocab_size nor a store is set."),
]
NumBootstraps = Annotated[
    int, count_option("--bootstraps", least=0, help="Number of bootstrap samples for the intervals.")
]


def exclude_list(texts: list[str] | None) -> list[str]:
    """The hosts of ``--exclude a,b``, which may be repeated."""
    return [name for text in texts or [] for name in text.split(",") if name]
