"""docs/guides/claims.md: its verdicts are those of the command that it shows."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from reptrain.analysis.questions import Claim
from reptrain.cli import app

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "guides" / "claims.md").read_text()
PUBLIC = ROOT.parent / "shared" / "data" / "tables"


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, flags=re.DOTALL)


def test_the_verdicts_of_the_page_are_those_of_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    (command,) = [block for block in blocks("sh") if "quick-runs.parquet" in block]
    ended = CliRunner().invoke(app, shlex.split(command)[1:])
    assert ended.exit_code == 0, ended.output
    assert ended.output == blocks("text")[0]


def test_the_claim_of_the_page_is_that_of_the_quick_study() -> None:
    (shown,) = yaml.safe_load(blocks("yaml")[0])["claims"]
    quick = yaml.safe_load((ROOT / "configs" / "studies" / "quick.yaml").read_text())
    assert Claim.model_validate(shown) == Claim.model_validate(quick["claims"][0])


@pytest.mark.skipif(not PUBLIC.exists(), reason="the public tables of learning rates are not here")
def test_the_verdicts_on_the_public_runs_are_those_of_the_page() -> None:
    command = blocks("text")[1].replace("\\\n", " ")
    command = command.replace("moe.csv", str(PUBLIC / "steplaw_moe.csv"))
    words = shlex.split(command.replace("dense.csv", str(PUBLIC / "steplaw_dense.csv"), 1))
    ended = CliRunner().invoke(app, words[1:])
    assert ended.output.endswith(blocks("text")[2])
