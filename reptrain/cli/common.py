"""The groups of commands, and how a command ends."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Annotated, Any, NoReturn

import typer
from typer.main import get_command

from reptrain import __version__
from reptrain.errors import CannotSayError, ConfigError, ReptrainError, shorten
from reptrain.files import is_full
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
config_app = typer.Typer(no_args_is_help=True, help="Show a resolved configuration, or the schema of one.")
store_app = typer.Typer(no_args_is_help=True, help="Show a token store, or verify it against its manifest.")
study_app = typer.Typer(
    no_args_is_help=True, help="Run and report studies: many runs that answer one question."
)
tasks_app = typer.Typer(no_args_is_help=True, help="Prepare tasks for fine-tuning.")
app.add_typer(config_app, name="config")
app.add_typer(store_app, name="store")
app.add_typer(study_app, name="study")
app.add_typer(tasks_app, name="tasks")

_MAY_BE_EMPTY = {"--prompt"}
DONE, NO, WRONG_INPUT, PREEMPTED, CANNOT_SAY = 0, 1, 2, 3, 4


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
    """Train language models on repeated data: exact epochs, and an audit that verifies them."""
    # The deepspeed launcher passes --local_rank by default; the environment has the same value.


@cache
def command() -> Callable[[], Any]:
    """All commands, built from the signatures of their functions: a tenth of a second."""
    return get_command(app)


def main() -> None:
    """Run a command. A user error prints one line and exits with code 2."""
    try:
        _check_platform()
        _check_arguments(sys.argv[1:])
        command()()
    except CannotSayError as error:
        _refuse(error, CANNOT_SAY)
    except ReptrainError as error:
        _refuse(error)
    except OSError as error:
        if is_full(error):
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
    """Refuse NUL, which no path may contain, and empty texts, which as paths are the working directory."""
    for before, argument in zip(["reptrain", *arguments], arguments, strict=False):
        is_setting = argument.startswith("--") and "=" in argument
        option, value = argument.split("=", 1) if is_setting else (before, argument)
        if not value and option not in _MAY_BE_EMPTY:
            raise ConfigError(
                f"argument after {option}",
                got="an empty text",
                rule="must not be empty",
                remedy="Check that the variables of the shell are set, or omit it.",
            )
        if "\0" in argument:
            raise ConfigError(
                "argument",
                got=repr(argument),
                rule="must not contain the character NUL",
                remedy="Remove it.",
            )


def _refuse(message: object, code: int = WRONG_INPUT) -> NoReturn:
    rank = shown_rank()
    typer.echo(f"error: {message}" if rank is None else f"rank {rank}: error: {message}", err=True)
    sys.exit(code)


def join_launched_ranks() -> None:
    """Set the rank variables from srun or mpirun, and the secrets that `reptrain launch` sent."""
    from reptrain_launcher.forwarding import load_secrets
    from reptrain_launcher.joining import adopt_ranks

    load_secrets()
    adopt_ranks()


def show(data: Any, text: str, *, as_json: bool) -> None:
    """Print the result of a command, as JSON or as text."""
    typer.echo(json.dumps(data, indent=2, ensure_ascii=False) if as_json else text)


def table(rows: Sequence[Mapping[str, object]]) -> str:
    """Rows as aligned text, with a heading; a row may lack keys that others have."""
    if not rows:
        return "no results"
    keys = [*dict.fromkeys(key for row in rows for key in row)]
    lines = [[key.replace("_", " ") for key in keys]]
    lines += [[_cell(row.get(key)) for key in keys] for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    aligned = ("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)
    return "\n".join(aligned)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.4f}" if isinstance(value, float) else f"{value}"
