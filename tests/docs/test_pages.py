"""Every command of README and the documentation parses, and no two write one store in different ways."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import typer.main
from page_commands import PAGES, ROOT, reptrain_arguments

from reptrain.cli import app


def test_readme_and_pages_show_commands() -> None:
    assert len(reptrain_arguments(ROOT / "README.md")) > 5
    assert sum(len(reptrain_arguments(page)) for page in PAGES) > 50


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_of_a_page_parses(page: Path) -> None:
    program = typer.main.get_command(app)
    for words in reptrain_arguments(page):
        command, rest = program, list(words)
        if rest[0].startswith("-"):
            continue
        while hasattr(command, "commands"):
            assert rest and rest[0] in command.commands, words
            command = command.commands[rest.pop(0)]
        command.make_context("reptrain", rest)


def store_of(words: list[str]) -> str | None:
    """The store that a command writes."""
    out = words[words.index("--out") + 1] if "--out" in words else None
    if words[0] == "tokenize":
        return out
    default = "runs/demo-quick" if "--quick" in words else "runs/demo"
    return f"{out or default}/store" if words[0] == "demo" else None


def test_no_two_commands_write_one_store_in_different_ways() -> None:
    written: dict[str, list[str]] = {}
    for page in PAGES:
        for words in reptrain_arguments(page):
            store = store_of(words)
            if store is None:
                continue
            words = [word for word in words if word != "--store-only"]
            assert written.setdefault(store, words) == words, f"{page.name}: {shlex.join(words)}"
    assert len(written) > 10
