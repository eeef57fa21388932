"""Stores in S3, read through a limited cache, over a link that is cut or slow."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from s3_server import Link, s3_server

from reptrain.auditing.audit import audit
from reptrain.config import RunConfig
from reptrain.errors import ReptrainError, StoreError
from reptrain.runs.folder import RunFolder
from reptrain.store import Store, open_store, remote, verify

pytest.importorskip("moto", reason="moto is not installed: no S3 server")

URL = "s3://stores/docs"
OTHER = "s3://stores/other"
GB = 1e9


@pytest.fixture(scope="module")
def server(store_path: Path) -> Iterator[tuple[Any, Link]]:
    with s3_server("stores") as (files, link):
        yield files, link


@pytest.fixture
def link(server: tuple[Any, Link], store_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Link:
    """The link to the server, which holds two copies of the store; nothing is cached."""
    files, link = server
    link.cut_after = link.bytes_per_second = None
    link.cut_every = 1
    for name in ("docs", "other"):
        for path in store_path.iterdir():
            if path.is_file():
                files.pipe(f"stores/{name}/{path.name}", path.read_bytes())
    link.received = link.cuts = 0
    monkeypatch.setenv("REPTRAIN_STORE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(remote, "_PAUSE_S", 0.001)
    return link


def shard_bytes(store: Store) -> int:
    return sum(shard.bytes for info in store.manifest.splits.values() for shard in info.shards)


def cached_bytes(tmp_path: Path) -> int:
    return sum(path.stat().st_size for path in (tmp_path / "cache").glob("*/*.arrow"))


def same_tokens(one: Store, other: Store) -> bool:
    splits = [(one.split(name), other.split(name)) for name in one.manifest.splits]
    return all(np.array_equal(*(split.read(*_whole(split)) for split in pair)) for pair in splits)


def _whole(split: Any) -> tuple[Any, Any, Any]:
    lengths = split.lengths(0, split.num_documents)
    return np.arange(len(lengths)), np.zeros(len(lengths), np.int64), lengths


def test_remote_store_has_the_tokens_of_the_local_one(link: Link, store_path: Path, tmp_path: Path) -> None:
    local, found = open_store(store_path), open_store(URL)
    assert found.fingerprint == local.fingerprint and found.address == URL
    assert found.tokenizer().fingerprint == local.tokenizer().fingerprint
    # Shards are fetched when they are read.
    assert cached_bytes(tmp_path) == 0
    assert found.split("select").num_documents and found.split("select").lengths(0, 1).size == 1
    assert 0 < cached_bytes(tmp_path) < shard_bytes(local)
    assert same_tokens(found, local)
    found.check_unchanged()
    before = link.received
    assert same_tokens(open_store(URL), local)
    # Only the manifest was fetched again.
    assert link.received - before < 100_000 and link.received - before < shard_bytes(local)
    assert verify(URL).ok and verify(found.path).ok


def test_run_on_a_remote_store_is_exact(
    link: Link, store_path: Path, tiny: Callable[..., RunConfig], tmp_path: Path
) -> None:
    from reptrain.training.loop import train

    for name, store in (("local", store_path), ("remote", URL)):
        train(tiny(f"data.store={store}", "train.total_tokens=1200"), tmp_path / name)
    found, expected = (RunFolder.open(tmp_path / name) for name in ("remote", "local"))
    assert found.plan.sources[0].store == URL
    assert found.plan.sources[0].subset_fingerprint == expected.plan.sources[0].subset_fingerprint
    digests = [[record.digest for record in folder.ledger.records()] for folder in (found, expected)]
    assert digests[0] == digests[1] and digests[0]
    assert audit(tmp_path / "remote").exact
    written = [path for path in (tmp_path / "remote").rglob("*.*") if "json" in path.suffix]
    assert written and not any("s3cret" in path.read_text() for path in written)


def test_cut_connections_are_continued(
    link: Link, store_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "_BLOCK_BYTES", 1 << 15)
    found = open_store(URL)
    link.received, link.cut_after, link.cut_every = 0, 1 << 12, 4
    found.fetch()
    assert link.cuts > 3
    link.cut_after = None
    assert same_tokens(found, open_store(store_path))
    # What had arrived was not fetched again.
    assert link.received < 2 * shard_bytes(found)


def test_a_link_that_stays_cut_is_an_error_and_the_next_call_continues(
    link: Link, store_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote, "_BLOCK_BYTES", 1 << 15)
    monkeypatch.setattr(remote, "_ATTEMPTS", 1)
    found = open_store(URL)
    largest = max(found.manifest.splits["train"].shards, key=lambda shard: shard.bytes)
    read, blocks = remote.RemoteStore._read, 0

    def cut(self: Any, name: str, start: int | None = None, end: int | None = None) -> bytes:
        nonlocal blocks
        blocks += 1
        link.cut_after = 0 if blocks > 3 else None
        return read(self, name, start, end)

    monkeypatch.setattr(remote.RemoteStore, "_read", cut)
    with pytest.raises(StoreError, match=rf"{URL}/{largest.file}: must be readable.*keeps what was fetched"):
        found.split("train").lengths(0, found.split("train").num_documents)
    monkeypatch.setattr(remote.RemoteStore, "_read", read)
    link.cut_after = None
    (part,) = (tmp_path / "cache").glob("*/.*.part")
    had = part.stat().st_size
    assert had >= 3 << 15
    link.received = 0
    found.fetch()
    assert link.received < shard_bytes(found) - had + 200_000
    assert same_tokens(found, open_store(store_path))


def test_a_slow_link_is_waited_for(link: Link, store_path: Path) -> None:
    found = open_store(URL)
    link.bytes_per_second = 300_000
    found.fetch()
    assert same_tokens(found, open_store(store_path))


def test_cache_stays_within_its_limit(link: Link, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = open_store(URL)
    size = shard_bytes(first)
    limit = 1.5 * size
    monkeypatch.setenv("REPTRAIN_STORE_CACHE_GB", str(limit / GB))
    first.fetch()
    # Shards in use stay; the other store does not fit beside them.
    with pytest.raises(StoreError, match="REPTRAIN_STORE_CACHE_GB to more GB"):
        open_store(OTHER).fetch()
    first.check_unchanged()
    del first
    second = open_store(OTHER)
    second.fetch()
    assert size <= cached_bytes(tmp_path) <= limit
    second.check_unchanged()
    monkeypatch.setenv("REPTRAIN_STORE_CACHE_GB", "none")
    with pytest.raises(ReptrainError, match="must be a positive number of GB"):
        open_store(URL).fetch()


def test_damaged_and_replaced_remote_stores_are_noticed(
    link: Link, server: tuple[Any, Link], store_path: Path, tmp_path: Path
) -> None:
    files, _ = server
    found = open_store(URL)
    shard = found.manifest.splits["train"].shards[0]
    content = bytearray((store_path / shard.file).read_bytes())
    content[len(content) // 2] ^= 1
    files.pipe(f"stores/docs/{shard.file}", bytes(content))
    with pytest.raises(
        StoreError, match=rf"{URL}/{shard.file}: must be unchanged since the store was completed"
    ):
        found.fetch()
    files.pipe(f"stores/docs/{shard.file}", (store_path / shard.file).read_bytes())
    found.fetch()
    # Another store at the same address.
    changed = (store_path / "manifest.json").read_text() + "\n"
    files.pipe("stores/docs/manifest.json", changed.encode())
    assert cached_bytes(tmp_path) > 0
    del found
    open_store(URL)
    assert cached_bytes(tmp_path) == 0


def test_missing_remote_store_is_one_clear_error(link: Link) -> None:
    with pytest.raises(StoreError, match=r"store file s3://stores/none/manifest\.json: must be readable"):
        open_store("s3://stores/none")


def test_address_survives_a_path(tmp_path: Path) -> None:
    assert remote.address_of(Path("s3://bucket/a/b")) == "s3://bucket/a/b"
    assert remote.address_of("gs://bucket/a/") == "gs://bucket/a"
    for local in (tmp_path, Path("stores/a"), Path("/a:/b"), Path("x")):
        assert remote.address_of(local) is None and remote.local_folder(local) == local
