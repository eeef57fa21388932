"""The audit: it says exact where it is, and finds every way in which it is not."""

from __future__ import annotations

import json
import shutil
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pytest
from audited_runs import UNIQUE, replaced, rewrite, trained

from reptrain.auditing import audit as audit_module
from reptrain.auditing.audit import audit, store_places
from reptrain.errors import CannotSayError, RunError, StoreError
from reptrain.plan import Subset
from reptrain.store import verify
from reptrain.store.hashing import write_checksum


def only_problem(folder, **options):
    report = audit(folder.path, **options)
    assert not report.exact
    assert report.num_problems == len(report.problems) == 1, report.text()
    return report.problems[0]


@pytest.mark.parametrize(
    ("order", "cut"),
    [
        *((order, cut) for order in ("reshuffle", "same", "mixed") for cut in ("fixed", "shifted")),
        *(("reshuffle", "repacked"), ("same", "repacked")),
    ],
)
def test_audit_of_whole_epochs_is_exact(store, tmp_path, order, cut):
    folder = trained(store, tmp_path / "run", budget="3epochs", order=order, cut=cut)
    report = audit(folder.path)
    assert report.exact and report.complete, report.text()
    assert report.exposures == {3: UNIQUE}
    assert (report.epochs, report.tokens_consumed, report.store_verified) == ("3", 3 * UNIQUE, True)
    assert report.text().startswith("exact\nconsumed: 1,000 tokens 3 times, of 1,000 unique tokens")


@pytest.mark.parametrize("cut", ["fixed", "shifted", "repacked"])
def test_audit_of_a_fraction_gives_floor_and_ceil(store, tmp_path, cut):
    report = audit(trained(store, tmp_path / "run", cut=cut).path)
    assert report.exact and report.complete
    assert set(report.exposures) == {2, 3} and sum(report.exposures.values()) == UNIQUE
    assert 2 * UNIQUE + report.exposures[3] == report.tokens_consumed


def test_audit_of_batches_larger_than_an_epoch_is_exact(store, tmp_path):
    report = audit(trained(store, tmp_path / "run", budget="5epochs", batch=64).path)
    assert report.exact and report.exposures == {5: UNIQUE}


def test_audit_of_an_unfinished_run_is_exact_so_far(store, tmp_path):
    folder = trained(store, tmp_path / "run", state="running")
    rewrite(folder, lambda records: records[:4])
    report = audit(folder.path)
    assert report.exact and not report.complete
    assert (report.steps, report.windows) == (4, 32)
    assert report.text().startswith("exact so far, not complete")


def test_audit_of_a_run_that_is_not_done_is_not_complete(store, tmp_path):
    report = audit(trained(store, tmp_path / "run", state="running").path)
    assert report.exact and not report.complete and report.windows == report.total_windows


def test_audit_does_not_count_a_record_of_more_windows_than_a_step_has(run):
    rewrite(run, lambda records: replaced(records, 2, windows=16))
    report = audit(run.path)
    assert "16 windows from 16 in the ledger, 8 from 16 by the plan" in report.problems[0].message
    assert report.windows == report.total_windows - 8


def test_audit_of_a_run_without_steps_is_not_complete(store, tmp_path):
    folder = trained(store, tmp_path / "run", state="running")
    folder.ledger.path.unlink()
    report = audit(folder.path)
    assert report.exact and not report.complete and report.exposures == {0: UNIQUE}


def test_audit_finds_a_step_left_out(store, run):
    rewrite(run, lambda records: [*records[:3], *records[4:]])
    report = audit(run.path)
    assert not report.exact and not report.complete
    assert report.problems[0].text() == "step 4, global index 32: comes instead of step 3"
    missing = next(problem for problem in report.problems if "tokens were consumed" in problem.message)
    assert missing.step == 3 and 24 <= missing.index < 32
    where = next(place for place in range(UNIQUE) if f"is at position {place} of" in missing.message)
    found = run.plan.mixture_plan().locate(np.asarray([missing.index]))
    assert found.start[0] <= where < found.start[0] + found.length[0]
    assert missing.document == Subset.open(store, unique_tokens=UNIQUE).documents(where, 1)[0]


