"""Checks before, during and after the writing of a store."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from filelock import FileLock, Timeout

from reptrain.errors import StoreError
from reptrain.files import is_full
from reptrain.store.manifest import MANIFEST, SPLITS, StoreManifest
from reptrain.text.sources import SourceFile
from reptrain.tokenization.work import LOCK, WORK
from reptrain.tokenize_options import StoreOptions


@contextmanager
def locked(out: Path) -> Iterator[None]:
    """Lock the store's folder for one writer; the lock ends with the process.

    Raises:
        StoreError: If another process writes there, or the folder holds something else.
    """
    if out.exists() and not (out / WORK).exists() and any(out.iterdir()):
        raise StoreError(
            f"store {out}",
            got="a folder with other files",
            rule="must be a new or empty folder, or one of an interrupted call",
            remedy="Choose another --out.",
        )
    (out / WORK).mkdir(parents=True, exist_ok=True)
    lock = FileLock(out / WORK / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout as error:
        raise StoreError(
            f"store {out}",
            got="another process that writes there",
            rule="must have one writer at a time",
            remedy="Wait for it to end.",
        ) from error
    try:
        yield
    finally:
        lock.release()


@contextmanager
def as_store_errors(out: Path) -> Iterator[None]:
    """Turn disk failures into errors that a user can fix.

    Raises:
        StoreError: For any OSError, such as a full disk.
    """
    try:
        yield
    except OSError as error:
        full = is_full(error)
        raise StoreError(
            f"store {out}",
            got=error.strerror or error,
            rule="must have free space on its disk" if full else "must be writable, and its sources readable",
            remedy="Free some space; the same command resumes."
            if full
            else f"Check {error.filename or out}.",
        ) from error


def check_splits(documents: Iterable[int], held_out_fraction: float) -> None:
    """Refuse a store with an empty split.

    Args:
        documents: Documents of each split, in the order of SPLITS.
        held_out_fraction: The requested fraction.

    Raises:
        StoreError: If a split has no document.
    """
    counts = dict(zip(SPLITS, map(int, documents), strict=True))
    total = sum(counts.values())
    if total == 0:
        raise StoreError(
            "sources",
            got="none",
            rule="must hold documents that are not empty",
            remedy="Check the files and --text-field.",
        )
    for split, count in counts.items():
        if count == 0:
            change = "Lower" if split == "train" else "Raise"
            raise StoreError(
                f"split {split}",
                got=f"none of {total} with held_out_fraction {held_out_fraction}",
                rule="must get at least one document",
                remedy=f"{change} held_out_fraction, or give more documents.",
            )


def check_same(
    out: Path, manifest: StoreManifest, options: StoreOptions, files: Sequence[SourceFile]
) -> None:
    """Refuse to reuse a sealed store that was made with other options or sources.

    Raises:
        StoreError: Naming the first difference.
    """
    # A server may report no size.
    sizes = [file.size or item.bytes for file, item in zip(files, manifest.inputs, strict=False)]
    sizes += [file.size for file in files[len(sizes) :]]
    # A sealed store keeps its version of the split.
    asked = {
        # First, as other options depend on it.
        "tokenizer": options.tokenizer,
        **asdict(options),
        "split_version": manifest.options.split_version,
        "sources": [(file.label, size) for file, size in zip(files, sizes, strict=True)],
    }
    sealed = {
        **asdict(manifest.options),
        "sources": [(item.name, item.bytes) for item in manifest.inputs],
    }
    for key, value in asked.items():
        if value != sealed[key]:
            raise StoreError(
                f"store {out}",
                got=f"{key}={_shorten(value)} where {MANIFEST} has {_shorten(sealed[key])}",
                rule="must have been made with the same options",
                remedy="Choose another --out, or delete the folder.",
            )


def _shorten(value: object) -> str:
    text = str(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
