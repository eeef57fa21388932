"""Troubleshooting explains each message of the doctor, and each cluster configuration has its page."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import typer.main
from page_commands import ROOT, reptrain_arguments

from reptrain.cli import app
from reptrain.config import load_run_config
from reptrain_launcher import hostfile
from reptrain_launcher.doctor import CHECKS, gpu_checks, launch_checks, node_checks
from reptrain_launcher.forwarding import FORWARDED_NAMES, FORWARDED_PREFIXES

CONFIGS = sorted((ROOT / "configs" / "cluster").glob("*.yaml"))


def test_troubleshooting_has_an_entry_for_each_check() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    assert re.findall(r"^## (\S+)$", page, re.MULTILINE) == [*CHECKS]
    entries = re.split(r"^## ", page, flags=re.MULTILINE)[1:]
    assert all(len(entry.split()) > 10 for entry in entries)


def _pattern(text: ast.expr) -> str | None:
    """A regular expression for the texts of an expression; None if it has no words of its own."""
    if isinstance(text, ast.Constant):
        return re.escape(str(text.value))
    if isinstance(text, ast.JoinedStr):
        return "".join(re.escape(p.value) if isinstance(p, ast.Constant) else ".+?" for p in text.values)
    return None


def _texts(tree: ast.AST) -> list[ast.expr]:
    """What the findings and the errors of some code say, and the texts that it returns for a finding."""
    found: list[ast.expr] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.func.id == "Finding":
                found.append(node.args[0])
            if node.func.id == "LaunchError":
                found += [keyword.value for keyword in node.keywords if keyword.arg == "rule"]
    return found


def _messages() -> list[tuple[str, str]]:
    """The name of a check, and a pattern, for each message of the doctor."""
    found = [("hostfile", text) for text in _texts(ast.parse(Path(hostfile.__file__).read_text()))]
    for module in (launch_checks, node_checks, gpu_checks):
        for function in ast.parse(Path(module.__file__).read_text()).body:
            if not isinstance(function, ast.FunctionDef):
                continue
            if function.name == "master_problem":
                returned = (node.value for node in ast.walk(function) if isinstance(node, ast.Return))
                found += [("master-address", text) for text in returned if text is not None]
            for decorator in function.decorator_list:
                assert isinstance(decorator, ast.Call) and isinstance(decorator.args[0], ast.Constant)
                found += [(str(decorator.args[0].value), text) for text in _texts(function)]
    patterns = [(name, _pattern(text)) for name, text in found]
    return [(name, pattern) for name, pattern in patterns if pattern not in (None, "None")]


MESSAGES = _messages()


def test_messages_of_every_check_are_read_from_the_code() -> None:
    assert {name for name, _ in MESSAGES} == CHECKS.keys()
    assert ("gpus", r".+?\ has\ .+?\ GPUs\ for\ .+?\ slots") in MESSAGES


@pytest.mark.parametrize(("name", "pattern"), MESSAGES)
def test_troubleshooting_explains_each_message(name: str, pattern: str) -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    sections = re.split(r"^## (\S+)$", page, flags=re.MULTILINE)
    entry = sections[sections.index(name) + 1]
    # The items of the list, each with its message in front.
    items = re.findall(r"^- (`+)(.+?)\1: \S+", entry, re.MULTILINE | re.DOTALL)
    assert any(re.fullmatch(pattern, " ".join(message.split())) for _, message in items), items


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_cluster_configuration_has_a_page_that_launches_it(path: Path) -> None:
    load_run_config(path)
    page = ROOT / "docs" / "cluster" / f"{path.stem}.md"
    assert page.relative_to(ROOT).as_posix() in path.read_text()
    lines = [words for words in reptrain_arguments(page) if words[0] == "launch"]
    assert lines and all(words[1] == path.relative_to(ROOT).as_posix() for words in lines)


def test_the_page_lists_the_variables_that_are_sent() -> None:
    page = (ROOT / "docs" / "cluster" / "index.md").read_text()
    assert [name for name in FORWARDED_PREFIXES if f"`{name}`" not in page] == []
    named = [name for name in FORWARDED_NAMES if "proxy" not in name.lower()]
    assert [name for name in named if f"`{name}`" not in page] == []


def _launches() -> list[tuple[str, list[str]]]:
    pages = sorted((ROOT / "docs" / "cluster").glob("*.md"))
    return [
        (page.stem, words)
        for page in pages
        for words in reptrain_arguments(page)
        if words[0] in ("launch", "train", "sizes") and words[1].startswith("configs/")
    ]


@pytest.mark.parametrize(("page", "words"), _launches())
def test_settings_of_each_command_are_valid(page: str, words: list[str]) -> None:
    command = typer.main.get_command(app).commands[words[0]]
    given = command.make_context("reptrain", words[1:]).params
    config = given.get("config") or given["model"]
    # The index of a job in an array stands for itself.
    overrides = [override.replace("%a", "0") for override in given.get("overrides") or []]
    load_run_config(ROOT / config, overrides)