def test_audit_finds_a_step_consumed_twice(run):
    rewrite(run, lambda records: [*records[:4], records[3], *records[4:]])
    report = audit(run.path)
    assert report.problems[0].text() == "step 3, global index 24: comes instead of step 4"
    assert not report.complete


def test_audit_finds_two_steps_in_each_others_place(run):
    rewrite(run, lambda records: [*records[:3], records[4], records[3], *records[5:]])
    report = audit(run.path)
    assert [problem.text() for problem in report.problems] == [
        "step 4, global index 32: comes instead of step 3",
        "step 3, global index 24: comes instead of step 5",
        "step 5, global index 40: comes instead of step 4",
    ]
    assert report.exposures == audit(run.path).exposures and not report.exact


def test_audit_finds_a_ledger_that_was_cut_off(run):
    lines = run.ledger.path.read_bytes().splitlines(keepends=True)
    run.ledger.path.write_bytes(b"".join(lines[:-1])[:-40])
    report = audit(run.path)
    assert not report.exact and not report.complete
    assert "state done, but the ledger has 48 applied windows of 53" in report.problems[0].message


def test_audit_finds_a_record_of_another_run(store, run, tmp_path):
    other = list(trained(store, tmp_path / "other", seed=1).ledger.records())
    rewrite(run, lambda records: [*records[:3], other[3], *records[4:]])
    problem = only_problem(run)
    assert problem.step == 3 and "the model saw other tokens" in problem.message


@pytest.mark.parametrize("fields", [{"first_index": 17}, {"windows": 7}])
def test_audit_finds_other_windows_than_planned(run, fields):
    rewrite(run, lambda records: replaced(records, 2, **fields))
    report = audit(run.path)
    assert (report.problems[0].step, report.exact) == (2, False)
    assert "8 from 16 by the plan" in report.problems[0].message


@pytest.mark.parametrize("fields", [{"first_index": 10**15}, {"windows": 10**15}, {"step": 10**15}])
def test_audit_survives_an_invalid_record(run, fields):
    rewrite(run, lambda records: replaced(records, 2, **fields))
    assert not audit(run.path).exact


@pytest.mark.parametrize(("field", "message"), [("tokens", "383 tokens"), ("epoch", "epoch 383")])
def test_audit_finds_wrong_counts(run, field, message):
    rewrite(run, lambda records: replaced(records, 0, **{field: 383}))
    assert message in only_problem(run).message


def test_audit_of_a_step_tried_again_is_exact(run):
    rewrite(
        run, lambda records: [*records[:3], records[3].model_copy(update={"applied": False}), *records[3:]]
    )
    report = audit(run.path)
    assert report.exact and report.complete


def test_audit_finds_a_wrong_token_in_a_step_that_was_not_applied(run):
    missed = {"applied": False, "digest": "0" * 16}
    rewrite(run, lambda records: [*records[:3], records[3].model_copy(update=missed), *records[3:]])
    assert only_problem(run).step == 3


def test_audit_reports_retried_steps(run):
    rewrite(
        run,
        lambda records: [
            record.model_copy(update={"applied": applied})
            for record in records
            for applied in ((False, False, True) if record.step in (2, 5) else (True,))
        ],
    )
    report = audit(run.path)
    assert report.exact and report.not_applied.model_dump() == {
        "attempts": 4, "steps": (2, 5), "num_skipped": 0, "skipped": ()
    }  # fmt: skip
    assert "not applied, and no exposure: 4 attempts, at steps 2, 5; 0 steps not retried" in report.text()


