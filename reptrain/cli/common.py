"""What the commands have in common: their groups, their options, and how they end."""

from __future__ import annotations

import errno
import json
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from reptrain import __version__
from reptrain.errors import ConfigError, ReptrainError, shorten
from reptrain_launcher.rank_environment import shown_rank

# Subcommands inherit both settings; click shortens the width to the terminal's.
_HELP = {"help_option_names": ["-h", "--help"], "max_content_width": 10_000}

app = typer.Typer(
    name="reptrain",
    no_args_is_help=True,
    context_settings=_HELP,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
config_app = typer.Typer(
    no_args_is_help=True, help="Show a resolved configuration, or what is allowed in one."
)
store_app = typer.Typer(
    no_args_is_help=True, help="Show a token store, or hold its bytes against its manifest."
)
study_app = typer.Typer(no_args_is_help=True, help="Many runs and the question that they answer.")
tasks_app = typer.Typer(no_args_is_help=True, help="Prepare tasks to fine-tune on.")
app.add_typer(config_app, name="config")
app.add_typer(store_app, name="store")
app.add_typer(study_app, name="study")
app.add_typer(tasks_app, name="tasks")

DONE, NO, WRONG_INPUT, PREEMPTED = 0, 1, 2, 3

Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[KEY=VALUE]...", help="Settings, such as train.total_tokens=64epochs."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")]
Out = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="DIR",
        help="Folder of the run.",
        show_default="runs/NAME, of the configuration's name",
    ),
]


def _count(text: str) -> int:
    """A count from the command line, with the spellings of the configuration."""
    from reptrain.config.quantities import parse_count

    try:
        number = parse_count(text)
    except ValueError as error:
        raise typer.BadParameter(f"{text!r} {error}") from error
    return int(number)


def count_option(*names: str, least: int = 1, **settings: Any) -> Any:
    """An option that takes a count: 8192, 2**13, 64k."""

    def parse(text: str) -> int:
        number = _count(text)
        if number < least:
            raise typer.BadParameter(f"{text!r} must be at least {least}")
        return number

    return typer.Option(*names, parser=parse, metavar=settings.pop("metavar", "N"), **settings)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"reptrain {__version__}")
        raise typer.Exit(DONE)


@app.callback()
def _common(
    local_rank: Annotated[int | None, typer.Option("--local_rank", hidden=True)] = None,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """Train language models that must repeat their data: exact epochs, and proof of them."""
    # The deepspeed launcher passes --local_rank unless told not to; its environment says the same.


def main() -> None:
    """Run a command; an error that the user can mend is one line and exit code 2."""
    try:
        _check_platform()
        _check_arguments(sys.argv[1:])
        app()
    except ReptrainError as error:
        _refuse(error)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            _refuse(
                f"{error.filename or 'disk'}: {error.strerror}. Free space and run the same command again."
            )
        if error.filename is None:
            raise
        _refuse(f"{shorten(str(error.filename), 300)}: {error.strerror}. Check the path and its permissions.")


def _check_platform() -> None:
    """Processes, signals and CPU ranks are those of Linux, and Triton has no package elsewhere."""
    if sys.platform != "linux":
        raise ConfigError(
            "operating system",
            got=sys.platform,
            rule="must be Linux",
            remedy="Use a Linux machine, container or virtual machine.",
        )


def _check_arguments(arguments: list[str]) -> None:
    """No path has this character; a caller within Python may pass it all the same."""
    for argument in arguments:
        if "\0" in argument:
            raise ConfigError(
                "argument",
                got=repr(argument),
                rule="must not contain the character NUL",
                remedy="Leave it out.",
            )


def _refuse(message: object) -> NoReturn:
    rank = shown_rank()
    typer.echo(f"error: {message}" if rank is None else f"rank {rank}: error: {message}", err=True)
    sys.exit(WRONG_INPUT)


def show(data: Any, text: str, *, as_json: bool) -> None:
    """Print what a command tells."""
    typer.echo(json.dumps(data, indent=2, ensure_ascii=False) if as_json else text)
