"""The commands of a study: bad input ends with one line and code 2, and no torch is needed to look."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console
from rich.live import Live
from run_folders import write_run
from time_limits import START_S

from reptrain.cli import main
from reptrain.cli.study_display import _Lines, _LiveTable, event_text
from reptrain.cli.study_run import audit_lines
from reptrain.study import StudyConfig, StudyEvent
from reptrain.study.build import build_graph
from reptrain.study.paths import run_path
from reptrain.study.schema import save_study

BASE: dict[str, Any] = {
    "data": {"store": "s", "unique_tokens": 4096, "window_tokens": 64},
    "model": {"vocab_size": 512, "d_model": 64, "num_heads": 2},
    "train": {"total_tokens": 8192},
}
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    """Runs a command; returns its exit code, output and errors."""
    monkeypatch.chdir(tmp_path)

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["reptrain", *words])
        with pytest.raises(SystemExit) as ended:
            main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return run


def write(path: Path, **fields: Any) -> str:
    path.write_text(yaml.safe_dump({"base": BASE, **fields}))
    return str(path)


TWO = {"arms": [{"name": "a"}, {"name": "b", "set": {"model": {"num_layers": 1}}}], "seeds": [0, 1, 2, 3, 4]}
CLAIM = {"name": "c", "statement": "s", "contrast": {"treatment": {"entry": "z"}, "control": {"entry": "b"}}}

SAME = CLAIM | {"contrast": {"treatment": {"entry": "a"}, "control": {"entry": "a"}}}


@pytest.mark.parametrize("verb", ["plan", "run"])
@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({"axes": {"optimizer.lrr": [1, 2]}}, "optimizer.lrr: must be a known key"),
        (
            {"then": [{"name": n, "do": "export", "of": o} for n, o in (("x", "y"), ("y", "x"))]},
            "must not be circular, but got x of y of x",
        ),
        ({**TWO, "claims": [CLAIM]}, "claim c: treatment: must select an arm of the study, but got entry=z"),
        ({"constraints": [{"equal": "flops", "too": "a"}]}, "too"),
        ({"tune": {"optimizer.lr": [1e-3, 1e-3, 1e-3]}}, "at least 2 different values"),
        ({"fits": [{"name": "f", "law": "guess"}]}, "fit f: law: must be one of"),
        ({**TWO, "claims": [SAME]}, "claim c: must have different arms as treatment and control, but got a"),
        ({**TWO, "claims": [CLAIM | {"minimum_effect": -0.1}]}, "claims.0.minimum_effect"),
        ({**TWO, "claims": [CLAIM | {"max_seeds": 3}]}, "max_seeds must exceed seeds, which is 5"),
        ({"fits": [{"name": "f", "law": "power", "columns": {"x": "steps"}}]}, "fit f: must have more arms"),
        ({"arms": [{"name": "a"}, {"name": "a"}]}, "arms must have different names; a is there 2 times"),
        ({"constraints": [{"drop": {"seed": 0}}]}, "must have arms, but got no arm"),
        (
            {"arms": [{"name": one, "set": {"init_from": other}} for one, other in ("ab", "ba")]},
            "init_from: must not be circular, but got a <- b <- a",
        ),
    ],
)
def test_bad_input_is_one_line_and_code_2(
    command: Run, tmp_path: Path, verb: str, fields: dict[str, Any], error: str
) -> None:
    code, out, err = command("study", verb, write(tmp_path / "bad.yaml", **fields))
    assert (code, out) == (2, "") and err.count("\n") == 1
    assert err.startswith("error: ") and error in err
    assert not (tmp_path / "runs").exists()


def test_a_changed_study_ends_with_code_2_and_its_folder_untouched(command: Run, tmp_path: Path) -> None:
    study, folder = StudyConfig(name="s", base=BASE), tmp_path / "out"
    save_study(study, folder)
    write_run(build_graph(study, folder).nodes[0].run, run_path(folder, "base"))
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    path = write(tmp_path / "s.yaml", set={"optimizer.lr": 0.5, "data.store": str(tmp_path)})
    code, _, err = command("study", "run", path, "--out", str(folder))
    assert code == 2 and "must be" in err
    assert before == {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_plan_prints_the_bill_and_ends_with_code_1_over_budget(command: Run, tmp_path: Path) -> None:
    path = write(tmp_path / "s.yaml", **TWO)
    code, out, _ = command("study", "plan", path, "--hardware", "H100", "--usd-per-hour", "2")
    assert code == 0 and "to run" in out and "price: 0.00 USD" in out
    code, out, _ = command("study", "plan", path, "--hardware", "H100", "--budget", "10k tokens")
    assert code == 1 and "over budget: 81,920 tokens are needed" in out
    assert command("study", "plan", path, "--budget", "much")[0] == 2
    assert not (tmp_path / "runs").exists()


def test_commands_that_look_need_no_torch(tmp_path: Path) -> None:
    study = StudyConfig(name="s", base=BASE, axes={"data.unique_tokens": [2048, 4096]})
    folder = tmp_path / "out"
    save_study(study, folder)
    write_run(build_graph(study, folder).nodes[0].run, run_path(folder, "unique_tokens-2048"))
    words = [["plan", str(folder / "study.yaml"), "--out", str(folder)], ["status", str(folder)]]
    words += [["collect", str(folder)], ["report", str(folder)]]
    code = (
        "import sys\n"
        "class Block:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('torch', 'deepspeed', 'triton'): raise ImportError(name)\n"
        "sys.meta_path.insert(0, Block())\n"
        "from reptrain.cli import app\n"
        f"for words in {words!r}: print(words[0], app(['study', *words], standalone_mode=False))\n"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=START_S)
    assert ended.returncode == 0, ended.stderr
    assert "unique_tokens-2048: done" in ended.stdout and (folder / "report.html").exists()


def event(kind: Any, arm: str, tokens: int = 0, **fields: Any) -> StudyEvent:
    return StudyEvent(kind, arm, 0, 2, 1000, tokens, **fields)


def test_display_prints_plain_lines_where_there_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    lines = _Lines(Console(width=200))
    lines.show(event("start", "a"))
    # Progress comes twice a second; a line every few seconds.
    for tokens in (100, 200, 300):
        lines.show(event("progress", "a", tokens, tokens_per_s=10.0))
    lines.show(event("start", "b"))
    lines.show(event("failed", "b", message="exit code 2: no"))
    lines.show(event("done", "a", 1000, seconds=65))
    assert capsys.readouterr().out.splitlines() == [
        "[1/2] a  started",
        "[1/2] b  started",
        "[1/2] b  failed: exit code 2: no  (0 of 2 done, 1 running, 1 failed)",
        "[1/2] a  done in 1 min 5 s  (1 of 2 done, 0 running, 1 failed)",
    ]


def test_event_text_shows_speed_and_remaining_time() -> None:
    text = event_text(event("progress", "a", 100, tokens_per_s=0.125))
    assert text == "10%  0 tokens/s  2 h 0 min left"


def test_display_is_a_live_table_on_a_terminal() -> None:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100)
    with Live(console=console, auto_refresh=False) as live:
        table = _LiveTable(live)
        table.show(event("start", "first"))
        table.show(event("progress", "second", 500, tokens_per_s=50.0))
        live.refresh()
        table.show(event("done", "first", 1000, seconds=3))
        live.refresh()
    text = screen.getvalue()
    assert "50 tokens/s" in text and "10 s left" in text and "first  done in 3 s" in text
    assert "1 of 2 done, 1 running" in text


@dataclass
class StubReport:
    """A report with the two parts that are printed."""

    verdict: str
    level: str = "windows"

    def head(self) -> str:
        return self.verdict


def test_audit_lines_count_exact_runs_and_name_the_others() -> None:
    reports: Any = {
        "a": StubReport("exact"),
        "b": StubReport("exact so far, not complete"),
        "c": StubReport("exact"),
        "d": StubReport("exact", "inputs"),
    }
    assert audit_lines(reports) == [
        "audit: 2 runs are exact (level windows)",
        "audit: 1 run is exact (level inputs)",
        "audit b: exact so far, not complete (level windows)",
    ]
