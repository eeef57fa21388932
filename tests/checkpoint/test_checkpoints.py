"""Checkpoints: damage, retention, and stop requests by signals and the time limit."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Callable, Sequence
from hashlib import sha256
from pathlib import Path

import pytest
from interrupts import crash, interrupt_at
from ledgers import steps_of

from reptrain.auditing.audit import audit
from reptrain.checkpoint import saving
from reptrain.checkpoint.state import Piece
from reptrain.checkpoint.state_files import FileSum, write_pieces
from reptrain.config import RunConfig
from reptrain.distributed import stop as preempt
from reptrain.errors import ResumeError
from reptrain.hub.saved_model import open_saved_model
from reptrain.runs import RunFolder
from reptrain.runs.folder import refuse_to_resume
from reptrain.training.loop import train

MakeConfig = Callable[..., RunConfig]


@pytest.fixture(scope="module")
def crashed(tiny: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run that crashed in step 16 of 27, with checkpoints after 7 and 14 steps."""
    out = tmp_path_factory.mktemp("crashed") / "run"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_at(patch, 16, crash)
        train(tiny(), out)
    return RunFolder.open(out)


@pytest.fixture(scope="module")
def unbroken(tiny: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    out = tmp_path_factory.mktemp("unbroken") / "run"
    train(tiny(), out)
    return RunFolder.open(out)


@pytest.fixture
def damaged(crashed: RunFolder, tmp_path: Path) -> RunFolder:
    """A copy that a test may damage."""
    return RunFolder.open(Path(shutil.copytree(crashed.path, tmp_path / "run")))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def seal_null(newest: Path) -> None:
    """A manifest that is null, under a checksum that fits."""
    (newest / "manifest.json").write_text(f"null\n{sha256(b'null').hexdigest()}\n")


def state_of(folder: Path) -> Path:
    (state,) = folder.glob("*.safetensors")
    return state


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda newest: flip(state_of(newest)), "does not match its checksum"),
        (lambda newest: cut(state_of(newest)), "bytes instead of"),
        (lambda newest: state_of(newest).unlink(), "No such file"),
        (lambda newest: flip(newest / "manifest.json"), "manifest.json does not match its checksum"),
        (lambda newest: cut(newest / "manifest.json"), "manifest.json does not match its checksum"),
        (seal_null, "must be a JSON object"),
        (shutil.rmtree, "is missing"),
    ],
    ids=[
        *("flipped", "truncated", "missing", "flipped-manifest", "truncated-manifest", "null-manifest"),
        "removed",
    ],
)
def test_damaged_newest_checkpoint_is_skipped_with_a_warning(
    damaged: RunFolder,
    unbroken: RunFolder,
    damage: Callable[[Path], None],
    words: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    damage(damaged.checkpoints / "step-14")
    with monkeypatch.context() as patch:
        interrupt_at(patch, 20, lambda: os.kill(os.getpid(), signal.SIGTERM))
        train(damaged.config, damaged.path)
    told = capsys.readouterr().out
    assert "WARNING: checkpoint step-14" in told and words in told and "resumed at step 7" in told
    (event,) = (event for event in damaged.events.records() if event.event == "damaged")
    assert words in event.detail and event.step == 7
    assert steps_of(damaged.ledger) == steps_of(unbroken.ledger)[:21]
    assert audit(damaged.path).exact


def test_status_reports_the_damage_while_the_run_continues(
    damaged: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    flip(state_of(damaged.checkpoints / "step-14"))
    seen = []
    interrupt_at(monkeypatch, 7, lambda: seen.append(damaged.status()) or crash())
    with pytest.raises(KeyboardInterrupt):
        train(damaged.config, damaged.path)
    assert seen[0].state == "running" and "from step 7: checkpoint step-14" in str(seen[0].reason)


@pytest.mark.parametrize(("found", "words"), [(1, "the version of reptrain that wrote it"), (4, "a later")])
def test_newest_checkpoint_of_another_format_is_refused(damaged: RunFolder, found: int, words: str) -> None:
    path = damaged.checkpoints / "step-14" / "manifest.json"
    body = json.dumps(json.loads(path.read_text().rpartition("}")[0] + "}") | {"format": found})
    path.write_text(f"{body}\n{sha256(body.encode()).hexdigest()}\n")
    kept = sorted(damaged.checkpoints.iterdir())
    message = f"must have format 2 or 3, but got format {found}. Use {words}"
    with pytest.raises(ResumeError, match=message):
        train(damaged.config, damaged.path)
    for step in (None, 14):
        with pytest.raises(ResumeError, match=message):
            open_saved_model(damaged.path, step)
    assert sorted(damaged.checkpoints.iterdir()) == kept


def test_unreadable_latest_is_ignored(damaged: RunFolder, unbroken: RunFolder) -> None:
    (damaged.checkpoints / "latest").write_bytes(b"\xff\x00rubbish")
    train(damaged.config, damaged.path)
    assert any(event.step == 14 for event in damaged.events.records() if event.event == "resumed")
    newest = state_of(damaged.checkpoints / "step-27")
    assert newest.read_bytes() == state_of(unbroken.checkpoints / "step-27").read_bytes()


def test_no_intact_checkpoint_is_an_error_that_changes_nothing(damaged: RunFolder) -> None:
    for folder in damaged.checkpoints.glob("step-*"):
        flip(state_of(folder))
    before = (damaged.path / "ledger.jsonl").read_bytes()
    with pytest.raises(ResumeError, match=r"step-14: .*checksum; checkpoint step-7: .*checksum"):
        train(damaged.config, damaged.path)
    assert (damaged.path / "ledger.jsonl").read_bytes() == before


@pytest.mark.parametrize("name", ["ledger.jsonl", "metrics.jsonl"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda lines: lines[:10],
        lambda lines: [lines[0].replace(b"1", b"2"), *lines[1:]],
        lambda lines: [lines[0], b"no record\n", *lines[2:]],
        lambda lines: [],
    ],
    ids=["cut", "flipped", "no-record", "empty"],
)
def test_damaged_records_are_restored_from_the_newest_checkpoint(
    damaged: RunFolder,
    unbroken: RunFolder,
    name: str,
    damage: Callable[[list[bytes]], list[bytes]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    live = damaged.path / name
    live.write_bytes(b"".join(damage(live.read_bytes().splitlines(keepends=True))))
    train(damaged.config, damaged.path)
    assert f"WARNING: {name}: changed before step 14: restored" in capsys.readouterr().out
    (event,) = (event for event in damaged.events.records() if event.event == "damaged")
    assert event.step == 14 and name in event.detail
    assert audit(damaged.path).complete
    assert steps_of(damaged.ledger) == steps_of(unbroken.ledger)
    assert [(r.kind, r.step) for r in damaged.metrics.records()] == [
        (r.kind, r.step) for r in unbroken.metrics.records()
    ]


def test_damage_after_the_newest_checkpoint_is_cut_off(
    damaged: RunFolder, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = damaged.ledger.path.read_bytes().splitlines(keepends=True)
    # Fourteen steps, the start and two checkpoints.
    damaged.ledger.path.write_bytes(b"".join([*lines[:17], b"\xff\xfe\n", *lines[18:]]))
    train(damaged.config, damaged.path)
    shown = capsys.readouterr().out
    assert "restored" not in shown and "passed over" not in shown
    assert audit(damaged.path).complete


def test_damage_before_the_first_checkpoint_is_ignored(damaged: RunFolder, unbroken: RunFolder) -> None:
    shutil.rmtree(damaged.checkpoints)
    damaged.checkpoints.mkdir()
    damaged.ledger.path.write_bytes(b"no record\n")
    train(damaged.config, damaged.path)
    assert steps_of(damaged.ledger) == steps_of(unbroken.ledger)


def test_latest_that_names_no_checkpoint_is_ignored(damaged: RunFolder) -> None:
    # One bit of step-14.
    (damaged.checkpoints / "latest").write_text("step-04\n")
    train(damaged.config, damaged.path)
    assert any(event.step == 14 for event in damaged.events.records() if event.event == "resumed")


@pytest.mark.parametrize(
    ("precision", "stage"),
    [
        *(("fp32", 3), ("bf16", 1)),
        *(
            pytest.param(precision, stage, marks=pytest.mark.slow)
            for precision, stage in (("fp32", 1), ("fp32", 2), ("bf16", 2), ("bf16", 3))
        ),
    ],
)
def test_resumed_run_equals_the_uninterrupted_one_bit_for_bit_at_any_stage(
    tiny: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str, stage: int
) -> None:
    config = tiny(
        *(f"train.precision={precision}", f"train.zero_stage={stage}", "train.micro_batch_windows=6"),
        *("data.unique_tokens=1500", "checkpoint.every_fraction=0.5", "model.dropout.residual=0.1"),
    )
    train(config, tmp_path / "unbroken")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_at(patch, 6, crash)
        train(config, tmp_path / "run")
    train(config, tmp_path / "run")
    unbroken, resumed = (RunFolder.open(tmp_path / name) for name in ("unbroken", "run"))
    assert [event.event for event in resumed.events.records()] == ["started", "failed", "resumed", "done"]
    last = f"step-{unbroken.ledger.end()}"
    assert (
        state_of(resumed.checkpoints / last).read_bytes()
        == state_of(unbroken.checkpoints / last).read_bytes()
    )


def test_checkpoints_at_every_fraction_are_kept(tiny: MakeConfig, tmp_path: Path) -> None:
    train(tiny("checkpoint.keep_every_fraction=0.2", "checkpoint.keep_last=1"), tmp_path / "run")
    kept = {int(path.name.removeprefix("step-")) for path in (tmp_path / "run/checkpoints").glob("step-*")}
    assert kept == {5, 11, 16, 22, 27}


def test_repeated_signals_during_a_save_leave_an_intact_checkpoint(
    tiny: MakeConfig, unbroken: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def storm(path: Path, held: Sequence[Piece], tick: Callable[[], None]) -> FileSum:
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGTERM, signal.SIGUSR1):
            os.kill(os.getpid(), number)
        return write_pieces(path, held, tick)

    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(saving, "write_pieces", storm)
        interrupt_at(patch, 10, lambda: os.kill(os.getpid(), signal.SIGUSR1))
        result = train(tiny(), out)
    assert (result.state, result.steps, result.reason) == ("preempted", 8, "SIGTERM")
    assert RunFolder.open(out).status().reason == "SIGTERM"
    assert train(tiny(), out).state == "done"
    newest = state_of(RunFolder.open(out).checkpoints / "step-27")
    assert newest.read_bytes() == state_of(unbroken.checkpoints / "step-27").read_bytes()


def test_second_ctrl_c_quits_immediately(
    tiny: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    interrupt_at(monkeypatch, 3, twice)
    # Tests that run in the background ignore SIGINT, and what is ignored stays so.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            train(tiny(), tmp_path / "run")
    finally:
        signal.signal(signal.SIGINT, before)


def test_max_minutes_stops_with_a_checkpoint(
    tiny: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        seconds = iter([0.0, 60.0, 119.9, 120.0])
        patch.setattr(preempt, "seconds_since_start", lambda: next(seconds))
        result = train(tiny(), out, max_minutes=2)
    assert (result.state, result.steps) == ("preempted", 3)
    assert RunFolder.open(out).status().reason == "the 2 minutes of --max-minutes are over"
    assert train(tiny(), out, max_minutes=0).steps == 3
    with pytest.raises(ResumeError, match="--no-resume"):
        refuse_to_resume(out)


def test_seconds_since_start_count_from_the_start_of_the_process() -> None:
    first = preempt.seconds_since_start()
    # Imports alone take longer, and no test run takes a day.
    assert 0.5 < first < 86_400
    assert preempt.seconds_since_start() >= first
