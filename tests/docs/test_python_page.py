"""The example of docs/guides/python.md as printed: as a script, from standard input, in a REPL."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from forked import run_forked

from reptrain.runs.folder import RunFolder

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "guides" / "python.md"
(CODE,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
# Smaller stand-ins of the files that the page names.
DECODER = """
data: {unique_tokens: 2**30, window_tokens: 64}
model: {d_model: 16, num_layers: 1, num_heads: 2, d_ff: 32}
train: {total_tokens: 2**12, batch_windows: 64, device: cpu}
evaluate: {max_windows: 2, every_fraction: 1}
"""
STUDY = """
base: ../tiny/decoder.yaml
axes: {data.unique_tokens: [1]}
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, text in (("tiny/decoder", DECODER), ("studies/demo", STUDY)):
        path = tmp_path / "configs" / f"{name}.yaml"
        path.parent.mkdir(parents=True)
        path.write_text(text)
    rows = [{"text": " ".join(f"{n * k % 97} apples of kind {k}" for k in range(60))} for n in range(120)]
    (tmp_path / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def python(folder: Path, *words: str, stdin: str | None = None) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    command = [sys.executable, *words]
    ended = subprocess.run(
        command, cwd=folder, env=environment, input=stdin, capture_output=True, text=True, timeout=280
    )
    assert ended.returncode == 0 and "Traceback" not in ended.stderr, ended.stdout + ended.stderr
    return ended.stdout


def test_the_page_runs_as_printed_from_a_plain_script(folder: Path) -> None:
    (folder / "mine.py").write_text(CODE)
    ended = run_forked([folder / "mine.py"], folder=folder)
    assert ended.returncode == 0 and "Traceback" not in ended.stderr, ended.stdout + ended.stderr
    printed = ended.stdout
    # Each line is printed once: no worker ran the script too.
    assert len(re.findall(r"^\d+ True$", printed, flags=re.MULTILINE)) == 1
    assert re.search(r"^True \{4: \d+\}$", printed, flags=re.MULTILINE)
    assert re.search(r"^The list ", printed, flags=re.MULTILINE)
    # The header, once, and progress.
    assert printed.count("\n  subset ") + printed.startswith("  subset ") == 1 and "tokens/s" in printed
    assert (folder / "runs" / "study" / "report.html").exists()
    assert RunFolder.open(folder / "runs" / "first").status().state == "done"


TOKENIZE = CODE.split("\n\nconfig = ")[0]


@pytest.mark.parametrize("words", [["-"], ["-i", "-q"]], ids=["standard input", "REPL"])
def test_the_page_runs_without_a_script(folder: Path, words: list[str]) -> None:
    # In a REPL a blank line ends what is typed.
    printed = python(folder, *words, stdin=TOKENIZE.replace("\n\n", "\n") + "\n")
    assert re.search(r"\d+ True", printed), printed
