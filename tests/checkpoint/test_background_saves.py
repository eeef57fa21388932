"""Checkpoints that are written while training continues."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import rank_matrix
from forked import Forked
from interrupts import crash, interrupt_at
from ledgers import steps_of
from rank_starts import LIMIT_S, start_ranks, write_config
from slow_disk import slow_disk

from reptrain.auditing.audit import audit
from reptrain.checkpoint import saving
from reptrain.checkpoint.state import Piece
from reptrain.checkpoint.state_files import FileSum, write_pieces
from reptrain.config import RunConfig
from reptrain.errors import ConfigError, RunError
from reptrain.runs import RunFolder
from reptrain.training import checkpoints
from reptrain.training.loop import train
from reptrain.training.recorder import print_line

MakeConfig = Callable[..., RunConfig]
Tick = Callable[[], None]
# 27 steps; checkpoints after 7, 14, 21 and 27.
ALL_KEPT = "checkpoint.keep_last=9"
BACKGROUND = "checkpoint.background=true"


def trained(folder: RunFolder) -> int:
    """Steps in the metrics."""
    return sum(1 for _ in folder.metrics.records("train"))


class SlowWrites:
    """State files that are written only when the run has trained some steps more.

    Args:
        out: The run folder.
        steps: Number of these steps.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, out: Path, steps: int) -> None:
        self.folder, self.steps = RunFolder(out), steps
        self.threads: list[str] = []
        self.overlapped: list[bool] = []
        monkeypatch.setattr(saving, "write_pieces", self.write)

    def write(self, path: Path, held: Sequence[Piece], tick: Tick) -> FileSum:
        """Wait, then write."""
        self.threads.append(threading.current_thread().name)
        before, is_background = (
            trained(self.folder),
            threading.current_thread() is not threading.main_thread(),
        )
        deadline = time.monotonic() + 60
        while is_background and trained(self.folder) < before + self.steps and time.monotonic() < deadline:
            time.sleep(0.005)
            tick()
        self.overlapped.append(trained(self.folder) >= before + self.steps)
        return write_pieces(path, held, tick)


def contents(folder: RunFolder) -> dict[str, bytes]:
    """The files of all checkpoints but those with times in them, by name."""
    files = (path for path in folder.checkpoints.rglob("*") if path.is_file())
    timed = ("metrics.jsonl", "manifest.json")
    found = {str(p.relative_to(folder.checkpoints)): p.read_bytes() for p in files if p.name not in timed}
    return found | {"ledger.jsonl": folder.ledger.path.read_bytes()}


