"""The audit: it says exact where it is, and finds every way in which it is not."""

from __future__ import annotations

import json
import shutil
from random import Random

import numpy as np
import pytest

from reptrain.config import RunConfig
from reptrain.errors import RunError, StoreError
from reptrain.plan import Stream, Subset
from reptrain.runs import LedgerRecord, RunFolder, RunPlan
from reptrain.runs.audit import audit, store_places
from reptrain.runs.digest import step_digest, window_digest
from reptrain.store import open_store, tokenize

UNIQUE = 1000
WINDOW = 48


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """A store of 400 short documents."""
    random = Random(0)
    words = ["".join(random.choices("abcdefgh", k=random.randint(2, 7))) for _ in range(80)]
    texts = [" ".join(random.choices(words, k=random.randint(3, 25))) for _ in range(400)]
    folder = tmp_path_factory.mktemp("audit")
    source = folder / "text.jsonl"
    source.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    tokenize([source], folder / "store", vocab_size=128, num_sentinels=4)
    return open_store(folder / "store")


@pytest.fixture
def run(store, tmp_path):
    """A run that is done and exact, 2.5 epochs in steps of 8 windows; `config` may change it."""
    return trained(store, tmp_path / "run")


def trained(store, path, *, state="done", budget="2.5epochs", batch=8, **data) -> RunFolder:
    """What a faultless engine leaves behind."""
    config = RunConfig.model_validate(
        {
            "data": {
                "store": str(store.path),
                "unique_tokens": UNIQUE,
                "window_tokens": WINDOW,
                **data,
            },
            "train": {"total_tokens": budget, "batch_windows": batch},
        }
    )
    subset = Subset.open(store, unique_tokens=UNIQUE)
    plan = RunPlan.of(config, stores={"data": store}, stream=Stream([subset]))
    folder = RunFolder.create_or_open(path, config, plan, {})
    for step in range(plan.step_plan().num_steps):
        folder.ledger.append(consumed(folder, subset, step))
    folder.set_status(state)
    return folder


def consumed(folder, subset, step, *, spoil=lambda tokens: None) -> LedgerRecord:
    """The record of a step whose tokens pass through `spoil` on their way to the model."""
    first, count = folder.plan.step_plan().window_range(step)
    found = folder.plan.mixture_plan().locate(np.arange(first, first + count))
    tokens, length = subset.tokens(found.start, found.length, WINDOW)
    spoil(tokens)
    return LedgerRecord(
        step=step,
        first_index=first,
        windows=count,
        tokens=int(length.sum()),
        epoch=first // folder.plan.sources[0].windows_per_epoch,
        applied=True,
        digest=step_digest(window_digest(tokens, found.start, length)),
    )


def rewrite(folder, change) -> None:
    """Replace the ledger by what `change` makes of its records."""
    records = change(list(folder.ledger.records()))
    folder.ledger.path.unlink()
    for record in records:
        folder.ledger.append(record)


def replaced(records, place, **fields):
    return [*records[:place], records[place].model_copy(update=fields), *records[place + 1 :]]


def only_problem(folder, **options):
    report = audit(folder.path, **options)
    assert not report.exact
    assert report.num_problems == len(report.problems) == 1, report.text()
    return report.problems[0]


@pytest.mark.parametrize("cut", ["fixed", "shifted"])
@pytest.mark.parametrize("order", ["reshuffle", "same", "mixed"])
def test_audit_of_whole_epochs_is_exact(store, tmp_path, order, cut):
    folder = trained(store, tmp_path / "run", budget="3epochs", order=order, cut=cut)
    report = audit(folder.path)
    assert report.exact and report.complete, report.text()
    assert report.exposures == {3: UNIQUE}
    assert (report.epochs, report.tokens_consumed, report.store_verified) == ("3", 3 * UNIQUE, True)
    assert report.text().startswith("exact\nconsumed: 1,000 tokens 3 times, of 1,000 unique tokens")


@pytest.mark.parametrize("cut", ["fixed", "shifted"])
def test_audit_of_a_fraction_gives_floor_and_ceil(store, tmp_path, cut):
    report = audit(trained(store, tmp_path / "run", cut=cut).path)
    assert report.exact and report.complete
    assert set(report.exposures) == {2, 3} and sum(report.exposures.values()) == UNIQUE
    assert 2 * UNIQUE + report.exposures[3] == report.tokens_consumed


