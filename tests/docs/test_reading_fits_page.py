"""The page on fits shows what its commands print."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner
from page_commands import ROOT
from typer.main import get_command

PAGE = ROOT / "docs" / "guides" / "reading-fits.md"
PUBLIC = "datablations_fit182.csv"
TABLES = ROOT.parent / "shared" / "data" / "tables"
_NUMBER = re.compile(r"[-+]?\d[\d,]*\.?\d*(?:e[-+]?\d+)?")
_FEW_STARTS = re.compile(r"from \d starts")


def sections() -> dict[str, list[str]]:
    """The lines that the page shows for each command."""
    result: dict[str, list[str]] = {}
    command = ""
    for kind, body in re.findall(
        r"```(sh|text)\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL
    ):
        if kind == "sh":
            command = body.strip()
            result[command] = []
        else:
            result[command] += [line for line in body.splitlines() if line.strip()]
    return result


def numbers(line: str) -> list[float]:
    return [float(text.replace(",", "")) for text in _NUMBER.findall(line)]


def words(line: str) -> str:
    return " ".join(_NUMBER.sub("#", line).split())


def same(shown: str, printed: str) -> bool:
    """The same words, and numbers to what a refit on another processor may change."""
    shown, printed = (re.sub(r"from \d+ starts", "from starts", line) for line in (shown, printed))
    if words(shown) != words(printed):
        return False
    pairs = zip(numbers(shown), numbers(printed), strict=True)
    return all(a == pytest.approx(b, rel=0.02, abs=2e-3 if abs(a) < 0.1 else 0.0) for a, b in pairs)


def is_slow(command: str) -> bool:
    return PUBLIC in command or command.count("--law") > 1


@pytest.mark.parametrize(
    "command",
    [
        pytest.param(command, marks=[pytest.mark.slow] if is_slow(command) else [], id=str(place))
        for place, command in enumerate(sections())
    ],
)
def test_the_page_shows_what_its_commands_print(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from reptrain.cli import app

    if PUBLIC in command and not (TABLES / PUBLIC).exists():
        pytest.skip(f"{TABLES} has no {PUBLIC}")
    monkeypatch.chdir(ROOT)
    arguments = shlex.split(command.replace(PUBLIC, str(TABLES / PUBLIC)))
    assert arguments[0] == "reptrain"
    ended = CliRunner().invoke(get_command(app), arguments[1:])
    assert ended.exit_code == 0, (ended.output, ended.exception)
    printed = ended.output.splitlines()
    for line in sections()[command]:
        # An optimum that few starts reach is found on some processors only.
        if not _FEW_STARTS.search(line):
            assert any(same(line, other) for other in printed), f"{line}\n\n{ended.output}"


def test_example_runs_are_those_of_the_tool() -> None:
    import csv
    import sys

    sys.path.insert(0, str(ROOT / "tools"))
    try:
        from example_runs import FILE, example_runs
    finally:
        sys.path.remove(str(ROOT / "tools"))
    with Path(FILE).open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    made = example_runs()
    assert len(rows) == len(made) == 48
    for row, wanted in zip(rows, made, strict=True):
        assert row["run"] == wanted["run"]
        assert float(row["loss_report_final_nats"]) == pytest.approx(
            wanted["loss_report_final_nats"], abs=2e-4
        )


def test_comparison_of_lines_sees_a_changed_number() -> None:
    line = "  E      1.9627  [1.767, 2.089]  loss (nats)"
    assert same(line, line.replace("1.9627", "1.9628"))
    assert not same(line, line.replace("1.9627", "2.0627"))
    assert not same(line, line.replace("loss", "gain"))
