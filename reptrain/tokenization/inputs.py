"""Hashes of the source files, and whether a file changed while it was read."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from reptrain.errors import StoreError
from reptrain.reading import escape_name
from reptrain.stages import StageProgress
from reptrain.store.hashing import file_sha256
from reptrain.store.manifest import Input, StoreManifest
from reptrain.text.sources import SourceFile
from reptrain.tokenization.encode import changed
from reptrain.tokenization.work import Work, discard
from reptrain.tokenization.workers import Workers


def hash_inputs(files: Sequence[SourceFile], workers: Workers, progress: StageProgress) -> list[Input]:
    """The files as the manifest records them, with their SHA-256."""
    hashes: dict[SourceFile, str] = {}
    done, total = 0, sum(file.size for file in files)
    for file, digest in workers.run(_hash_file, files):
        hashes[file] = digest
        done += file.size
        progress("hash", done, total)
    return [
        Input(name=file.label, bytes=file.size, sha256=hashes[file], url=file.url, version=file.version)
        for file in files
    ]


def check_unchanged(
    files: Sequence[SourceFile],
    inputs: Sequence[Input],
    work: Work,
    workers: Workers,
    progress: StageProgress,
) -> None:
    """Hash all files again, so that the manifest's hashes are those of the text that was read.

    Raises:
        StoreError: If a file has changed since the first time; what was made of it is removed.
    """
    for file, before, after in zip(files, inputs, hash_inputs(files, workers, progress), strict=True):
        if before.sha256 != after.sha256:
            discard(work)
            raise changed(file.url or escape_name(str(file.path)), "other content than before")


def check_same_content(
    out: Path,
    manifest: StoreManifest,
    files: Sequence[SourceFile],
    workers: Workers,
    progress: StageProgress,
) -> None:
    """Refuse to reuse a sealed store whose sources have changed; of remote files the version is compared.

    Raises:
        StoreError: If a file has other content.
    """
    hashed = hash_inputs([file for file in files if file.url is None], workers, progress)
    local = [item.sha256 for item in manifest.inputs if item.url is None]
    remote = [(item.url, item.version) for item in manifest.inputs if item.url is not None]
    versions = [(file.url, file.version) for file in files if file.url is not None]
    if [item.sha256 for item in hashed] != local or versions != remote:
        raise StoreError(
            f"store {out}",
            got="sources with other content",
            rule="must have been made from these sources",
            remedy="Choose another folder, or delete this one.",
        )


def _hash_file(file: SourceFile) -> str:
    return file_sha256(file.path)