@pytest.mark.parametrize("step", [3, 6])
def test_audit_finds_a_step_not_applied(run, step):
    rewrite(run, lambda records: replaced(records, step, applied=False))
    report = audit(run.path)
    assert not report.exact and not report.complete
    assert "was not applied, and its windows were not retried" in report.problems[0].message
    assert report.problems[0].step == step
    assert report.text().startswith(f"not exact: step {step} not applied; ")
    assert (report.not_applied.attempts, report.not_applied.skipped) == (1, (step,))
    # Its windows are no exposure.
    assert report.windows == report.total_windows - run.plan.step_plan().window_range(step)[1]
    assert sum(times * tokens for times, tokens in report.exposures.items()) == report.tokens_consumed


def test_audit_waits_for_the_next_try_of_a_running_run(store, tmp_path):
    folder = trained(store, tmp_path / "run", state="running")
    rewrite(folder, lambda records: replaced(records[:4], 3, applied=False))
    assert audit(folder.path).exact


def test_audit_lists_the_first_problems_and_counts_all(store, tmp_path):
    folder = trained(store, tmp_path / "run", batch=2)
    rewrite(folder, lambda records: [r.model_copy(update={"digest": "0" * 16}) for r in records])
    report = audit(folder.path)
    assert report.num_problems == folder.plan.step_plan().num_steps > len(report.problems) == 10
    assert f"and {report.num_problems - 10} more" in report.text()
    assert json.loads(report.to_json())["num_problems"] == report.num_problems


def test_audit_finds_a_plan_that_is_not_what_the_config_asks_for(run):
    text = (run.path / "config.yaml").read_text()
    (run.path / "config.yaml").write_text(text.replace("order: reshuffle", "order: same"))
    assert only_problem(run).message == "plan.json has order reshuffle, where config.yaml asks for same"


@pytest.mark.parametrize(("old", "new"), [("lr: 0.001", "lr: 0.002"), ("mlp: 0.0", "mlp: 0.1")])
def test_audit_finds_an_edited_config(store, tmp_path, old, new):
    made = {"packages": {"reptrain": version("reptrain")}}
    folder = trained(store, tmp_path / "run", environment=made)
    assert audit(folder.path).exact
    text = (folder.path / "config.yaml").read_text()
    assert old in text
    (folder.path / "config.yaml").write_text(text.replace(old, new))
    assert only_problem(folder).message.startswith("config.yaml has the fingerprint ")


@pytest.mark.parametrize(
    "edit", [{"batch_windows": 9}, {"total_windows": 40}, {"window_tokens": 47}, {"seed": 1}]
)
def test_audit_finds_an_edited_plan(run, edit):
    path = run.path / "plan.json"
    plan = json.loads(path.read_text()) | edit
    plan["sources"][0] |= {key: value for key, value in edit.items() if key == "total_windows"}
    path.write_text(json.dumps(plan))
    ((key, value),) = edit.items()
    report = audit(run.path)
    assert not report.exact
    assert report.problems[0].message.startswith(f"plan.json has {key} {value}, where config.yaml asks for ")


def test_audit_finds_an_edited_order_of_a_source(run):
    path = run.path / "plan.json"
    plan = json.loads(path.read_text())
    plan["sources"][0] |= {"seed": 5, "cut": "shifted"}
    path.write_text(json.dumps(plan))
    report = audit(run.path)
    assert not report.exact
    assert any("plan.json has cut shifted" in problem.message for problem in report.problems)
    assert any("the model saw other tokens" in problem.message for problem in report.problems)


def test_audit_finds_a_cached_order_of_documents_that_was_changed(store, run, tmp_path):
    own = Path(shutil.copytree(store.path, tmp_path / "own"))
    (cached,) = (own / "orders").glob("*.npy")
    table = np.load(cached)
    lengths = np.diff(table[0])
    first, second = next((i, j) for i in range(20) for j in range(i + 1, 40) if lengths[i] == lengths[j])
    table[1, [first, second]] = table[1, [second, first]]
    np.save(cached, table)
    # It differs from its checksum, so that it is computed again.
    assert verify(own, orders=True).problems == [
        f"orders/{cached.name}: differs from its checksum; remove it, and the next start computes it again"
    ]
    assert audit(run.path, store=own).exact and verify(own, orders=True).ok
    np.save(cached, table)
    write_checksum(cached)
    report = audit(run.path, store=own)
    assert (report.exact, report.exit_code) == (False, 4)
    assert "the order of documents cached for" in report.cannot_say[0]
    assert "the model saw other tokens" in report.problems[0].message


