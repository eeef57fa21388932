"""The tree against setup.cfg, the Makefile and the pages."""

from __future__ import annotations

import configparser
import re
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


def test_every_make_target_of_the_pages_exists() -> None:
    pages = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]
    text = "\n".join(page.read_text() for page in pages)
    named = set(re.findall(r"(?:^    |\$ |`)make ([a-z-]+)", text, re.MULTILINE))
    assert {"demo", "test", "docs"} <= named
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert named <= targets


def test_cli_without_a_command_shows_the_help() -> None:
    from reptrain.cli import app

    assert "tokenize" in CliRunner().invoke(get_command(app), []).output


def test_api_names_are_there() -> None:
    import reptrain

    for name in reptrain.__all__:
        assert getattr(reptrain, name)
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        reptrain.trian  # noqa: B018


def test_a_former_name_of_the_api_warns_and_works() -> None:
    import reptrain

    with pytest.warns(DeprecationWarning, match="open_saved_model"):
        assert reptrain.open_trained is reptrain.open_saved_model
