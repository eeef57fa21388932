"""The report's page, rebuilt from run folders."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from run_folders import write_run

from reptrain.report import build_report
from reptrain.report.machine import environment_facts
from reptrain.report.table import arm_lines
from reptrain.runs.folder import RunFolder
from reptrain.runs.routers import RouterRecord
from reptrain.study import StudyConfig, arms, collect, verdict
from reptrain.study.paths import run_path

STUDY = StudyConfig(
    name="s",
    question="Is 1 < 2 & 3?",
    base={"data": {"store": "s", "window_tokens": 64}, "train": {"total_tokens": 8192}},
    axes={"data.unique_tokens": [4096, 1024]},
)
_VOID = {"meta", "link", "br", "path", "use", "image"}


class Checker(HTMLParser):
    """Collects tags and what they refer to, and refuses tags that do not close."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.references: list[str] = []
        self._open: list[str] = []
        self.feed(page)
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        names = ("src", "href", "xlink:href", "srcset", "action")
        self.references += [value or "" for name, value in attrs if name in names]
        if tag not in _VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in _VOID:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag not in _VOID:
            assert self._open.pop() == tag


@pytest.fixture
def out(tmp_path: Path) -> Path:
    first, second = arms(STUDY)
    write_run(first.config, run_path(tmp_path, first.name), exact=True)
    write_run(second.config, run_path(tmp_path, second.name), exact=False)
    return tmp_path


def test_build_report_is_one_file(out: Path) -> None:
    page = build_report(STUDY, out).read_text()
    checked = Checker(page)
    # Loss against tokens, loss against epochs, gap, training time; two runs; exposures.
    assert checked.tags.count("svg") == 7
    assert checked.tags.count("script") == 1
    assert all(reference.startswith(("#", "data:text/csv")) for reference in checked.references)
    assert not re.search(r"url\((?!#)|@import", page)
    assert len(page) < 2_000_000


def test_build_report_tells_question_answer_and_figures(out: Path) -> None:
    page = build_report(STUDY, out).read_text()
    assert "<h1>Is 1 &lt; 2 &amp; 3?</h1>" in page
    assert verdict(collect(STUDY, out)) in page
    assert "8 epochs of 1,024 tokens" in page
    assert "a &lt;fast&gt; one" in page
    assert f"reptrain audit {out.name}/runs/unique_tokens-1024" in page


def test_build_report_names_no_absolute_paths_unless_asked(out: Path) -> None:
    secret = {"store": "/home/someone/texts/docs", "window_tokens": 64}
    mirrored = {"mirror": "s3://bucket/of/someone/runs"}
    study = STUDY.model_copy(update={"base": {**STUDY.base, "data": secret, "checkpoint": mirrored}})
    page = build_report(study, out).read_text()
    shown = build_report(study, out, paths=True).read_text()
    for text in (str(out), "/home/someone", "bucket/of/someone", str(Path.cwd())):
        assert text not in page
    assert f"--out {out.name}" in page and "store: docs" in page
    assert str(out) in shown and "/home/someone/texts/docs" in shown


def test_build_report_is_the_same_again(out: Path) -> None:
    first = build_report(STUDY, out).read_bytes()
    assert build_report(STUDY, out).read_bytes() == first


def test_build_report_is_made_before_any_run(tmp_path: Path) -> None:
    page = build_report(STUDY, tmp_path / "new").read_text()
    Checker(page)
    assert "None of the 2 runs is done yet." in page
    assert "waiting" in page


def test_build_report_tells_a_failure(out: Path) -> None:
    arm = arms(STUDY)[1]
    write_run(arm.config, run_path(out, arm.name), state="failed", reason="loss is <nan>", losses={})
    page = build_report(STUDY, out).read_text()
    assert "loss is &lt;nan&gt;" in page
    assert "1 of 2 runs are done" in page


def test_arm_lines_mark_the_best_and_say_what_is_not_known(out: Path) -> None:
    rows = collect(STUDY, out)
    better = rows[1].model_copy(update={"best_report_nats": 5.5})
    first, second = arm_lines([rows[0], better])
    assert (first.is_best, second.is_best) == (False, True)
    cells = dict(second.cells)
    assert (cells["selected held-out"], cells["at epoch"], cells["gap"], cells["audit"]) == (
        "5.500", "4", "5.000", "not exact",
    )  # fmt: skip
    assert cells["bits/byte"] == "3.100"
    stopped = rows[0].model_copy(update={"state": "preempted"})
    assert dict(arm_lines([stopped])[0].cells)["audit"] == "exact so far"
    damaged = rows[0].model_copy(update={"audit_exact": False, "audit_cannot_say": True})
    assert dict(arm_lines([damaged])[0].cells)["audit"] == "cannot say"
    proved = rows[0].model_copy(update={"audit_level": "inputs"})
    assert dict(arm_lines([proved])[0].cells)["audit"] == "exact, proved to the model's inputs"
    mixed = better.model_copy(update={"audit_as_planned": True})
    assert dict(arm_lines([mixed])[0].cells)["audit"] == "as planned, mixed"
    unknown = collect(STUDY, out / "none")
    assert dict(arm_lines(unknown)[0].cells)["selected held-out"] == "–"


