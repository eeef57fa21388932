"""A `tokenize` that is killed, or runs out of disk, at any point resumes and gives the same bytes."""

from __future__ import annotations

import errno
import gzip
import itertools
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock
from forked import login_server, run_forked

from reptrain.errors import StoreError
from reptrain.store import open_store, verify
from reptrain.tokenization import tokenize

FilesOf = Callable[[Path], dict[str, bytes]]

KILLED = """
import os, signal, sys
from pathlib import Path
import reptrain.tokenization.jobs
from reptrain.tokenization import tokenize
from reptrain.store.shards import ShardWriter

reptrain.tokenization.jobs._SMALLEST_JOB_BYTES = 5_000
source, out, processes, stage, count = Path(sys.argv[1]), Path(sys.argv[2]), *sys.argv[3:]
calls = 0

def die_at(name):
    global calls
    calls += name == stage
    if calls == int(count):
        os.kill(os.getpid(), signal.SIGKILL)

def flush(self, original=ShardWriter._flush):
    original(self)
    die_at("flush")

ShardWriter._flush = flush
if __name__ == "__main__":
    tokenize([source], out, vocab_size=80, num_sentinels=4, processes=int(processes),
             progress=lambda name, *_: die_at(name))
"""


@pytest.fixture(scope="module")
def whole(corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of an unbroken call."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("reptrain.tokenization.jobs._SMALLEST_JOB_BYTES", 5_000)
        out = tmp_path_factory.mktemp("whole") / "store"
        tokenize([corpus], out, vocab_size=80, num_sentinels=4)
    return out


@pytest.mark.parametrize(
    ("processes", "stage", "count"),
    [(1, "scan", 3), (1, "train tokenizer", 2), (1, "flush", 5), (2, "tokenize", 3)],
)
def test_tokenize_resumes_after_a_kill_and_gives_the_same_bytes(
    corpus: Path, whole: Path, tmp_path: Path, files_of: FilesOf, processes: int, stage: str, count: int
) -> None:
    out, script = tmp_path / "store", tmp_path / "killed.py"
    script.write_text(KILLED)
    arguments = [script, corpus, out, processes, stage, count]
    assert run_forked(arguments, server=login_server()).returncode == -signal.SIGKILL
    with pytest.raises(StoreError, match="must be a folder with a manifest"):
        open_store(out)
    done = {path.name for path in out.glob("*.arrow")}
    assert bool(done) == (stage in ("flush", "tokenize"))
    if stage == "flush":
        assert list(out.glob(".*.arrow.*"))
    stages: list[tuple[str, int]] = []
    tokenize(
        [corpus],
        out,
        vocab_size=80,
        num_sentinels=4,
        progress=lambda name, bytes_done, _: stages.append((name, bytes_done)),
    )
    assert (("tokenize", 0) in stages) == (stage in ("scan", "train tokenizer"))
    assert (("scan", 0) in stages) is False
    assert files_of(out) == files_of(whole)


def test_tokenize_starts_over_after_an_interrupted_call_with_another_plan(
    corpus: Path, whole: Path, tmp_path: Path, files_of: FilesOf
) -> None:
    def stop(stage: str, done: int, total: int) -> None:
        if stage == "tokenize" and done > total // 2:
            raise KeyboardInterrupt

    out = tmp_path / "store"
    with pytest.raises(KeyboardInterrupt):
        tokenize([corpus], out, vocab_size=70, held_out_fraction=0.4, num_sentinels=4, progress=stop)
    assert list(out.glob("*.arrow"))
    tokenize([corpus], out, vocab_size=80, num_sentinels=4)
    assert files_of(out) == files_of(whole)


def test_tokenize_survives_a_full_disk_at_every_write(
    corpus: Path, model: Path, tmp_path: Path, files_of: FilesOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = tmp_path / "web.jsonl"
    few.write_text("\n".join(corpus.read_text().splitlines()[:60]))
    options: dict[str, Any] = {"tokenizer": model, "held_out_fraction": 0.2}
    tokenize([few], tmp_path / "whole", **options)
    expected = files_of(tmp_path / "whole")
    replace = os.replace
    for failing in itertools.count():
        writes = itertools.count()

        def write(writes: Iterator[int] = writes, failing: int = failing) -> None:
            if next(writes) == failing:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        def rename(old: Any, new: Any, write: Callable[[], None] = write) -> None:
            write()
            replace(old, new)

        out = tmp_path / f"full-{failing}"
        monkeypatch.setattr("os.fsync", lambda handle, write=write: write())
        monkeypatch.setattr("os.replace", rename)
        try:
            tokenize([few], out, **options)
        except StoreError as error:
            assert "must have free space on its disk, but got No space left on device" in str(error)
        else:
            break
        assert not [*out.glob(".*.arrow.*"), *out.glob(".work/.*")]
        sealed = (out / "manifest.json").exists()
        monkeypatch.setattr("os.fsync", lambda handle: None)
        monkeypatch.setattr("os.replace", replace)
        tokenize([few], out, **options)
        assert files_of(out) == expected
        # Only the very last flush, of the folder's entry, comes after the seal.
        assert not sealed or failing > 15
        shutil.rmtree(out)
    assert failing > 15


def test_tokenize_repeats_the_jobs_whose_files_a_power_loss_has_damaged(
    corpus: Path, model: Path, tmp_path: Path, files_of: FilesOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(stage: str, done: int, total: int) -> None:
        if stage == "tokenize" and done == total:
            raise KeyboardInterrupt

    monkeypatch.setattr("reptrain.tokenization.jobs._SMALLEST_JOB_BYTES", 10_000)
    options: dict[str, Any] = {"tokenizer": model, "dedup": "minhash"}
    tokenize([corpus], tmp_path / "whole", **options)
    kinds = ("train-*.arrow", ".work/digests-*", ".work/encoded-*", ".work/scan-*", ".work/plan.json")
    kinds += (".work/hashes-*", ".work/signatures-*", ".work/bands-*", ".work/inputs.json", "tokenizer.model")
    for number, kind in enumerate(kinds):
        out = tmp_path / f"{number}"
        with pytest.raises(KeyboardInterrupt):
            tokenize([corpus], out, progress=stop, **options)
        damaged = sorted(out.glob(kind))[-1]
        damaged.write_bytes(bytes(damaged.stat().st_size // 2))
        tokenize([corpus], out, **options)
        assert files_of(out) == files_of(tmp_path / "whole"), kind


@pytest.mark.parametrize("size_kib", [24, 48, 96])
def test_tokenize_on_a_full_disk_seals_nothing(
    corpus: Path,
    model: Path,
    tmp_path: Path,
    files_of: FilesOf,
    small_disk: Callable[[int], Path],
    size_kib: int,
) -> None:
    tokenize([corpus], tmp_path / "whole", tokenizer=model)
    out = small_disk(size_kib) / "s"
    with pytest.raises(StoreError, match="must have free space on its disk"):
        tokenize([corpus], out, tokenizer=model)
    assert not (out / "manifest.json").exists()
    small_disk(4096)
    tokenize([corpus], out, tokenizer=model)
    assert files_of(out) == files_of(tmp_path / "whole")
    assert verify(out).ok


def edit(path: Path, old: bytes, new: bytes) -> None:
    """Change a file's content and nothing else that can be seen of it."""
    before = path.stat()
    content = path.read_bytes()
    assert old in content and len(old) == len(new)
    path.write_bytes(content.replace(old, new))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_mtime_ns == before.st_mtime_ns and path.stat().st_size == before.st_size


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz"])
@pytest.mark.parametrize("stage", ["scan", "tokenize", "sealing"])
def test_tokenize_refuses_a_source_that_is_edited_meanwhile(
    corpus: Path, model: Path, tmp_path: Path, stage: str, suffix: str, files_of: FilesOf
) -> None:
    def pack(content: bytes) -> bytes:
        # Stored, so that an edit keeps the size.
        return gzip.compress(content, 0, mtime=0) if suffix.endswith("gz") else content

    original = corpus.read_bytes()
    edited = original.replace(b"epoch", b"hcope")
    path = tmp_path / f"web{suffix}"
    path.write_bytes(pack(original))
    is_done = False

    def meddle(name: str, done: int, total: int) -> None:
        nonlocal is_done
        moment = {"scan": ("scan", 0), "tokenize": ("tokenize", 0), "sealing": ("tokenize", total)}[stage]
        if (name, done) == moment and not is_done:
            is_done = True
            edit(path, path.read_bytes(), pack(edited))

    out = tmp_path / "store"
    with pytest.raises(StoreError, match=r"web.*: must not change while it is tokenized"):
        tokenize([path], out, tokenizer=model, progress=meddle)
    assert is_done and not (out / "manifest.json").exists()
    # What was made of the two versions is not used again.
    tokenize([path], out, tokenizer=model)
    (tmp_path / "fresh").mkdir()
    (tmp_path / "fresh" / path.name).write_bytes(path.read_bytes())
    tokenize([tmp_path / "fresh" / path.name], tmp_path / "whole", tokenizer=model)
    assert files_of(out) == files_of(tmp_path / "whole")


def test_tokenize_starts_over_if_a_source_was_edited_after_a_kill(
    corpus: Path, model: Path, tmp_path: Path, files_of: FilesOf
) -> None:
    def stop(stage: str, done: int, total: int) -> None:
        if stage == "tokenize" and done > total // 2:
            raise KeyboardInterrupt

    path = tmp_path / "web.jsonl"
    path.write_bytes(corpus.read_bytes())
    with pytest.raises(KeyboardInterrupt):
        tokenize([path], tmp_path / "store", tokenizer=model, progress=stop)
    assert list((tmp_path / "store").glob("*.arrow"))
    edit(path, b"epoch", b"hcope")
    tokenize([path], tmp_path / "store", tokenizer=model)
    tokenize([path], tmp_path / "whole", tokenizer=model)
    assert files_of(tmp_path / "store") == files_of(tmp_path / "whole")


def test_tokenize_refuses_a_source_that_was_another_while_it_was_encoded(
    corpus: Path, model: Path, tmp_path: Path
) -> None:
    path = tmp_path / "web.jsonl"
    path.write_bytes(corpus.read_bytes())

    def meddle(name: str, done: int, total: int) -> None:
        if name == "tokenize":
            edit(path, *((b"epoch", b"hcope") if done == 0 else (b"hcope", b"epoch")))

    with pytest.raises(StoreError, match=r"web\.jsonl: .*but got other documents than before"):
        tokenize([path], tmp_path / "store", tokenizer=model, progress=meddle)


def test_tokenize_refuses_a_second_writer(corpus: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "store"
    (out / ".work").mkdir(parents=True)
    with FileLock(out / ".work" / "lock"), pytest.raises(StoreError, match="must have one writer"):
        tokenize([corpus], out, tokenizer=model)
    assert tokenize([corpus], out, tokenizer=model).counts.kept > 0
