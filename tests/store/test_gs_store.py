"""A store and the copy of a run folder in Google Cloud Storage: an emulator of its API on loopback."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from reptrain.auditing.audit import audit
from reptrain.config import RunConfig
from reptrain.errors import StoreError
from reptrain.store import open_store
from reptrain.training.loop import train

gcsfs = pytest.importorskip("gcsfs", reason="gcsfs is not installed")
emulator = pytest.importorskip("gcp_storage_emulator.server", reason="gcp-storage-emulator is not installed")


@pytest.fixture
def files(store_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The file system of a server with a copy of the store."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = emulator.create_server("127.0.0.1", port, in_memory=True, default_bucket="bucket")
    server.start()
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", f"http://127.0.0.1:{port}")
    monkeypatch.setenv("REPTRAIN_STORE_CACHE", str(tmp_path / "cache"))
    gcsfs.GCSFileSystem.clear_instance_cache()
    try:
        found = gcsfs.GCSFileSystem(skip_instance_cache=True)
        for path in store_path.iterdir():
            if path.is_file():
                found.pipe(f"bucket/docs/{path.name}", path.read_bytes())
        yield found
    finally:
        gcsfs.GCSFileSystem.clear_instance_cache()
        server.stop()


def test_run_reads_its_store_from_gs_and_is_copied_there(
    files: Any, store_path: Path, tiny: Callable[..., RunConfig], tmp_path: Path
) -> None:
    assert open_store("gs://bucket/docs").fingerprint == open_store(store_path).fingerprint
    settings = ["train.total_tokens=1200", "checkpoint.mirror=gs://bucket/runs"]
    train(tiny("data.store=gs://bucket/docs", *settings), tmp_path / "run")
    assert audit(tmp_path / "run").exact
    files.get("bucket/runs/run", str(tmp_path / "copy"), recursive=True)
    checkpoints = tmp_path / "run" / "checkpoints"
    copied = [path for path in checkpoints.rglob("*") if path.is_file()]
    copied += [tmp_path / "run" / name for name in ("config.yaml", "plan.json", "ledger.jsonl")]
    for path in copied:
        copy = tmp_path / "copy" / path.relative_to(tmp_path / "run")
        assert copy.read_bytes() == path.read_bytes()
    # With the mirrored folder the run is done.
    assert train(tiny("data.store=gs://bucket/docs", *settings), tmp_path / "copy").state == "already done"


def test_missing_store_in_gs_is_one_error(files: Any) -> None:
    with pytest.raises(StoreError, match="gs://bucket/none"):
        open_store("gs://bucket/none")