def test_page_emphasizes_the_loss_that_ranks_the_arms(out: Path) -> None:
    page = build_report(STUDY, out).read_text()
    (heading,) = re.findall(r'\.best td\[data-heading="(.+?)"\]', page)
    assert heading == "selected held-out" and f'<td data-heading="{heading}">' in page


def test_environment_facts_name_the_machine_and_leave_out_the_start() -> None:
    environment = {
        "packages": {"torch": "2.13.0"},
        "host": "h",
        "python": None,
        "command": ["x"],
        "gpus": 8,
        "cpu": "fast",
        "commit": f"{'ab' * 20}+changes",
    }
    assert environment_facts(environment) == [
        ("processor", "fast"),
        ("commit", "abababababab+changes"),
        ("gpus", "8"),
        ("torch", "2.13.0"),
    ]


def test_page_of_a_mixture_is_built(tmp_path: Path) -> None:
    sources = {
        "real": {"store": "s", "unique_tokens": 1024, "total_tokens": "4epochs"},
        "synthetic": {"store": "s", "unique_tokens": 2048},
    }
    study = StudyConfig(name="mixed", base={"data": {"sources": sources}})
    arm = arms(study)[0]
    losses = {f"{kind}/real": [8.0, 4.0] for kind in ("probe", "select", "report")}
    write_run(arm.config, run_path(tmp_path, arm.name), losses=losses, exact=True)
    page = build_report(study, tmp_path).read_text()
    Checker(page)
    assert "2 epochs of 3,072 tokens" in page


def test_page_says_that_nothing_improved_and_marks_no_best(tmp_path: Path) -> None:
    losses = {"probe": [8.0, 5.0, 2.0], "select": [4.0, 6.0, 7.0], "report": [4.1, 6.2, 7.4]}
    for arm in arms(STUDY):
        write_run(arm.config, run_path(tmp_path, arm.name), losses=losses)
    page = build_report(STUDY, tmp_path).read_text()
    Checker(page)
    assert "Training did not help" in page and 'class="best"' not in page
    assert not any(line.is_best for line in arm_lines(collect(STUDY, tmp_path)))


def test_page_warns_where_the_held_out_splits_disagree(tmp_path: Path) -> None:
    losses = {"probe": [8.0, 5.0], "select": [8.0, 4.0], "report": [8.0, 6.0]}
    write_run(arms(STUDY)[0].config, run_path(tmp_path, arms(STUDY)[0].name), losses=losses)
    page = build_report(STUDY, tmp_path).read_text()
    Checker(page)
    assert '<p class="caution">Warning: 2 epochs of 4,096 tokens: 4.00 nats per token on' in page


def test_arm_lines_mark_every_seed_of_the_best_setting(tmp_path: Path) -> None:
    study = STUDY.model_copy(update={"seeds": (0, 1)})
    for arm in arms(study):
        nats = 5.0 if "4096" in arm.name else 6.0
        losses = {name: [8.0, nats] for name in ("probe", "select", "report")}
        write_run(arm.config, run_path(tmp_path, arm.name), losses=losses)
    assert [line.is_best for line in arm_lines(collect(study, tmp_path))] == [True, True, False, False]


def test_build_report_has_the_routers_that_were_recorded(out: Path) -> None:
    first, _ = arms(STUDY)
    assert 'id="routers"' not in build_report(STUDY, out).read_text()
    folder = RunFolder.open(run_path(out, first.name))
    folder.routers.replace(
        [
            RouterRecord(
                step=step, tokens=tokens, epoch=tokens / 4096, final_step=3, probe_tokens=100, layer=layer,
                agreement=agreement, dead=1, knock_out_nats=[0.01, 0.25] if step == 3 else None,
            )
            for step, tokens, agreement in ((1, 2730, 0.5), (2, 5461, 0.875), (3, 8192, 1.0))
            for layer in ("1", "3")
        ]
    )  # fmt: skip
    page = build_report(STUDY, out, figure_files=True).read_text()
    Checker(page)
    section = page[page.index('id="routers"') : page.index('id="figures"')]
    assert section.count('<th scope="row">2 epochs of 4,096 tokens') == 2
    for cell in ("87.5%", "0.1300", "0.2500", ">1<"):
        assert section.count(cell) >= 2
    assert 'id="figure-router-agreement"' in page
    lines = (out / "figures" / "router-agreement.csv").read_text().splitlines()
    assert [line.split(",")[1::2][:2] for line in lines[1:]] == [
        ["2730", "0.5"],
        ["5461", "0.875"],
        ["8192", "1"],
    ]
    (row,) = pq.read_table(out / "tables" / "runs.parquet", filters=[("run", "=", first.name)]).to_pylist()
    folder.set_status("done", step=4)
    assert 'id="routers"' not in build_report(STUDY, out).read_text()
    assert (row["knock_out_mean_nats"], row["knock_out_max_nats"]) == (0.13, 0.25)