@pytest.fixture(scope="module")
def unbroken(tiny: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run that waited for each of its checkpoints."""
    out = tmp_path_factory.mktemp("unbroken") / "run"
    train(tiny(ALL_KEPT), out)
    return RunFolder.open(out)


@pytest.mark.parametrize("average", [False, True], ids=["plain", "average"])
def test_checkpoints_and_ledger_have_the_bytes_of_a_run_that_waits(
    tiny: MakeConfig, unbroken: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, average: bool
) -> None:
    more = ["average={name: ema, decay: 0.9, start: 0steps}"] if average else []
    expected = unbroken
    if average:
        train(tiny(ALL_KEPT, *more), tmp_path / "expected")
        expected = RunFolder.open(tmp_path / "expected")
    # The configuration is part of the ledger, so the copy is chosen by size.
    monkeypatch.setattr(checkpoints, "_SMALL_BYTES", 0)
    out = tmp_path / "run"
    writes = SlowWrites(monkeypatch, out, 3)
    train(tiny(ALL_KEPT, *more), out)
    assert writes.threads == ["checkpoint"] * 3 + ["MainThread"]
    assert writes.overlapped[:3] == [True] * 3
    found = RunFolder.open(out)
    assert contents(found) == contents(expected)
    assert {path.name for path in found.checkpoints.iterdir()} == {
        path.name for path in expected.checkpoints.iterdir()
    }
    assert audit(out).exact


def test_second_save_waits_for_the_first_and_says_so_once(
    tiny: MakeConfig,
    unbroken: RunFolder,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    writing, most = 0, 0
    waits = threading.Event()

    def noticed(text: str) -> None:
        print_line(text)
        if "training waits" in text:
            waits.set()

    def slow(path: Path, held: Sequence[Piece], tick: Tick) -> FileSum:
        nonlocal writing, most
        writing += 1
        most = max(most, writing)
        # The first one lasts until training waits for it.
        assert waits.wait(60)
        written = write_pieces(path, held, tick)
        writing -= 1
        return written

    monkeypatch.setattr(saving, "write_pieces", slow)
    monkeypatch.setattr(checkpoints, "print_line", noticed)
    out = tmp_path / "run"
    train(tiny(ALL_KEPT, BACKGROUND, "checkpoint.every_fraction=0.07"), out)
    assert most == 1
    assert capsys.readouterr().out.count("training waits until the checkpoint before this one") == 1
    last = f"step-{unbroken.ledger.end()}/state-00000-of-00001.safetensors"
    assert contents(RunFolder.open(out))[last] == contents(unbroken)[last]
    assert audit(out).exact


def test_stop_signal_waits_for_the_save_and_adds_its_own(
    tiny: MakeConfig, unbroken: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        SlowWrites(patch, out, 1)
        interrupt_at(patch, 8, lambda: os.kill(os.getpid(), signal.SIGTERM))
        assert train(tiny(ALL_KEPT, BACKGROUND), out).steps == 9
    stopped = RunFolder.open(out)
    assert {path.name for path in stopped.checkpoints.glob("step-*")} == {"step-7", "step-9"}
    train(tiny(ALL_KEPT, BACKGROUND), out)
    assert steps_of(stopped.ledger) == steps_of(unbroken.ledger)
    assert audit(out).exact


def test_error_in_the_background_ends_the_run_with_the_same_error(
    tiny: MakeConfig,
    unbroken: RunFolder,
    small_disk: Callable[[int], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    disk = small_disk(16 << 10)
    out = disk / "run"

    def full(path: Path, held: Sequence[Piece], tick: Tick) -> FileSum:
        if "step-14" in str(path) and threading.current_thread() is not threading.main_thread():
            filler = (disk / "filler").open("ab", buffering=0)
            try:
                while filler.write(b"\0" * 4096):
                    pass
            except OSError:
                filler.close()
        return write_pieces(path, held, tick)

    with monkeypatch.context() as patch:
        patch.setattr(saving, "write_pieces", full)
        with pytest.raises(RunError, match=r"checkpoint in .*must fit on the disk.*Free space"):
            train(tiny(BACKGROUND, "checkpoint.keep_last=1"), out)
    folder = RunFolder.open(out)
    assert [path.name for path in sorted(folder.checkpoints.glob("*step-*"))] == ["step-7"]
    assert b'"event":"checkpoint","step":14' not in folder.ledger.path.read_bytes()
    (disk / "filler").unlink()
    train(tiny(BACKGROUND, "checkpoint.keep_last=1"), out)
    assert steps_of(folder.ledger) == steps_of(unbroken.ledger)
    assert audit(out).exact


def test_crash_during_a_save_leaves_the_checkpoint_before_it(
    tiny: MakeConfig, unbroken: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        SlowWrites(patch, out, 4)
        interrupt_at(patch, 16, crash)
        train(tiny(BACKGROUND), out)
    assert not [thread for thread in threading.enumerate() if thread.name == "checkpoint"]
    folder = RunFolder.open(out)
    assert {path.name for path in folder.checkpoints.iterdir()} == {"step-7", "latest"} | {"tmp-step-14"}
    assert folder.ledger.end() == 16
    train(tiny(BACKGROUND), out)
    assert not list(folder.checkpoints.glob("tmp-*"))
    assert steps_of(folder.ledger) == steps_of(unbroken.ledger)
    assert audit(out).exact


def test_divergence_completes_the_save_before_it(
    tiny: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    write_config(tmp_path, tiny(BACKGROUND))
    SlowWrites(monkeypatch, out, 1)
    rank_matrix.main(tmp_path, {"run": {"overrides": [], "nan": [0, 8, "loss"]}})
    folder = RunFolder.open(out)
    assert folder.status().state == "failed"
    assert (folder.checkpoints / "latest").read_text() == "step-7\n"


def test_too_little_memory_is_refused_and_auto_waits(
    tiny: MakeConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoints, "available_bytes", lambda: 1000)
    with pytest.raises(ConfigError, match=r"needs .* GB for copies.*Set checkpoint\.background=false"):
        train(tiny(BACKGROUND), tmp_path / "refused")
    monkeypatch.setattr(checkpoints, "_SMALL_BYTES", 0)
    writes = SlowWrites(monkeypatch, tmp_path / "auto", 1)
    train(tiny(), tmp_path / "auto")
    assert set(writes.threads) == {"MainThread"}


MOE = [
    "model.moe={num_experts: 4, top_k: 1, bias_rate: 0.01}",
    "train.expert_parallel_size=2",
    "train.zero_stage=1",
]
TOPOLOGIES = {
    "zero-3": ["train.zero_stage=3"],
    "zero-0": ["train.zero_stage=0"],
    "zero-1": ["train.zero_stage=1"],
    "zero-2": ["train.zero_stage=2"],
    "experts": MOE,
}


@pytest.mark.ranks
@pytest.mark.timeout(LIMIT_S)
@pytest.mark.parametrize(
    "names",
    [["zero-3"], pytest.param(["zero-0", "zero-1", "zero-2", "experts"], marks=pytest.mark.slow)],
    ids=["zero-3", "others"],
)
def test_two_ranks_write_the_same_state_in_the_background(
    tiny: MakeConfig, tmp_path: Path, names: list[str]
) -> None:
    short = ["data.unique_tokens=4096", "train.total_tokens=0.75epochs", ALL_KEPT]
    write_config(tmp_path, tiny(*short, "checkpoint.every_fraction=0.25"))
    cases = {
        f"{name}-{background}": {
            "overrides": [*TOPOLOGIES[name], f"checkpoint.background={background}"],
            "stop_after": None,
        }
        for name in names
        for background in ("true", "false")
    }
    said = start_ranks(2, tmp_path, cases)
    assert "written in the background" in said
    for name in names:
        found, expected = (RunFolder.open(tmp_path / f"{name}-{kind}") for kind in ("true", "false"))
        of_state = [
            {key: data for key, data in contents(run).items() if key.endswith(".safetensors")}
            for run in (found, expected)
        ]
        assert len(of_state[0]) == 8 and of_state[0] == of_state[1]
        assert steps_of(found.ledger) == steps_of(expected.ledger)
        assert audit(found.path).exact


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_kill_on_a_slow_disk_leaves_the_checkpoint_before(tiny: MakeConfig, tmp_path: Path) -> None:
    """27 MB of state are written in 7 s; the kill comes after the next step."""
    wide = ["model.d_model=256", "model.d_ff=1024", "checkpoint.keep_last=1", "evaluate.every_fraction=1.0"]
    write_config(tmp_path, tiny(*wide, BACKGROUND))
    train(tiny(*wide, BACKGROUND), tmp_path / "expected")
    expected = RunFolder.open(tmp_path / "expected")
    with slow_disk(tmp_path, size_bytes=200 << 20, bytes_per_s=4_000_000) as disk:
        out, log = disk / "run", tmp_path / "log"
        command = ["-m", "reptrain", "train", tmp_path / "config.yaml", "--out", out]
        with log.open("wb") as file:
            process = Forked(command, stdout=file, stderr=file)
        folder, deadline = RunFolder(out), time.monotonic() + 200
        while not list(folder.checkpoints.glob("tmp-step-14/*")) or trained(folder) < 15:
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.02)
        process.kill()
        process.wait()
        assert {path.name for path in folder.checkpoints.iterdir()} == {"step-7", "tmp-step-14", "latest"}
        assert b'"event":"checkpoint","step":14' not in folder.ledger.path.read_bytes()
        train(tiny(*wide, BACKGROUND), out)
        (event,) = (event for event in folder.events.records() if event.event == "resumed")
        assert event.step == 7
        assert steps_of(folder.ledger) == steps_of(expected.ledger)
        assert audit(out).exact
