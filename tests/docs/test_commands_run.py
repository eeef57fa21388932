"""Every command of README, the quickstart and the tutorials runs, page by page, in one folder.

The short form shrinks each command: a `reptrain` that comes first on PATH appends overrides and forks a
server's process. The long form (slow) runs the commands as printed, each in a process of its own.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import pytest
from forked import training_server
from page_commands import ROOT, TUTORIALS, files_of, python_blocks, shell_lines
from time_limits import takes_up_to

STOPPED = 3
"""Exit code of a run that was stopped with a checkpoint."""
SHORT_REPTRAIN = """#!{python} -ES
import os, sys
sys.path[:0] = {path!r}
from short_form import is_repeated, shorten
from forked_python import ONLY_CHILDREN, main
if sys.argv[1:3] == ["study", "run"]:
    # Its runs end with their parent, which a fork does not have.
    os.environ[ONLY_CHILDREN] = "1"
if not is_repeated(sys.argv[1:]):
    sys.argv = [{forking!r}, "-m", "reptrain", *shorten(sys.argv[1:])]
    main({address!r}, {python!r})
"""


def workspace(folder: Path, *, documents: int | None) -> None:
    """Fill a folder with what the pages assume: the configurations and a folder of text."""
    from reptrain.text import stdlib_documents

    shutil.copytree(ROOT / "configs", folder / "configs")
    # The environment is active already.
    (folder / ".venv" / "bin").mkdir(parents=True)
    (folder / ".venv" / "bin" / "activate").touch()
    (folder / "my_text").mkdir()
    rows = [json.dumps({"text": document.text}) for document in islice(stdlib_documents(), documents)]
    for part in range(2):
        (folder / "my_text" / f"{part}.jsonl").write_text("\n".join(rows[part::2]) + "\n")


def run_page(page: Path, folder: Path, first_on_path: Path, python: Path) -> None:
    """Run a page's commands in a folder, then its Python; all must succeed, or stop by --max-minutes."""
    path = f"{first_on_path}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": "1"}
    for name, content in files_of(page).items():
        (folder / name).write_text(content)
    for line in shell_lines(page):
        ended = subprocess.run(
            ["bash", "-c", line], cwd=folder, env=environment, capture_output=True, text=True
        )
        expected = {0, STOPPED} if "--max-minutes" in shlex.split(line) else {0}
        assert ended.returncode in expected, f"{line}\n{ended.stdout}{ended.stderr}"
        assert "Traceback" not in ended.stderr, f"{line}\n{ended.stderr}"
    for program in python_blocks(page):
        (folder / "printed.py").write_text(program)
        subprocess.run([python, "printed.py"], cwd=folder, env=environment, check=True)


@pytest.fixture(scope="module")
@takes_up_to(600)
def short(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], None]:
    """Runs a page in the short form."""
    folder = tmp_path_factory.mktemp("short")
    workspace(folder, documents=150)
    program, server = folder / "bin" / "reptrain", training_server()
    program.parent.mkdir()
    here = Path(__file__).parent
    program.write_text(
        SHORT_REPTRAIN.format(
            python=sys.executable,
            path=[str(here), str(here.parent)],
            forking=str(server.python),
            address=server.address,
        )
    )
    program.chmod(0o755)
    return lambda page: run_page(page, folder, program.parent, server.python)


@pytest.fixture(scope="module")
@takes_up_to(3600)
def full(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Path], None]:
    """Runs a page as printed."""
    folder = tmp_path_factory.mktemp("full")
    workspace(folder, documents=None)
    return lambda page: run_page(page, folder, folder, Path(sys.executable))


@pytest.mark.ranks
@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_the_commands_of_a_page_run_in_the_short_form(page: Path, short: Callable[[Path], None]) -> None:
    short(page)


@pytest.mark.slow
@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_the_commands_of_a_page_run_as_printed(page: Path, full: Callable[[Path], None]) -> None:
    full(page)


@pytest.mark.parametrize("page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "kernels/README.md"])
def test_the_links_of_a_page_outside_of_the_site_lead_to_files(page: Path) -> None:
    links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text())
    missing = [link for link in links if "://" not in link and not (page.parent / link).exists()]
    assert not missing