def test_audit_of_batches_larger_than_an_epoch_is_exact(store, tmp_path):
    report = audit(trained(store, tmp_path / "run", budget="5epochs", batch=64).path)
    assert report.exact and report.exposures == {5: UNIQUE}


def test_audit_of_mixed_epochs_with_a_fraction_is_not_exact(store, tmp_path):
    report = audit(trained(store, tmp_path / "run", order="mixed").path)
    assert not report.exact
    assert all("tokens were consumed" in problem.message for problem in report.problems)


def test_audit_of_an_unfinished_run_is_exact_so_far(store, tmp_path):
    folder = trained(store, tmp_path / "run", state="running")
    folder.ledger.truncate(4)
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
    folder.ledger.truncate(0)
    report = audit(folder.path)
    assert report.exact and not report.complete and report.exposures == {0: UNIQUE}


def test_audit_finds_one_swapped_token(store, run):
    subset = Subset.open(store, unique_tokens=UNIQUE)

    def swap(tokens):
        tokens[3, 7], tokens[3, 8] = tokens[3, 8], tokens[3, 7]
        assert tokens[3, 7] != tokens[3, 8]

    rewrite(run, lambda records: [*records[:2], consumed(run, subset, 2, spoil=swap), *records[3:]])
    problem = only_problem(run)
    assert (problem.step, problem.index) == (2, 16)
    assert "for global indices 16 to 23: the model saw other tokens" in problem.message


def test_audit_names_the_document_where_a_step_has_one_window(store, tmp_path):
    folder = trained(store, tmp_path / "run", batch=1)
    rewrite(folder, lambda records: replaced(records, 5, digest="0" * 16))
    problem = only_problem(folder)
    start = int(folder.plan.mixture_plan().locate(np.asarray([5])).start[0])
    assert problem.document == Subset.open(store).documents(start, 1)[0]
    assert problem.text().startswith("step 5, global index 5, document ")


def test_audit_finds_a_step_left_out(run):
    rewrite(run, lambda records: [*records[:3], *records[4:]])
    report = audit(run.path)
    assert not report.exact and not report.complete
    assert report.problems[0].text() == "step 4, global index 32: comes where step 3 should"
    assert any("tokens were consumed" in problem.message for problem in report.problems)


def test_audit_finds_a_step_consumed_twice(run):
    rewrite(run, lambda records: [*records[:4], records[3], *records[4:]])
    report = audit(run.path)
    assert report.problems[0].text() == "step 3, global index 24: comes where step 4 should"
    assert not report.complete


@pytest.mark.parametrize("fields", [{"first_index": 17}, {"windows": 7}])
def test_audit_finds_other_windows_than_planned(run, fields):
    rewrite(run, lambda records: replaced(records, 2, **fields))
    report = audit(run.path)
    assert (report.problems[0].step, report.exact) == (2, False)
    assert "8 from 16 by the plan" in report.problems[0].message


@pytest.mark.parametrize("fields", [{"first_index": 10**15}, {"windows": 10**15}, {"step": 10**15}])
def test_audit_survives_a_record_from_nowhere(run, fields):
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


@pytest.mark.parametrize("step", [3, 6])
def test_audit_finds_a_step_not_applied(run, step):
    rewrite(run, lambda records: replaced(records, step, applied=False))
    report = audit(run.path)
    assert not report.exact and not report.complete
    assert "was not applied, and its windows were not tried again" in report.problems[0].message
    assert report.problems[0].step == step


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
    with pytest.raises(RunError, match="must be the store that the run was trained on"):
        audit(run.path)


def test_audit_finds_a_store_whose_bytes_were_changed(store, run, tmp_path):
    changed = tmp_path / "changed"
    shutil.copytree(store.path, changed)
    shard = next(changed.glob("train-*.arrow"))
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    report = audit(run.path, store=changed)
    assert not report.exact
    assert shard.name in report.problems[0].message


def test_audit_refuses_a_ledger_that_cannot_be_read(run):
    with run.ledger.path.open("a") as file:
        file.write("{}\n")
    with pytest.raises(RunError, match=r"ledger\.jsonl, line"):
        audit(run.path)


def test_audit_tells_its_progress(run):
    told = []
    audit(run.path, progress=lambda *news: told.append(news), verify_store=False)
    steps = run.plan.step_plan().num_steps
    assert told[-1] == ("audit", steps, steps)
