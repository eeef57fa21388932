"""docs/guides/mixtures.md, command by command: what it shows is what happens."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from reptrain.cli import app

ROOT = Path(__file__).parents[2]
GUIDE = (ROOT / "docs" / "guides" / "mixtures.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", GUIDE, flags=re.DOTALL)


def write_corpus(path: Path, texts: list[str]) -> None:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))


def test_the_guide_does_what_it_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_WAIT_POLICY", "PASSIVE")
    licence = (ROOT / "LICENSE").read_text().split("\n\n")
    write_corpus(tmp_path / "real.jsonl", licence)
    made = [f"The square of {n} is {n * n}; {n} is its root." for n in range(200)]
    write_corpus(tmp_path / "synthetic.jsonl", made)
    (tmp_path / "mixture.yaml").write_text(blocks("yaml")[0])
    shown = {}
    for line in "".join(blocks("sh")).replace("\\\n", " ").splitlines():
        words = shlex.split(line)
        if words[0] == "mv":
            shutil.move(*words[1:])
            continue
        extra = {"train": ["train.device=cpu"], "tokenize": ["--processes", "1"]}.get(words[1], [])
        ended = CliRunner().invoke(app, [*words[1:], *extra])
        assert ended.exit_code == 0, f"{line}: {ended.output} {ended.exception!r}"
        shown[line] = ended.stdout
    audited = [output for line, output in shown.items() if line.startswith("reptrain audit")]
    # The ledger's head depends on the processor: weights are part of it.
    expected, *found = (re.sub(r"head \w+", "head", text) for text in (blocks("text")[0], *audited))
    assert found == [expected] * 2
