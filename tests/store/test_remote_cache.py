"""The cache of remote stores: interrupted, shared with another user, and used while the store is replaced."""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from reptrain.errors import StoreError
from reptrain.store import open_store, remote
from reptrain.store.remote import RemoteStore


@pytest.fixture
def url(store_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A copy of the store at an address, with an empty cache."""
    monkeypatch.setenv("REPTRAIN_STORE_CACHE", str(tmp_path / "cache"))
    shutil.copytree(store_path, tmp_path / "server")
    return f"file://{tmp_path}/server"


def test_interrupted_fetch_of_the_tokenizer_is_repeated(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read = RemoteStore._read

    def interrupted(self: RemoteStore, name: str, *block: int) -> bytes:
        if name != "manifest.json":
            raise KeyboardInterrupt
        return read(self, name, *block)

    with monkeypatch.context() as patched:
        patched.setattr(RemoteStore, "_read", interrupted)
        with pytest.raises(KeyboardInterrupt):
            open_store(url)
    assert open_store(url).tokenizer().vocab_size


def test_cached_shard_of_another_user_is_read(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    open_store(url).fetch()

    def refused(*arguments: Any, **options: Any) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "utime", refused)
    found = open_store(url)
    reader = threading.Thread(target=found.fetch, daemon=True)
    reader.start()
    reader.join(30)
    assert not reader.is_alive()
    assert found.split("train").lengths(0, 1).size == 1


def test_store_that_another_process_finds_replaced_is_refused(url: str, tmp_path: Path) -> None:
    found = open_store(url)
    manifest = tmp_path / "server" / "manifest.json"
    manifest.write_text(manifest.read_text() + "\n")
    # Another process opens the address and fetches shards of the same names.
    open_store(url).fetch()
    with pytest.raises(StoreError, match="another store at this address"):
        found.fetch()


def test_rest_of_a_shard_needs_room_only_for_the_rest(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = open_store(url)
    shards = [shard for info in found.manifest.splits.values() for shard in info.shards]
    shard = max(shards, key=lambda one: one.bytes)
    begun = shard.bytes - 10
    content = (found.path / f".{shard.file}.part", Path(url.partition("://")[2]) / shard.file)
    content[0].write_bytes(content[1].read_bytes()[:begun])
    monkeypatch.setenv(remote.LIMIT_VARIABLE, f"{(shard.bytes + 5) / 1e9:.12f}")
    remote_store = remote.open_remote(url)
    assert remote_store is not None
    with remote_store.open(shard) as file:
        assert len(file.read()) == shard.bytes
