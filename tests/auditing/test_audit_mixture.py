"""The audit of a mixture: every source is recounted on its own, and problems name it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from audited_runs import rewrite
from mixture_runs import WINDOW, configured, consumed, make_stores, trained

from reptrain.auditing.audit import audit, store_places
from reptrain.errors import ResumeError, RunError
from reptrain.plan import open_stream
from reptrain.runs import LedgerRecord, RunFolder, RunPlan
from reptrain.store import Store


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Store]:
    return make_stores(tmp_path_factory.mktemp("mixture"))


@pytest.fixture
def run(stores: dict[str, Store], tmp_path: Path) -> RunFolder:
    return trained(stores, tmp_path / "run")


def test_audit_recounts_each_source(run: RunFolder) -> None:
    report = audit(run.path)
    assert report.exact and report.complete, report.text()
    real, synthetic = report.sources
    assert (real.name, real.epochs, set(real.exposures)) == ("real", "7/2", {3, 4})
    assert (synthetic.name, synthetic.epochs, synthetic.exposures) == ("synthetic", "1", {1: 900})
    assert sum(real.exposures.values()) == 500
    assert report.unique_tokens == 1400
    assert report.tokens_consumed == real.tokens_consumed + synthetic.tokens_consumed
    assert report.exposures == {**synthetic.exposures, **real.exposures}


def test_audit_text_lists_each_source(run: RunFolder) -> None:
    lines = audit(run.path).text().splitlines()
    assert lines[0] == "exact"
    assert lines[1].startswith("source real: ") and "of 500 unique tokens" in lines[1]
    assert lines[2].startswith("  epochs 7/2 (4 begun, 3 ended), windows 112 of 112, tokens ")
    assert lines[3] == "source synthetic: 900 tokens 1 time, of 900 unique tokens"
    assert lines[5].startswith("together: steps 22, windows 169 of 169, tokens ")


def test_audit_counts_each_source_of_an_unfinished_run(stores: dict[str, Store], tmp_path: Path) -> None:
    report = audit(trained(stores, tmp_path / "run", state="preempted", steps=9).path)
    assert report.exact and not report.complete
    assert sum(source.windows for source in report.sources) == report.windows == 72
    assert all(0 < source.windows < source.total_windows for source in report.sources)


def test_audit_finds_a_window_of_the_other_source(stores: dict[str, Store], run: RunFolder) -> None:
    stream = open_stream(configured(stores), stores)

    def exchanged(tokens, start) -> None:
        row = int(np.flatnonzero(stream.source_of(start) == 1)[0])
        tokens[row] = stream.read(32, WINDOW)

    rewrite(run, lambda records: [*records[:4], consumed(run, stream, 4, spoil=exchanged), *records[5:]])
    report = audit(run.path)
    assert (report.num_problems, report.problems[0].step) == (1, 4)
    assert "the model saw other tokens" in report.problems[0].message


@pytest.mark.parametrize("share", [{"windows": 3, "tokens": 48, "epoch": 9}, None])
def test_audit_finds_a_wrong_share(run: RunFolder, share: dict[str, int] | None) -> None:
    def spoilt(records):
        kept = {"real": records[2].sources["real"]} | ({"synthetic": share} if share else {})
        return [
            *records[:2],
            LedgerRecord.model_validate({**records[2].model_dump(), "sources": kept}),
            *records[3:],
        ]

    rewrite(run, spoilt)
    report = audit(run.path)
    assert report.num_problems == 1
    assert report.problems[0].message.startswith("source synthetic: ")


def test_audit_names_the_source_whose_tokens_are_missing(run: RunFolder) -> None:
    rewrite(run, lambda records: [*records[:4], *records[5:]])
    messages = [problem.message for problem in audit(run.path).problems]
    assert any(m.startswith("source real: ") and "consumed 2 times, not 3 or 4" in m for m in messages)


def test_audit_takes_the_stores_that_moved_by_name(
    stores: dict[str, Store], run: RunFolder, tmp_path: Path
) -> None:
    moved = Path(shutil.copytree(stores["synthetic"].path, tmp_path / "moved"))
    assert audit(run.path, store=store_places(run.path, [f"synthetic={moved}"])).exact
    with pytest.raises(RunError, match=r"source real: store .*must be the store that the run was trained on"):
        audit(run.path, store=store_places(run.path, [f"real={moved}"]))
    for text in (str(moved), f"other={moved}"):
        with pytest.raises(RunError, match="NAME=PATH with a source of the run, real or synthetic"):
            store_places(run.path, [text])
    with pytest.raises(RunError, match="NAME=PATH with a source of the run"):
        audit(run.path, store=moved)


def test_audit_finds_a_config_of_other_sources(run: RunFolder) -> None:
    text = (run.path / "config.yaml").read_text()
    (run.path / "config.yaml").write_text(text.replace("    synthetic:", "    generated:"))
    assert "the sources real, synthetic, where config.yaml asks for generated, real" in audit(run.path).text()


def test_a_folder_refuses_a_source_with_other_text(stores: dict[str, Store], run: RunFolder) -> None:
    other = {**stores, "synthetic": stores["real"]}
    plan = RunPlan.of(configured(stores), stores=other, stream=open_stream(configured(stores), other))
    with pytest.raises(ResumeError, match=r"synthetic\.store_fingerprint="):
        RunFolder.create_or_open(run.path, configured(stores), plan, {})


def test_a_folder_refuses_another_budget_of_a_source(stores: dict[str, Store], run: RunFolder) -> None:
    config = configured(stores, synthetic="2epochs")
    plan = RunPlan.of(config, stores=stores, stream=open_stream(config, stores))
    with pytest.raises(ResumeError, match=r"data\.sources\.synthetic\.total_tokens=2epochs"):
        RunFolder.create_or_open(run.path, config, plan, {})
