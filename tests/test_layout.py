"""The house as it stands, against what is written about it."""

from __future__ import annotations

import configparser
import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner
from typer.main import get_command

ROOT = Path(__file__).parents[1]


def test_setup_cfg_lists_every_package() -> None:
    parser = configparser.ConfigParser()
    parser.read(ROOT / "setup.cfg")
    listed = set(parser["options"]["packages"].split())
    on_disk = {
        ".".join(path.parent.relative_to(root).parts)
        for root in (ROOT, ROOT / "kernels", ROOT / "launcher")
        for package in ("reptrain", "reptrain_kernels", "reptrain_launcher")
        for path in (root / package).rglob("__init__.py")
    }
    assert listed == on_disk


@pytest.mark.parametrize("folder", ["kernels", "launcher", "gpu", "tests"])
def test_folders_with_common_names_are_no_packages(folder: str) -> None:
    assert not (ROOT / folder / "__init__.py").exists()


def commands(markdown: str) -> list[str]:
    """The `reptrain …` lines of a page's shell blocks, with their continuation lines."""
    blocks = re.findall(r"```(?:sh|bash|console)\n(.*?)```", markdown, flags=re.DOTALL)
    lines = "\n".join(blocks).replace("\\\n", " ").splitlines()
    lines = [line.split("#")[0].strip() for line in lines]
    # The deepspeed launcher hands --local_rank to what it starts.
    lines = [line.replace("deepspeed --module reptrain", "reptrain --local_rank=0") for line in lines]
    return [line for line in lines if line.startswith("reptrain ")]


README_COMMANDS = commands((ROOT / "README.md").read_text())


def test_readme_shows_commands() -> None:
    assert len(README_COMMANDS) > 5


@pytest.mark.parametrize("line", README_COMMANDS)
def test_readme_command_is_understood(line: str) -> None:
    """Every command parses: its names and options exist. What they do is tested elsewhere."""
    from reptrain.cli import app

    words = shlex.split(line)[1:]
    command = get_command(app)
    if words[0].startswith("--"):
        command.make_context(line, [*words])
        words.pop(0)
    while words and words[0] in getattr(command, "commands", {}):
        command = command.commands[words.pop(0)]
    assert not hasattr(command, "commands"), f"{line}: no such command"
    command.make_context(line, words)


@pytest.mark.parametrize(
    "target", re.findall(r"^\$ (make [a-z-]+)", (ROOT / "README.md").read_text(), re.MULTILINE)
)
def test_readme_make_target_exists(target: str) -> None:
    assert re.search(rf"^{target.split()[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE)


def test_cli_without_a_command_shows_the_help() -> None:
    from reptrain.cli import app

    assert "tokenize" in CliRunner().invoke(get_command(app), []).output


def test_api_names_are_there() -> None:
    import reptrain

    for name in reptrain.__all__:
        assert getattr(reptrain, name)
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        reptrain.trian  # noqa: B018
