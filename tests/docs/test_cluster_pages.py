"""Troubleshooting has an entry for each check of the doctor, and each cluster configuration has its page."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from page_commands import ROOT, reptrain_arguments

from reptrain.config import load_run_config
from reptrain_launcher.doctor import CHECKS
from reptrain_launcher.forwarding import FORWARDED_NAMES, FORWARDED_PREFIXES

CONFIGS = sorted((ROOT / "configs" / "cluster").glob("*.yaml"))


def test_troubleshooting_has_an_entry_for_each_check() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    assert re.findall(r"^## (\S+)$", page, re.MULTILINE) == [*CHECKS]
    entries = re.split(r"^## ", page, flags=re.MULTILINE)[1:]
    assert all(len(entry.split()) > 10 for entry in entries)


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
