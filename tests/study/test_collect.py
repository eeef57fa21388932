"""The table of a study and its verdict."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from run_folders import FakeStore, write_run

from reptrain.study import ArmRow, StudyConfig, arms, collect, study_status, verdict
from reptrain.study.cautions import cautions, divergence
from reptrain.study.collect import LossCurve
from reptrain.study.node_state import run_is_done
from reptrain.study.paths import run_path
from reptrain.study.verdict import settings, winner
from reptrain.study.words import label, plain
from reptrain.tokenization import tokenize

STUDY = StudyConfig(
    name="s",
    base={"data": {"store": "s", "window_tokens": 64}, "train": {"total_tokens": 8192}},
    axes={"data.unique_tokens": [4096, 1024]},
)


def row_of(arm: str, best: float, *, last: float | None = None, seed: int = 0, unique: int = 1024) -> ArmRow:
    return ArmRow(
        arm=arm, values={"data.unique_tokens": unique}, seed=seed, state="done", unique_tokens=unique,
        epochs=8192 / unique, total_tokens=8192, best_select_nats=best, best_report_nats=best,
        best_tokens=4096, report=LossCurve(tokens=(0, 8192), nats=(9.0, best if last is None else last)),
    )  # fmt: skip


def test_collect_reads_losses_speed_and_audit(tmp_path: Path) -> None:
    first, _ = arms(STUDY)
    write_run(first.config, run_path(tmp_path, first.name), exact=True)
    done, waiting = collect(STUDY, tmp_path)
    assert (done.state, done.unique_tokens, done.epochs, done.tokens) == ("done", 4096, 2.0, 8192)
    assert (done.best_select_nats, done.best_tokens) == (6.0, 4096)
    # What is told is `report` where `select` is best: 6.2, not the last.
    assert (done.best_report_nats, done.best_scores["bits_per_byte"], done.report.last) == (6.2, 3.1, 7.4)
    assert done.gap_nats == 5.0
    assert done.tokens_per_s == 1000.0
    assert (done.audit_exact, done.exposures) == (True, {2: 4096})
    assert (waiting.state, waiting.epochs, waiting.audit_exact) == ("waiting", 8.0, None)


MIXED = StudyConfig(
    name="mixed",
    base={
        "data": {
            "window_tokens": 64,
            "sources": {
                "real": {"store": "s", "unique_tokens": 1024, "total_tokens": "4epochs"},
                "synthetic": {"store": "s", "total_tokens": "0.5epochs"},
            },
        }
    },
    axes={"data.sources.real.total_tokens": ["4epochs", "2epochs"]},
)


def test_collect_reads_a_mixture(tmp_path: Path) -> None:
    first, _ = arms(MIXED)
    losses = {f"{kind}/{name}": [8.0, nats] for kind, nats in LAST.items() for name in ("real", "synthetic")}
    losses["report/synthetic"] = [8.0, 1.0]
    write_run(first.config, run_path(tmp_path, first.name), losses=losses)
    done, waiting = collect(MIXED, tmp_path)
    assert (done.unique_tokens, done.total_tokens) == (1024 + 2**20, 4 * 1024 + 2**19)
    assert done.epochs == pytest.approx(done.total_tokens / done.unique_tokens)
    assert (done.best_select_nats, done.best_report_nats, done.gap_nats) == (4.0, 4.5, 1.0)
    # Of the arm that waits, U of the store is not known yet.
    assert (waiting.unique_tokens, waiting.epochs, waiting.total_tokens) == (None, None, None)
    assert verdict([done, waiting]).startswith("1 of 2 runs are done")
    assert label(done) == "sources.real.total_tokens 4epochs"


LAST = {"probe": 3.0, "select": 4.0, "report": 4.5}


def test_collect_reads_nothing_from_a_run_of_another_configuration(tmp_path: Path) -> None:
    first, second = arms(STUDY)
    write_run(second.config, run_path(tmp_path, first.name))
    row = collect(STUDY, tmp_path)[0]
    assert (row.state, row.best_select_nats) == ("other config", None)
    assert study_status(STUDY, tmp_path)[0].state == "other config"


def test_collect_and_runner_take_a_run_of_other_numerics_for_another(tmp_path: Path) -> None:
    arm = arms(STUDY)[0]
    run = run_path(tmp_path, arm.name)
    write_run(arm.config, run)
    stores = {source.store: FakeStore() for source in arm.config.sources.values()}
    assert run_is_done(arm.config, run, stores)
    plan = json.loads((run / "plan.json").read_text())
    (run / "plan.json").write_text(json.dumps(plan | {"numerics_version": plan["numerics_version"] - 1}))
    assert not run_is_done(arm.config, run, stores)
    row = collect(STUDY, tmp_path)[0]
    assert (row.state, row.best_select_nats) == ("other numerics", None)
    assert study_status(STUDY, tmp_path)[0].state == "other numerics"


def test_collect_tells_why_a_run_failed(tmp_path: Path) -> None:
    arm = arms(STUDY)[0]
    write_run(arm.config, run_path(tmp_path, arm.name), state="failed", reason="loss is nan", losses={})
    row = collect(STUDY, tmp_path)[0]
    assert (row.state, row.reason, row.best_select_nats, row.gap_nats) == (
        "failed",
        "loss is nan",
        None,
        None,
    )
    status = study_status(STUDY, tmp_path)[0]
    assert (status.state, status.reason, status.tokens) == ("failed", "loss is nan", 8192)


def test_collect_does_not_take_a_loss_that_is_not_finite_for_the_best(tmp_path: Path) -> None:
    arm = arms(STUDY)[0]
    losses = {"select": [float("-inf"), float("nan"), 7.0]}
    write_run(arm.config, run_path(tmp_path, arm.name), losses=losses)
    assert collect(STUDY, tmp_path)[0].best_select_nats == 7.0


def test_verdict_ranks_by_held_out_loss_and_tells_the_differences() -> None:
    rows = [row_of("b", 5.5), row_of("a", 5.0, unique=4096)]
    assert verdict(rows) == (
        "For the same 8,192 tokens of training, 2 epochs of 4,096 tokens reached 5.00 nats per token on"
        " held-out text; 8 epochs of 1,024 tokens cost 0.50 more."
        " Not judged: each setting has one seed only, so a difference may be chance."
    )


def test_verdict_tells_where_overfitting_began_and_what_it_cost() -> None:
    rows = [row_of("a", 5.0, unique=4096), row_of("b", 5.5, last=7.25)]
    assert "cost 0.50 more at best, after 4 epochs, and 2.25 more at the end." in verdict(rows)
    assert "at best, after 4 epochs, and rose to 7.25 by the end" in verdict([row_of("b", 5.5, last=7.25)])


def test_verdict_says_what_is_missing() -> None:
    unfinished = row_of("b", 5.5).model_copy(update={"state": "running"})
    assert verdict([unfinished]) == "The run is not done yet."
    assert verdict([row_of("a", 5.0), unfinished]).startswith("1 of 2 runs are done: ")


def test_verdict_averages_over_seeds() -> None:
    rows = [row_of("a0", 5.0), row_of("a1", 5.2, seed=1)]
    assert len(settings(rows)) == 1
    assert "reached 5.10 nats" in verdict(rows)
    assert "(mean of 2 seeds, standard deviation 0.14)" in verdict(rows)


def test_verdict_names_the_best_the_second_and_the_worst_of_many() -> None:
    sentence = verdict([row_of(str(k), 5.0 + k / 10, unique=64 * k) for k in range(1, 8)])
    assert sentence.split(" Not judged")[0].count(";") == 2
    assert "of 448 tokens (the worst) cost 0.60 more" in sentence


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"data.unique_tokens": 1024}, "8 epochs of 1,024 tokens"),
        (
            {"data.unique_tokens": 1024, "model.dropout.residual": 0.1},
            "8 epochs of 1,024 tokens, dropout.residual 0.1",
        ),
        ({"model.dropout.mlp": 0.0, "train.compile": True}, "dropout.mlp 0, compile on"),
        ({}, "8 epochs of 1,024 tokens"),
    ],
)
def test_label_says_an_arm_in_words(values: dict[str, object], words: str) -> None:
    row = row_of("a", 5.0).model_copy(update={"values": values})
    assert label(row) == words
    assert label(row, seeds=True) == f"{words}, seed 0"


def test_plain_writes_values_as_people_do() -> None:
    values = [65536, 2.0, 0.5, 1e-5, None, False, {"d_ff": 8}, "same"]
    assert [plain(v) for v in values] == ["65,536", "2", "0.5", "1e-05", "null", "off", "d_ff=8", "same"]


def test_verdict_ranks_no_losses_of_different_measures() -> None:
    rows = [row_of("a", 3.0, unique=2048), row_of("b", 4.0)]
    told = verdict([row.model_copy(update={"measure": row.arm}) for row in rows])
    assert "not comparable" in told and "more" not in told
    assert "3.00" in told and "4.00" in told
    assert "cost 1.00 more" in verdict([row.model_copy(update={"measure": "same"}) for row in rows])


def test_collect_tells_the_text_that_all_runs_share(tmp_path: Path) -> None:
    study = StudyConfig(
        name="mixed",
        base={"data": {"window_tokens": 64}},
        axes={"data.sources": [
            {"real": {"store": "s", "unique_tokens": 1024}},
            {
                "alpaca": {"store": "another", "unique_tokens": 1024},
                "real": {"store": "s", "unique_tokens": 1024},
            },
        ]},
    )  # fmt: skip
    told = {name: [8.0, 6.0] for name in LAST}
    first, second = arms(study)
    write_run(first.config, run_path(tmp_path, first.name), losses=told)
    told = {f"{name}/{source}": [8.0, nats] for name in LAST for source, nats in (("alpaca", 1), ("real", 5))}
    write_run(second.config, run_path(tmp_path, second.name), losses=told)
    alone, mixed = collect(study, tmp_path)
    # `alpaca` comes first by name, but the other run knows nothing of it.
    assert (alone.report.last, mixed.report.last) == (6.0, 5.0)
    assert alone.measure == mixed.measure is not None


def test_collect_never_takes_the_untrained_model_for_the_best(tmp_path: Path) -> None:
    first, second = arms(STUDY)
    worse = {"probe": [8.0, 5.0, 2.0], "select": [4.0, 6.0, 7.0], "report": [4.1, 6.2, 7.4]}
    for arm in (first, second):
        write_run(arm.config, run_path(tmp_path, arm.name), losses=worse)
    rows = collect(STUDY, tmp_path)
    assert [(row.best_select_nats, row.best_tokens, row.start_nats) for row in rows] == 2 * [(6.0, 4096, 4.1)]
    told = verdict(rows)
    assert told.startswith("Training did not help: no setting has a lower held-out loss than before")
    assert "2 epochs of 4,096 tokens 4.10 before training, 6.20 after" in told
    assert "reached" not in told and winner(settings(rows)) is None


def test_verdict_names_the_settings_that_are_no_better_than_untrained() -> None:
    better, worse = row_of("a", 5.0, unique=4096), row_of("b", 5.5)
    rows = [row.model_copy(update={"start_nats": 5.2}) for row in (better, worse)]
    assert "cost 0.50 more, no better than before training (5.20)" in verdict(rows)
    assert winner(settings(rows)) is not None


def test_verdict_says_so_where_the_end_is_better_than_what_was_selected() -> None:
    told = verdict([row_of("a", 5.0, last=4.8, unique=4096), row_of("b", 5.5)])
    assert "held-out text where the selection split is lowest, after 1 epochs, and 4.80 at the end" in told


def test_verdict_of_equal_losses_has_no_winner() -> None:
    rows = [row_of("a", 5.0, unique=4096), row_of("b", 5.001), row_of("c", 5.5, unique=512)]
    told = verdict(rows)
    assert "8 epochs of 1,024 tokens reached the same to two decimals" in told and "cost 0.00" not in told
    assert winner(settings(rows)) is None


@pytest.mark.parametrize("nan", [float("nan"), float("inf")])
def test_verdict_names_the_arms_without_a_finite_loss(tmp_path: Path, nan: float) -> None:
    first, second = arms(STUDY)
    write_run(first.config, run_path(tmp_path, first.name))
    lost = {name: [8.0, nan, nan] for name in LAST}
    write_run(second.config, run_path(tmp_path, second.name), losses=lost)
    rows = collect(STUDY, tmp_path)
    assert "No finite held-out loss after training: 8 epochs of 1,024 tokens." in verdict(rows)
    assert "2 of 2" not in verdict(rows)
    assert verdict(rows[1:]) == "No run has a finite held-out loss after training."
    ended = rows[0].model_copy(update={"report": LossCurve(tokens=(0, 1), nats=(8.0, nan))})
    assert "and diverged by the end" in verdict([ended])


def seeds_of(arm: str, losses: list[float], unique: int) -> list[ArmRow]:
    return [row_of(f"{arm}{seed}", loss, seed=seed, unique=unique) for seed, loss in enumerate(losses)]


@pytest.mark.parametrize(
    ("best", "other", "doubt"),
    [
        ([5.0, 5.1, 5.2], [5.5, 5.6, 5.7], None),
        ([5.0, 5.1, 5.6], [5.5, 5.6, 5.7], "overlap with those of 8 epochs of 1,024 tokens"),
        ([5.0, 5.1], [5.5, 5.6], "2 seeds a setting are too few"),
        ([5.0, 5.1, 5.2], [5.5], "one seed only"),
    ],
)
def test_verdict_says_what_the_seeds_do_not_settle(
    best: list[float], other: list[float], doubt: str | None
) -> None:
    told = verdict([*seeds_of("a", best, 4096), *seeds_of("b", other, 1024)])
    assert ("Not judged" in told) == (doubt is not None)
    assert doubt is None or doubt in told


def split_row(arm: str, select: float, report: float, *, unique: int = 1024) -> ArmRow:
    return row_of(arm, report, unique=unique).model_copy(update={"best_select_nats": select})


def test_divergence_warns_where_selection_and_report_splits_disagree() -> None:
    assert divergence([split_row("a", 5.0, 5.1, unique=4096), split_row("b", 5.3, 5.4)]) == []
    (ranks,) = divergence([split_row("a", 5.2, 5.1, unique=4096), split_row("b", 5.1, 5.2)])
    assert "disagree on the best setting: 8 epochs of 1,024 tokens and 2 epochs" in ranks
    (level,) = divergence([split_row("a", 4.0, 5.0)])
    assert "4.00 nats per token on the selection split, but 5.00 on the report split" in level
    (choice,) = divergence([row_of("a", 5.0, last=4.8)])
    assert (
        "the selection split chooses, the report split has 5.00" in choice
        and "lowest is 4.80, after 8 epochs" in choice
    )
    # Neither the untrained model nor a loss that is not finite counts as the lowest.
    curve = LossCurve(tokens=(0, 4096, 8192), nats=(1.0, 5.0, float("nan")))
    assert divergence([row_of("a", 5.0).model_copy(update={"report": curve})]) == []


def test_cautions_name_the_store_whose_held_out_splits_are_small(tmp_path: Path) -> None:
    texts = "".join(json.dumps({"text": f"text number {number} of a few"}) + "\n" for number in range(100))
    (tmp_path / "few.jsonl").write_text(texts)
    tokenize([tmp_path / "few.jsonl"], tmp_path / "s", vocab_size=30, num_sentinels=0)
    study = STUDY.model_copy(update={"base": STUDY.base | {"data": {"store": str(tmp_path / "s")}}})
    (found,) = cautions(study, [])
    assert "held-out text is small: select (3 documents" in found


def test_cautions_leave_out_a_store_that_was_moved() -> None:
    assert cautions(STUDY, []) == []
