"""The shell commands of README and the documentation."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
TUTORIALS = [
    ROOT / "README.md",
    ROOT / "docs" / "quickstart.md",
    *sorted((ROOT / "docs" / "tutorials").glob("*.md")),
    ROOT / "docs" / "guides" / "own-study.md",
]
"""Pages whose every `sh` block a test runs."""


def shell_lines(page: Path) -> list[str]:
    """The commands of a page's `sh` blocks, continuation lines joined."""
    text = page.read_text(encoding="utf-8")
    blocks = "\n".join(re.findall(r"```sh\n(.*?)```", text, flags=re.DOTALL)).replace("\\\n", " ")
    return [line for line in blocks.splitlines() if shlex.split(line, comments=True)]


def python_blocks(page: Path) -> list[str]:
    """The programs of a page's `python` blocks."""
    return re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL)


def files_of(page: Path) -> dict[str, str]:
    """The files that a page tells its reader to save: `yaml` blocks that begin with a comment of the name."""
    text = page.read_text(encoding="utf-8")
    found = re.findall(r"```yaml\n# (\S+\.yaml)\n(.*?)```", text, flags=re.DOTALL)
    return dict(found)


def reptrain_arguments(page: Path) -> list[list[str]]:
    """The arguments of each `reptrain` command of a page."""
    lines = [shlex.split(line, comments=True) for line in shell_lines(page)]
    return [[word for word in words[1:] if word != "&"] for words in lines if words[0] == "reptrain"]