def test_audit_takes_a_store_that_moved_and_refuses_another(store, run, tmp_path):
    moved = tmp_path / "moved"
    shutil.copytree(store.path, moved)
    assert audit(run.path, store=moved).exact
    assert (
        store_places(run.path, [str(moved)]) == {"data": moved} == store_places(run.path, [f"data={moved}"])
    )
    with pytest.raises(StoreError):
        audit(run.path, store=tmp_path / "nowhere")
    source = run.plan.sources[0].model_copy(update={"store_fingerprint": "another"})
    plan = run.plan.model_copy(update={"sources": (source,)})
    (run.path / "plan.json").write_text(plan.model_dump_json())
    with pytest.raises(CannotSayError, match="must be the store that the run was trained on"):
        audit(run.path)
    with pytest.raises(RunError, match="must be the store that the run was trained on") as raised:
        audit(run.path, store=moved)
    assert not isinstance(raised.value, CannotSayError)


def test_audit_finds_a_store_whose_bytes_were_changed(store, run, tmp_path):
    changed = tmp_path / "changed"
    shutil.copytree(store.path, changed)
    shard = next(changed.glob("train-*.arrow"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    report = audit(run.path, store=changed)
    assert (report.exact, report.exit_code) == (False, 4)
    assert report.text().startswith("cannot say: damaged or missing evidence\n")
    assert shard.name in report.cannot_say[0]


def test_audit_refuses_a_ledger_that_cannot_be_read(run):
    with run.ledger.path.open("a") as file:
        file.write("{}\n")
    with pytest.raises(CannotSayError, match=r"ledger\.jsonl, line"):
        audit(run.path)


def test_audit_reports_its_progress(run):
    stages = []
    audit(run.path, progress=lambda *news: stages.append(news), verify_store=False)
    steps = run.plan.step_plan().num_steps
    assert stages[-1] == ("audit", steps, steps)


@pytest.mark.parametrize(("budget", "begun", "ended"), [("2.5epochs", 3, 2), ("3epochs", 3, 3)])
def test_audit_counts_the_epochs_begun_and_ended(store, tmp_path, budget, begun, ended):
    (source,) = audit(trained(store, tmp_path / "run", budget=budget).path).sources
    assert (source.epochs_begun, source.epochs_ended) == (begun, ended)
    assert source.exact and f"({begun} begun, {ended} ended)" in source.text()


def test_audit_does_not_call_an_epoch_ended_that_misses_a_step(run):
    rewrite(run, lambda records: [*records[:1], *records[2:]])
    (source,) = audit(run.path).sources
    assert (source.epochs_begun, source.epochs_ended) == (3, 1)


def test_audit_works_in_any_pieces(run, monkeypatch):
    whole = audit(run.path)
    for windows in (1, 7, 16):
        monkeypatch.setattr(audit_module, "_CHUNK_WINDOWS", windows)
        assert audit(run.path) == whole


def test_audit_counts_problems_over_pieces(run, monkeypatch):
    rewrite(run, lambda records: [*records[:2], *replaced(records, 3, applied=False)[3:]])
    whole = audit(run.path)
    assert whole.num_problems > 2
    monkeypatch.setattr(audit_module, "_CHUNK_WINDOWS", 8)
    pieces = audit(run.path)
    assert sorted(p.text() for p in pieces.problems) == sorted(p.text() for p in whole.problems)
    assert pieces.exposures == whole.exposures


def test_audit_of_a_run_without_a_status_is_not_complete(run):
    assert audit(run.path).complete
    (run.path / "status.json").unlink()
    report = audit(run.path)
    assert (report.exact, report.complete) == (True, False)
