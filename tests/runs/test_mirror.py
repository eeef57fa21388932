"""Run folders copied to S3 after each checkpoint."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from s3_server import Link, s3_server

from reptrain.auditing.audit import audit
from reptrain.config import RunConfig
from reptrain.errors import ReptrainError, RunError
from reptrain.runs import mirror
from reptrain.runs.folder import RunFolder
from reptrain.runs.mirror import Mirror

pytest.importorskip("moto", reason="moto is not installed: no S3 server")


@pytest.fixture(scope="module")
def server() -> Iterator[tuple[Any, Link]]:
    with s3_server("mirrors") as (files, link):
        yield files, link


def test_a_mirrored_run_resumes_elsewhere_and_is_exact(
    server: tuple[Any, Link], tiny: Callable[..., RunConfig], tmp_path: Path
) -> None:
    from reptrain.distributed.stop import StopRequest
    from reptrain.distributed.world import World
    from reptrain.training.loop import train

    class StopSoon(StopRequest):
        """Asks to stop after some steps."""

        asked = 0

        def reason(self, world: World) -> str | None:
            self.asked += 1
            return "enough" if self.asked > 5 else None

    files, link = server
    link.cut_after = None
    settings = ("train.total_tokens=5000", "checkpoint.every_fraction=0.1", "checkpoint.keep_last=1")
    config = tiny(*settings, "checkpoint.mirror=s3://mirrors/runs")
    assert train(config, tmp_path / "a", stop=StopSoon()).state == "preempted"
    (newest,) = [name for name in files.ls("mirrors/runs/a/checkpoints", detail=False) if "step-" in name]
    assert files.cat("mirrors/runs/a/checkpoints/latest").decode().strip() == newest.rpartition("/")[2]
    files.get("mirrors/runs/a", str(tmp_path / "elsewhere" / "a"), recursive=True)
    assert not list((tmp_path / "elsewhere" / "a").rglob("*s3cret*"))
    found = RunFolder.open(tmp_path / "elsewhere" / "a")
    assert found.status().state == "preempted"
    assert train(config, tmp_path / "elsewhere" / "a").state == "done"
    assert audit(tmp_path / "elsewhere" / "a").exact
    assert b'"done"' in files.cat("mirrors/runs/a/status.json")


def folder_of(path: Path, step: int) -> None:
    """A run folder with one checkpoint."""
    place = path / "checkpoints" / f"step-{step}"
    place.mkdir(parents=True)
    for name in ("manifest.json", "state-0.safetensors", "ledger.jsonl"):
        (place / name).write_text(f"{name} of {step}")
    (path / "checkpoints" / "latest").write_text(f"step-{step}\n")
    (path / "ledger.jsonl").write_text("newer than the checkpoint")


def test_a_cut_copy_leaves_the_checkpoint_before(
    server: tuple[Any, Link], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files, link = server
    monkeypatch.setattr(mirror, "_PAUSE_S", 0.001)
    told: list[str] = []
    run = tmp_path / "b"
    folder_of(run, 1)
    with Mirror(run, "s3://mirrors/runs", told.append) as copies:
        copies.commit(1)
    root = "mirrors/runs/b"
    assert not told and files.cat(f"{root}/checkpoints/latest") == b"step-1\n"
    folder_of(tmp_path / "new", 2)
    for path in (tmp_path / "new" / "checkpoints").iterdir():
        target = run / "checkpoints" / path.name
        path.rename(target) if path.is_dir() else target.write_bytes(path.read_bytes())
    link.cut_after, link.cut_every = 0, 1
    with Mirror(run, "s3://mirrors/runs", told.append) as copies:
        copies.commit(2)
    link.cut_after = None
    assert told and all(text.startswith("mirror s3://mirrors/runs/b: must be writable") for text in told)
    files.invalidate_cache()
    assert files.cat(f"{root}/checkpoints/latest") == b"step-1\n"
    assert files.cat(f"{root}/checkpoints/step-1/manifest.json") == b"manifest.json of 1"
    told.clear()
    with Mirror(run, "s3://mirrors/runs", told.append) as copies:
        copies.commit(2)
    assert not told and files.cat(f"{root}/checkpoints/latest") == b"step-2\n"
    assert files.cat(f"{root}/checkpoints/step-2/state-0.safetensors") == b"state-0.safetensors of 2"


def test_old_checkpoints_are_removed_after_the_new_one_is_there(tmp_path: Path) -> None:
    run, order = tmp_path / "c", list[str]()
    folder_of(run, 1)
    with Mirror(run, f"file://{tmp_path}/copies", order.append) as copies:
        copies.commit(1)
    copied = tmp_path / "copies" / "c" / "checkpoints"
    assert (copied / "latest").read_text() == "step-1\n"
    (run / "checkpoints" / "step-1").rename(run / "checkpoints" / "step-3")
    with Mirror(run, f"file://{tmp_path}/copies", order.append) as copies:
        copies.commit(3)
    assert {path.name for path in copied.iterdir()} == {"latest", "step-3"}
    assert not order


def test_copies_of_other_runs_and_newer_copies_are_kept(
    tiny: Callable[..., RunConfig], tmp_path: Path
) -> None:
    from reptrain.training.loop import train

    settings = ("train.total_tokens=1200", f"checkpoint.mirror=file://{tmp_path}/copies")
    train(tiny(*settings), tmp_path / "run")
    copy = tmp_path / "copies" / "run"
    before = {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()}
    # The disk of the run is lost, and the same command is repeated.
    (tmp_path / "run").rename(tmp_path / "lost")
    with pytest.raises(RunError, match=r"Copy it to .*run to resume that run"):
        train(tiny(*settings), tmp_path / "run")
    assert not (tmp_path / "run").exists()
    # Another run of the same name.
    told: list[str] = []
    folder_of(tmp_path / "run", 99)
    (tmp_path / "run" / "plan.json").write_text("{}")
    with Mirror(tmp_path / "run", f"file://{tmp_path}/copies", told.append) as copies:
        copies.commit(99)
    assert told and "a copy of another run" in told[0]
    assert {path: path.read_bytes() for path in copy.rglob("*") if path.is_file()} == before


def test_checkpoint_that_was_overtaken_is_copied_too(tmp_path: Path) -> None:
    run, told = tmp_path / "d", list[str]()
    for step in (1, 2):
        folder_of(tmp_path / str(step), step)
        place = run / "checkpoints" / f"step-{step}"
        place.parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / str(step) / "checkpoints" / f"step-{step}").rename(place)
    with Mirror(run, f"file://{tmp_path}/copies", told.append) as copies:
        copies.commit(2)
    copied = tmp_path / "copies" / "d" / "checkpoints"
    assert (copied / "step-1" / "manifest.json").read_text() == "manifest.json of 1"
    assert (copied / "latest").read_text() == "step-2\n" and not told


def test_unknown_protocol_is_refused_before_the_run(tiny: Callable[..., RunConfig], tmp_path: Path) -> None:
    from reptrain.training.loop import train

    with pytest.raises(ReptrainError, match=r"checkpoint\.mirror nosuch://bucket/runs/run"):
        train(tiny("checkpoint.mirror=nosuch://bucket/runs"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
