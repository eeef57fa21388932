"""The commands of README and docs: every one parses, and no two make one store in different ways."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import typer.main

from reptrain.cli import app

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def commands(page: Path) -> list[list[str]]:
    """The words of each `reptrain` command in the page's shell blocks."""
    text = page.read_text(encoding="utf-8")
    blocks = "\n".join(re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL)).replace("\\\n", " ")
    lines = [shlex.split(line, comments=True) for line in blocks.splitlines()]
    return [[word for word in words[1:] if word != "&"] for words in lines if words[:1] == ["reptrain"]]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_of_a_page_parses(page: Path) -> None:
    program = typer.main.get_command(app)
    for words in commands(page):
        command, rest = program, list(words)
        while hasattr(command, "commands"):
            assert rest and rest[0] in command.commands, words
            command = command.commands[rest.pop(0)]
        command.make_context("reptrain", rest)


def store_of(words: list[str]) -> str | None:
    """The store that a command makes."""
    out = words[words.index("--out") + 1] if "--out" in words else None
    if words[0] == "tokenize":
        return out
    return f"{out or 'runs/demo'}/store" if words[0] == "demo" else None


def test_no_two_commands_make_one_store_in_different_ways() -> None:
    made: dict[str, list[str]] = {}
    for page in PAGES:
        for words in commands(page):
            store = store_of(words)
            if store is None:
                continue
            wanted = [word for word in words if word != "--store-only"]
            assert made.setdefault(store, wanted) == wanted, f"{page.name}: {shlex.join(words)}"
    assert len(made) > 10
