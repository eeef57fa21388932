"""A disk that is full at any write: a clear error, and the same command goes on when there is room."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from fault_hooks import SAVE, SEAL, FillAtCall, FillAtLine, fill, make_small_jobs
from fault_runs import Tokenized, Trial, draws
from fault_starts import Hook
from fault_table import STOPPED, FaultTable

pytestmark = [pytest.mark.faults, pytest.mark.timeout(1800)]
MakeTrial = Callable[..., Trial]
MakeTokenized = Callable[..., Tokenized]
SmallDisk = Callable[[int], Path]

DISK_KIB = 4 << 10
OF_A_RUN, OF_A_STORE = "full disk at a write of a run", "full disk at a write of `tokenize`"
FILES = ("status.json", "events.jsonl", "ledger.jsonl", "metrics.jsonl", "checkpoint", "run folder")


def _fill_up_to(filler: Path, free_kib: int) -> None:
    fill(filler)
    with filler.open("r+b") as file:
        file.truncate(filler.stat().st_size - 1024 * free_kib)


def _place(error: str) -> str:
    """The write that failed, as the error names it."""
    # TensorBoard's errors name no file.
    return next((name for name in FILES if name in error), "tensorboard")


def _strike(struck: Trial, filler: Path, hook: Hook | None, table: FaultTable) -> str:
    """Run into the full disk, make room, and go on; returns where it struck."""
    ended = struck.carry_out(hook=hook)
    assert ended.refused and "Free space" in ended.error.replace("free space", "Free space"), ended.said
    where = _place(ended.error)
    filler.unlink()
    struck.finish()
    struck.remove()
    table.add(OF_A_RUN, where, STOPPED)
    return where


@pytest.mark.parametrize(
    "free_kib",
    [[16], pytest.param([*range(0, 44, 4), 64, 96, 128], marks=pytest.mark.slow)],
    ids=["one", "all"],
)
def test_run_on_a_disk_with_little_room(
    trial: MakeTrial, small_disk: SmallDisk, table: FaultTable, tmp_path: Path, free_kib: Sequence[int]
) -> None:
    """The more room, the later the write that fails: the folder's files, then the records, then a save."""
    disk = small_disk(DISK_KIB)
    found = []
    for size in free_kib:
        _fill_up_to(disk / "filler", size)
        found.append(_strike(trial(disk, log=tmp_path / "log"), disk / "filler", None, table))
    print(list(zip(free_kib, found, strict=True)))
    if len(free_kib) > 1:
        wanted = {*FILES, "tensorboard"} - {"ledger.jsonl"}
        assert wanted <= {*found}, wanted - {*found}


@pytest.mark.parametrize("log", ["ledger.jsonl", pytest.param("metrics.jsonl", marks=pytest.mark.slow)])
def test_disk_full_in_the_middle_of_a_line(
    trial: MakeTrial, small_disk: SmallDisk, table: FaultTable, tmp_path: Path, log: str
) -> None:
    disk = small_disk(DISK_KIB)
    hook = FillAtLine(disk / "filler", log)
    assert _strike(trial(disk, log=tmp_path / "log"), disk / "filler", hook, table) == log


@pytest.mark.slow
def test_disk_full_at_random_steps_and_in_saves(
    trial: MakeTrial, small_disk: SmallDisk, table: FaultTable, tmp_path: Path
) -> None:
    disk = small_disk(DISK_KIB)
    steps = [
        FillAtCall(disk / "filler", ("reptrain.training.loop", "train_step"), int(47 * part))
        for part in draws(11, 8)
    ]
    saves = [FillAtCall(disk / "filler", SAVE, call) for call in (0, 1, 5, 15)]
    parts = [
        FillAtCall(disk / "filler", ("reptrain.checkpoint.saving", name), 3)
        for name in ("copy_file", "make_latest", "_remove_old")
    ]
    # The third status is the last: done.
    ends = FillAtCall(disk / "filler", ("reptrain.runs.folder", "_status"), 2)
    for hook in (*steps, *saves, *parts, ends):
        print(_strike(trial(disk, log=tmp_path / "log"), disk / "filler", hook, table))


def _strike_store(struck: Tokenized, filler: Path, hook: Hook, table: FaultTable) -> None:
    ended = struck.carry_out(hook=hook)
    assert ended.refused and "Free some space" in ended.error, ended.said
    assert not (struck.out / "manifest.json").exists()
    where = "in the shards" if list(struck.out.glob("*.arrow")) else "before the first shard"
    filler.unlink()
    struck.finish()
    struck.remove()
    table.add(OF_A_STORE, "in the seal" if isinstance(hook, FillAtCall) else where, STOPPED)


@pytest.mark.parametrize(
    "free_kib",
    [[40], pytest.param(range(0, 200, 16), marks=pytest.mark.slow)],
    ids=["one", "all"],
)
def test_tokenize_on_a_disk_with_little_room(
    tokenized: MakeTokenized,
    small_disk: SmallDisk,
    table: FaultTable,
    tmp_path: Path,
    free_kib: Sequence[int],
) -> None:
    disk = small_disk(DISK_KIB)
    for size in free_kib:
        _fill_up_to(disk / "filler", size)
        _strike_store(tokenized(disk, log=tmp_path / "log"), disk / "filler", make_small_jobs, table)


def test_tokenize_on_a_disk_that_is_full_at_the_seal(
    tokenized: MakeTokenized, small_disk: SmallDisk, table: FaultTable, tmp_path: Path
) -> None:
    disk = small_disk(DISK_KIB)
    hook = FillAtCall(disk / "filler", SEAL)
    _strike_store(tokenized(disk, log=tmp_path / "log"), disk / "filler", hook, table)
