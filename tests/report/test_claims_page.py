"""The report of a study with claims: its table, its figures and their files."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pyarrow.csv
import pytest
import yaml
from click.testing import CliRunner
from forked import login_server, run_forked
from run_folders import write_run
from typer.main import get_command

from reptrain.analysis.questions import questions_hash
from reptrain.cli import app
from reptrain.report.joint import write_joint_report
from reptrain.report.page import write_report
from reptrain.report.svg import PAGE, axes, tip, to_svg
from reptrain.study import StudyConfig, arms
from reptrain.study.ask import read_study
from reptrain.study.begun import write_questions
from reptrain.study.paths import run_path
from reptrain.study.schema import save_study

SEEDS = [0, 1, 2, 3, 4]
CONTRAST = {"treatment": {"data.unique_tokens": 1024}, "control": {"data.unique_tokens": 4096}}


def study_with_claims() -> StudyConfig:
    claims = [
        {
            "name": "repetition-hurts",
            "statement": "8 epochs cost > 0.1 nats.",
            "contrast": CONTRAST,
            "minimum_effect": 0.1,
        },
        {
            "name": "half-a-nat",
            "statement": "8 epochs cost > 0.5 nats, which is the true effect.",
            "contrast": CONTRAST,
            "minimum_effect": 0.5,
            "max_seeds": 10,
            "family": "secondary",
        },
    ]
    return StudyConfig.model_validate(
        {
            "name": "s",
            "question": "Does repetition hurt?",
            "base": {
                "data": {"store": "s", "window_tokens": 64},
                "train": {"total_tokens": 8192},
                "model": {"vocab_size": 256},
            },
            "axes": {"data.unique_tokens": [4096, 1024]},
            "seeds": SEEDS,
            "claims": claims,
        }
    )


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("claims") / "study"
    study = study_with_claims()
    save_study(study, folder)
    write_questions(study, folder)
    noise = np.random.default_rng(0).normal(0, 0.02, len(SEEDS))
    for arm in arms(study):
        cost = 0.5 + float(noise[arm.config.seed]) if arm.config.data.unique_tokens == 1024 else 0.0
        losses = {"probe": [6.0, 4.0], "select": [6.0, 5.0 + cost], "report": [6.0, 5.0 + cost]}
        write_run(arm.config, run_path(folder, arm.name), losses=losses, exact=True)
    write_report(study, folder, figure_files=True)
    return folder


def test_report_puts_the_verdicts_on_top(out: Path) -> None:
    page = (out / "report.html").read_text()
    assert re.findall(r'class="verdict (.+?)"', page) == ["supported", "undecided"]
    assert page.index('id="claims"') < page.index('id="results"') < page.index('id="figures"')
    assert '<span class="verdict supported">' in page and "5 (5 more needed)" in page
    study = study_with_claims()
    assert questions_hash(study.claims, study.fits)[:16] in page
    assert "caution" not in page[page.index("<body>") : page.index('id="claims"')]


def test_report_writes_each_figure_with_its_data_and_query(out: Path) -> None:
    names = re.findall(r'<figure id="figure-(.+?)">', (out / "report.html").read_text())
    assert {"claims", "loss-against-tokens", "loss-against-epochs", "gap", "cost"} <= {*names}
    for name in names:
        files = {suffix: out / "figures" / f"{name}.{suffix}" for suffix in ("pdf", "png", "csv", "sql")}
        assert files["pdf"].read_bytes().startswith(b"%PDF")
        assert files["png"].read_bytes().startswith(b"\x89PNG")
        assert pyarrow.csv.read_csv(files["csv"]).num_rows > 0
        assert files["sql"].read_text().strip()


def test_report_says_that_claims_were_changed_after_the_first_run(out: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(out, tmp_path / "copy")
    study = study_with_claims()
    changed = study.claims[0].model_copy(update={"minimum_effect": 0.2})
    path, _ = write_report(study.model_copy(update={"claims": [changed, study.claims[1]]}), folder)
    assert "The claims or fits were changed after the first run started." in path.read_text()


def test_study_claims_judges_a_committed_table(out: Path, tmp_path: Path) -> None:
    table = shutil.copy(out / "tables" / "runs.parquet", tmp_path / "committed.parquet")
    command = ["study", "claims", str(out), "--table", str(table)]
    shown = CliRunner().invoke(get_command(app), command)
    assert shown.exit_code == 0, shown.output
    assert shown.output.startswith("repetition-hurts: supported, 0.5")
    record = json.loads(CliRunner().invoke(get_command(app), [*command, "--json"]).output)
    assert [claim["judged"]["verdict"] for claim in record["claims"]] == ["supported", "undecided"]


def unrun_study(tmp_path: Path) -> Path:
    """The file of a study with one claim of the family `secondary`, which has not run."""
    study = study_with_claims().model_dump(mode="json", exclude={"name"})
    file = tmp_path / "later.yaml"
    file.write_text(yaml.safe_dump(study | {"claims": [study["claims"][1]]}))
    return file


def test_study_claims_corrects_over_all_studies_named(out: Path, tmp_path: Path) -> None:
    command = ["study", "claims", str(out), str(unrun_study(tmp_path))]
    shown = CliRunner().invoke(get_command(app), command)
    assert shown.exit_code == 0, shown.output
    lines = shown.output.splitlines()
    assert [line.partition(",")[0] for line in lines[:2]] == [
        "s/repetition-hurts: supported", "s/half-a-nat: undecided",
    ]  # fmt: skip
    assert lines[2] == "later/half-a-nat: not run (the study has no table of runs yet)"
    record = json.loads(CliRunner().invoke(get_command(app), [*command, "--json"]).output)
    assert [*record["studies"]] == ["s", "later"]
    judged = record["claims"][1]["judged"]
    # Half of the level for the first look, half of that for one of two claims of the family.
    assert judged["coverage"] == pytest.approx(1 - 0.05 / 4)
    one_table = CliRunner().invoke(get_command(app), [*command, "--table", "runs.csv"])
    assert one_table.exit_code == 2
    assert "1 for 2 studies" in one_table.output


def test_joint_page_has_all_claims_and_the_figures_of_each_study(out: Path, tmp_path: Path) -> None:
    page = tmp_path / "pages" / "studies.html"
    write_joint_report([read_study(out), read_study(unrun_study(tmp_path))], page)
    text = page.read_text()
    assert re.findall(r'class="verdict (.+?)"', text) == ["supported", "undecided", "not-run"]
    names = re.findall(r'<figure id="figure-(.+?)">', text)
    assert names[0] == "claims"
    assert {"s-loss-against-tokens", "s-gap"} <= {*names}
    assert len(names) == len({*names})
    assert "This study has not run." in text
    (link,) = re.findall(r'<a href="([^"]+report.html)">', text)
    assert (page.parent / link).resolve() == (out / "report.html").resolve()


def test_svg_marks_carry_their_text_for_the_pointer() -> None:
    with axes(2, 2) as (figure, plot):
        plot.plot(1, 1, "o", color=PAGE.arm(0), gid=tip("a < b: 4.5 nats"))
    svg = to_svg(figure, name="x", description="x")
    assert '<g class="tip"><title>a &lt; b: 4.5 nats</title>' in svg


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("chromium") is None, reason="Chromium is not installed")
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_works_in_a_browser_without_console_errors(out: Path, tmp_path: Path, scheme: str) -> None:
    command = [
        "chromium", "--headless=new", "--no-sandbox", "--disable-gpu", "--enable-logging=stderr",
        f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=3000", "--window-size=390,800",
        f"--blink-settings=preferredColorScheme={int(scheme == 'light')}", "--dump-dom",
        (out / "report.html").as_uri(),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert "CONSOLE" not in done.stderr
    # The script ran: it took the tooltips over.
    assert "data-tip=" in done.stdout
    assert '<div class="hover"' in done.stdout


def test_claims_and_report_need_no_torch(out: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(out, tmp_path / "copy")
    code = (
        "from pathlib import Path\n"
        "from reptrain.cli import app\n"
        "from reptrain.report import build_report\n"
        "from reptrain.study import open_study\n"
        f"app(['study', 'claims', {str(folder)!r}], standalone_mode=False)\n"
        f"folder = Path({str(folder)!r}); build_report(open_study(folder), folder)\n"
    )
    ended = run_forked(["-c", code], server=login_server(), timeout=300)
    assert ended.returncode == 0, ended.stderr
    assert "repetition-hurts: supported" in ended.stdout
