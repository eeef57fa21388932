"""Training in one process: learning, resuming, proving, refusing."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import torch
from interrupts import crash, interrupt_at
from ledgers import data_of, steps_of
from safetensors.torch import load_file

from reptrain.auditing.audit import audit
from reptrain.config import RunConfig
from reptrain.errors import ConfigError, PlanError, ResumeError, RunError, StoreError
from reptrain.plan.subset import Subset
from reptrain.runs import RunFolder
from reptrain.store import open_store
from reptrain.store.hashing import write_checksum
from reptrain.tokenization import tokenize
from reptrain.training.loop import train
from reptrain.training.rebuilt_inputs import audit_inputs

MakeConfig = Callable[..., RunConfig]
TIMING = {"step_ms", "tokens_per_s", "tokens_per_s_per_device", "rank_ms"}
DROPOUT = [f"model.dropout.{site}=0.1" for site in ("embedding", "attention", "residual", "mlp")]


@pytest.fixture(scope="module")
def finished(tiny: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """An unbroken run of 27 steps with dropout on."""
    out = tmp_path_factory.mktemp("finished") / "run"
    assert train(tiny(*DROPOUT), out).state == "done"
    return RunFolder.open(out)


T5 = [
    "model={family: t5, d_model: 32, num_encoder_layers: 1, num_decoder_layers: 1, num_heads: 2, head_dim: 8,"
    " d_ff: 48}",
    *("objective.name=span_corruption", "data.document_mask=true", "data.unique_tokens=2000"),
]


@pytest.fixture(scope="module")
def finished_t5(tiny: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """An unbroken run of an encoder-decoder under span corruption, with dropout on."""
    out = tmp_path_factory.mktemp("finished-t5") / "run"
    assert train(tiny(*T5, *DROPOUT), out).state == "done"
    return RunFolder.open(out)


def weights(folder: RunFolder) -> dict[str, torch.Tensor]:
    newest = folder.checkpoints / (folder.checkpoints / "latest").read_text().strip()
    (state,) = newest.glob("*.safetensors")
    return load_file(state)


def untimed(folder: RunFolder) -> list[dict[str, object]]:
    return [record.model_dump(exclude=TIMING) for record in folder.metrics.records()]


def assert_same(found: RunFolder, expected: RunFolder) -> None:
    assert steps_of(found.ledger) == steps_of(expected.ledger)
    assert untimed(found) == untimed(expected)
    before, after = weights(expected), weights(found)
    assert before.keys() == after.keys() and len(before) > 20
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_train_learns_and_audits_exact(finished: RunFolder) -> None:
    losses = [record.loss_nats for record in finished.metrics.records("train")]
    assert losses[-1] < losses[0] - 0.5
    report = audit(finished.path)
    assert report.exact and report.complete
    assert report.exposures == {2: 5000}
    assert finished.status().state == "done"
    assert list(finished.tensorboard.glob("events.out.tfevents.*"))


def test_train_scores_all_sets_at_start_and_end(finished: RunFolder) -> None:
    last = max(record.step for record in finished.metrics.records("train")) + 1
    scored = {(record.set, record.step) for record in finished.metrics.records("valid")}
    assert {(name, step) for name in ("probe", "select", "report") for step in (0, last)} <= scored


def test_environment_says_which_kernels_ran(finished: RunFolder) -> None:
    environment = finished.environment
    kernels = {"cpu": "torch", "cuda": "triton"}[environment["device"].split(":")[0]]
    assert environment["kernels"] == environment["expert_kernels"] == kernels
    assert environment["world_size"] == 1


def test_train_again_does_nothing_to_a_finished_run(finished: RunFolder) -> None:
    before = (finished.path / "ledger.jsonl").read_bytes()
    assert train(finished.config, finished.path).state == "already done"
    assert (finished.path / "ledger.jsonl").read_bytes() == before


@pytest.mark.parametrize(("unbroken", "steps"), [("finished", (9, 20)), ("finished_t5", (4, 9))])
def test_crashed_twice_equals_unbroken_bit_for_bit(
    unbroken: str,
    steps: tuple[int, int],
    request: pytest.FixtureRequest,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    finished: RunFolder = request.getfixturevalue(unbroken)
    out = tmp_path / "run"
    for step in steps:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            interrupt_at(patch, step, crash)
            train(finished.config, out)
        assert RunFolder.open(out).status().state == "failed"
    assert train(finished.config, out).state == "done"
    assert_same(RunFolder.open(out), finished)
    assert audit(out).exact


def test_repacked_epochs_resume_within_an_epoch(
    tiny: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # 20 windows in each of 3 epochs, 7 in a step: the crash is in the second epoch.
    config = tiny(
        "data.cut=repacked", "data.unique_tokens=639", "train.batch_windows=7", "train.total_tokens=3epochs",
        "checkpoint.every_fraction=0.4", "evaluate.max_windows=2",
    )  # fmt: skip
    assert train(config, tmp_path / "unbroken").state == "done"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_at(patch, 5, crash)
        train(config, tmp_path / "run")
    assert train(config, tmp_path / "run").state == "done"
    resumed = RunFolder.open(tmp_path / "run")
    (event,) = (event for event in resumed.events.records() if event.event == "resumed")
    assert 20 < 7 * event.step < 40
    assert_same(resumed, RunFolder.open(tmp_path / "unbroken"))
    report = audit_inputs(tmp_path / "run")
    assert report.exact and report.complete and report.exposures == {3: 639}, report.text()


def test_signal_leads_to_a_checkpoint_and_an_exact_continuation(
    finished: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        interrupt_at(patch, 10, lambda: os.kill(os.getpid(), signal.SIGTERM))
        result = train(finished.config, out)
    assert (result.state, result.steps) == ("preempted", 11)
    assert RunFolder.open(out).status().state == "preempted"
    partial = audit(out)
    assert partial.exact and not partial.complete
    assert train(finished.config, out).state == "done"
    assert_same(RunFolder.open(out), finished)


def test_request_to_stop_is_seen_at_the_next_poll(
    finished: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rarely = finished.config.train.model_copy(update={"poll_stop_steps": 6})
    with monkeypatch.context() as patch:
        interrupt_at(patch, 10, lambda: os.kill(os.getpid(), signal.SIGTERM))
        result = train(finished.config.model_copy(update={"train": rarely}), tmp_path / "run")
    # The signal arrives in step 10, after the poll at 6 completed steps.
    assert (result.state, result.steps) == ("preempted", 12)
    # The setting may differ on resume.
    assert train(finished.config, tmp_path / "run").state == "done"
    assert audit(tmp_path / "run").exact


def test_train_scores_masked_tokens_with_and_without_sentinels(finished_t5: RunFolder) -> None:
    for record in finished_t5.metrics.records("valid"):
        # Full windows of 32 tokens hide 5 in 2 spans: 2 sentinels and an EOS come on top.
        assert (record.scored_tokens, record.raw_tokens) == (8 * 8, 8 * 5)
        raw, scored = round(record.raw_accuracy * 8 * 5), round(record.accuracy * 8 * 8)
        assert 0 <= raw <= scored <= raw + 8 * 3
    assert audit(finished_t5.path).exact


def test_planted_loader_bug_makes_the_audit_fail(
    tiny: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = Subset.tokens

    def one_token_swapped(self: Subset, start_B, length_B, width: int):  # type: ignore[no-untyped-def]
        tokens_BL, length_B = honest(self, start_B, length_B, width)
        hit = (start_B == 64).nonzero()[0]
        if hit.size and self.unique_tokens == 1000:
            first, second = (tokens_BL[0] != tokens_BL[0, 0]).nonzero()[0][0], 0
            row = hit[0]
            tokens_BL[row, [first, second]] = tokens_BL[row, [second, first]]
        return tokens_BL, length_B

    monkeypatch.setattr(Subset, "tokens", one_token_swapped)
    train(tiny("data.unique_tokens=1000", "train.total_tokens=1epochs"), tmp_path / "run")
    monkeypatch.undo()
    report = audit(tmp_path / "run")
    assert not report.exact
    assert "digest" in report.text()


@pytest.fixture
def own_store(store_path: Path, tmp_path: Path) -> Path:
    """A copy of the store that a test may damage."""
    return Path(shutil.copytree(store_path, tmp_path / "own-store"))


def test_planted_document_order_makes_the_audit_fail(
    tiny: MakeConfig, own_store: Path, tmp_path: Path
) -> None:
    config = tiny(f"data.store={own_store}", "data.unique_tokens=30000", "train.total_tokens=1epochs")
    shutil.rmtree(own_store / "orders", ignore_errors=True)
    assert Subset.open(open_store(own_store), unique_tokens=30_000).has_order_of_its_seed()
    (cached,) = (own_store / "orders").glob("*.npy")
    table = np.load(cached)
    # Two documents of one length change places, so that every window can still be read.
    lengths = np.diff(table[0])
    first, second = next((i, j) for i in range(20) for j in range(i + 1, 40) if lengths[i] == lengths[j])
    assert table[0, second + 1] < 30_000
    table[1, [first, second]] = table[1, [second, first]]
    np.save(cached, table)
    # It differs from its checksum, so that an opening would compute it again.
    write_checksum(cached)
    train(config, tmp_path / "run")
    report = audit(tmp_path / "run")
    assert report.exit_code == 4 and not report.exact
    assert "order of documents" in report.cannot_say[0]


def test_a_flip_in_the_cached_order_of_documents_changes_nothing(
    tiny: MakeConfig, own_store: Path, tmp_path: Path
) -> None:
    config = tiny(f"data.store={own_store}", "data.unique_tokens=500", "train.total_tokens=1epochs")
    for other in (own_store / "orders").iterdir():
        other.unlink()
    Subset.open(open_store(own_store), unique_tokens=500)
    (cached,) = (own_store / "orders").glob("*.npy")
    content = cached.read_bytes()
    cached.write_bytes(content[:-20] + bytes([content[-20] ^ 1]) + content[-19:])
    train(config, tmp_path / "run")
    assert audit(tmp_path / "run").exact and cached.read_bytes() == content


def test_changed_store_is_refused_at_the_start(tiny: MakeConfig, own_store: Path, tmp_path: Path) -> None:
    shard = next(own_store.glob("train-*.arrow"))
    data = bytearray(shard.read_bytes())
    data[len(data) // 2] ^= 1
    shard.write_bytes(data)
    with pytest.raises(StoreError, match="must be unchanged since the store was completed"):
        train(tiny(f"data.store={own_store}"), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_tokenizer_without_pad_trains(tiny: MakeConfig, text_file: Path, tmp_path: Path) -> None:
    texts = (json.loads(line)["text"] for line in text_file.read_text().splitlines())
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=texts, model_writer=model, vocab_size=300, hard_vocab_limit=False, minloglevel=2
    )
    (tmp_path / "default.model").write_bytes(model.getvalue())
    tokenize([text_file], tmp_path / "store", tokenizer=tmp_path / "default.model", held_out_fraction=0.2)
    train(tiny(f"data.store={tmp_path / 'store'}", "train.total_tokens=1epochs"), tmp_path / "run")
    assert audit(tmp_path / "run").exact


def test_checkpoints_of_a_future_that_was_cut_off_go(
    finished: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        interrupt_at(patch, 10, lambda: os.kill(os.getpid(), signal.SIGTERM))
        train(finished.config, out)
    checkpoints = RunFolder.open(out).checkpoints
    shutil.copytree(checkpoints / "step-11", checkpoints / "step-26")
    assert train(finished.config, out).state == "done"
    assert sorted(path.name for path in checkpoints.glob("step-*")) == ["step-20", "step-27"]
    assert_same(RunFolder.open(out), finished)


def test_diverged_run_stops_as_failed_and_tells_the_step(tiny: MakeConfig, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"diverged at step \d+: loss and gradient must be finite"):
        train(
            tiny("optimizer.lr=1e30", "schedule.name=constant", "schedule.warmup_fraction=0"),
            tmp_path / "run",
        )
    folder = RunFolder.open(tmp_path / "run")
    assert folder.status().state == "failed"
    assert not list(folder.ledger.records())[-1].applied


@pytest.mark.parametrize(
    ("override", "error", "words"),
    [
        ("data.unique_tokens=1e9", PlanError, ["1000000000", "data.unique_tokens"]),
        ("data.window_tokens=5001", PlanError, ["5001", "longer than the subset"]),
        ("data.store=nowhere", StoreError, ["nowhere"]),
        ("train={precision: fp16, zero_stage: 1}", ConfigError, ["fp16 on a CPU"]),
        ("train.device=cuda", ConfigError, ["train.device"]),
        ("model.vocab_size=100", ConfigError, ["model.vocab_size", "512"]),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(
    tiny: MakeConfig, tmp_path: Path, override: str, error: type[Exception], words: list[str]
) -> None:
    if override == "train.device=cuda" and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(error) as caught:
        train(tiny(override), tmp_path / "run")
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert not (tmp_path / "run").exists()


def test_full_disk_is_told_and_the_run_goes_on_when_there_is_room(
    finished: RunFolder, small_disk: Callable[[int], Path]
) -> None:
    out = small_disk(400) / "run"
    with pytest.raises(RunError, match=r"bytes free\. Free space"):
        train(finished.config, out)
    assert not list((out / "checkpoints").glob("*/*"))
    small_disk(8192)
    assert train(finished.config, out).state == "done"
    assert_same(RunFolder.open(out), finished)


def test_resume_with_another_setting_is_refused_by_its_name(finished: RunFolder) -> None:
    changed = finished.config.model_copy(update={"seed": 7})
    with pytest.raises(ResumeError, match="seed=7 where the folder has 0"):
        train(changed, finished.path)
    assert finished.status().state == "done"


def test_resume_at_another_stage_goes_on(
    tiny: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_at(patch, 10, crash)
        train(tiny(), tmp_path / "run")
    folder = RunFolder.open(tmp_path / "run")
    assert train(tiny("train.zero_stage=3", "train.micro_batch_windows=5"), folder.path).state == "done"
    resumed = next(event for event in folder.events.records() if event.event == "resumed")
    assert resumed.detail == "by 1 rank at ZeRO 3, written by 1 rank at ZeRO 0"
    unbroken = tmp_path / "unbroken"
    train(tiny(), unbroken)
    assert data_of(folder.ledger) == data_of(RunFolder.open(unbroken).ledger)
    before, after = weights(RunFolder.open(unbroken)), weights(folder)
    # ZeRO 3 on one rank keeps each parameter whole: the same names, and the same numbers but for rounding.
    assert before.keys() == after.keys()
    assert all(torch.allclose(before[name], after[name], atol=1e-5) for name in before)


@pytest.mark.parametrize(
    "overrides",
    [
        ["data.cut=shifted", "train.total_tokens=2.5epochs"],
        ["data.cut=repacked", "train.total_tokens=2.5epochs", "data.document_mask=true"],
        ["data.order=same", "train.activation_checkpointing=true", *DROPOUT],
        ["data.unique_tokens=40", "train.batch_windows=7", "train.total_tokens=9epochs"],
        ["data.unique_tokens=33", "data.window_tokens=1", "train.total_tokens=1epochs"],
        ["data.unique_tokens=32", "train.total_tokens=1", "train.batch_windows=1"],
    ],
    ids=["shifted", "repacked", "same", "batch-larger-than-epoch", "window-of-one", "one-window"],
)
def test_odd_sizes_train_and_audit_exact(tiny: MakeConfig, tmp_path: Path, overrides: list[str]) -> None:
    train(tiny(*overrides), tmp_path / "run")
    report = audit(tmp_path / "run")
    assert report.exact and report.complete, report.text()


def test_activation_checkpointing_changes_nothing(finished: RunFolder, tmp_path: Path) -> None:
    settings = finished.config.train.model_copy(update={"activation_checkpointing": True})
    train(finished.config.model_copy(update={"train": settings}), tmp_path / "run")
    assert untimed(RunFolder.open(tmp_path / "run")) == untimed(finished)
