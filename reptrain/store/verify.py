"""Verify a store: hash and count its contents, and compare them with the manifest."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import IO, TYPE_CHECKING

from reptrain.errors import ReptrainError, StoreError
from reptrain.stages import StageProgress
from reptrain.store.manifest import (
    Shard,
    SplitInfo,
    SplitName,
    StoreManifest,
    content_fingerprint,
    read_manifest,
)

if TYPE_CHECKING:
    from reptrain.store.overlap import Overlap

# Measured overlaps: Python's docs 11 to 16 %, technical pages 7 to 8 %, articles and books below 1 %.
MAX_OVERLAP = 0.25


@dataclass(frozen=True)
class VerifyReport:
    """The result of `verify`."""

    shards: int
    documents: int
    tokens: int
    problems: list[str]
    """Where the contents differ from the manifest."""
    overlap: list[Overlap] = field(default_factory=list)
    """Overlap of `select` and of `report` with `train`, if requested and the contents are unchanged."""

    overlap_problems: list[str] = field(default_factory=list)
    """Overlaps above the limit: the contents match the manifest, but the held-out text is not new."""

    @property
    def ok(self) -> bool:
        """Whether the contents are unchanged, and no overlap exceeds the limit."""
        return not self.problems and not self.overlap_problems

    def text(self, path: Path) -> str:
        """The report as lines of text."""
        if self.problems:
            return "\n".join([f"{path}: damaged", *self.problems])
        lines = [*(overlap.text() for overlap in self.overlap), *self.overlap_problems]
        return "\n".join([*lines, f"{path}: matches its manifest"])


def verify(
    path: str | Path,
    progress: StageProgress | None = None,
    *,
    overlap: bool = False,
    max_overlap: float = MAX_OVERLAP,
    orders: bool = False,
) -> VerifyReport:
    """Read a whole store and compare it with its manifest.

    Checks each shard's hash, counts, ids below the vocabulary size and EOS at each document's end; the
    totals; the tokenizer; and the fingerprint, computed again from the tokens.

    Args:
        path: The store's folder, or the address of a remote store, which is fetched.
        progress: Called after each shard with the bytes read.
        overlap: Also count the 13-grams of the held-out text that occur in the training text.
        max_overlap: Largest allowed fraction of the distinct 13-grams of `select` or `report`. Technical
            documentation shares up to 0.17, prose less than 0.01.
        orders: Also compare the cached orders of documents with their checksums. A run does so at its start,
            and recomputes an order that differs.

    Raises:
        StoreError: If there is no manifest, or the limit is not a fraction. Everything else is a problem in
            the report.
    """
    if not 0 <= max_overlap <= 1:
        raise StoreError(
            "max_overlap", got=max_overlap, rule="must be between 0 and 1", remedy=f"{MAX_OVERLAP} is usual."
        )
    from reptrain.store.hashing import damaged_orders
    from reptrain.store.overlap import measure_overlap
    from reptrain.store.remote import local_folder

    # Holds the shards of a remote store in the cache.
    fetched = _fetched(path, progress)
    path = local_folder(path)
    manifest = read_manifest(path)
    problems = _tokenizer_problems(path, manifest)
    total = sum(shard.bytes for info in manifest.splits.values() for shard in info.shards)
    done = 0
    actual: dict[SplitName, SplitInfo] = {}
    for name, info in manifest.splits.items():
        digest = hashlib.sha256()
        for shard in info.shards:
            problems += _shard_problems(path / shard.file, shard, manifest, digest.update)
            done += shard.bytes
            if progress:
                progress("verify", done, total)
        actual[name] = SplitInfo.of(info.shards, digest.hexdigest())
    if not problems:
        problems = _total_problems(manifest, actual)
    if orders:
        problems += damaged_orders(path)
    overlaps, too_large = [], []
    if overlap and not problems:
        stage = None if progress is None else partial(progress, "compare held-out text")
        overlaps = measure_overlap(path, manifest, stage)
        too_large = _overlap_problems(overlaps, max_overlap)
    del fetched
    return VerifyReport(
        shards=sum(len(info.shards) for info in manifest.splits.values()),
        documents=sum(info.documents for info in actual.values()),
        tokens=sum(info.tokens for info in actual.values()),
        problems=problems,
        overlap=overlaps,
        overlap_problems=too_large,
    )


def _fetched(path: str | Path, progress: StageProgress | None) -> list[IO[bytes]]:
    from reptrain.store.remote import open_remote

    remote = open_remote(path)
    if remote is None:
        return []
    held, done = [], 0
    shards = [shard for info in read_manifest(remote.folder).splits.values() for shard in info.shards]
    total = sum(shard.bytes for shard in shards)
    for shard in shards:
        held.append(remote.open(shard))
        done += shard.bytes
        if progress:
            progress("fetch", done, total)
    return held


def _overlap_problems(overlaps: list[Overlap], limit: float) -> list[str]:
    from reptrain.store.overlap import NGRAM

    return [
        f"split {overlap.split}: {overlap.distinct_share:.2%} of its distinct {NGRAM}-grams"
        " also occur in train,"
        f" above the limit {limit:.2%}; most in "
        + ", ".join(f"{item.id} ({item.shared} of {item.ngrams})" for item in overlap.documents)
        + ". Remove the documents, or tokenize with dedup `group` or `minhash`."
        for overlap in overlaps
        if overlap.distinct_share > limit
    ]


def _tokenizer_problems(path: Path, manifest: StoreManifest) -> list[str]:
    from reptrain.text import load_tokenizer

    try:
        tokenizer = load_tokenizer(path / manifest.tokenizer_file, manifest.end)
    except ReptrainError as error:
        return [str(error)]
    sealed = (manifest.tokenizer, manifest.vocab_size, manifest.eos_id)
    got = (tokenizer.fingerprint, tokenizer.vocab_size, tokenizer.eos_id)
    return (
        []
        if got == sealed
        else [f"{manifest.tokenizer_file}: (fingerprint, pieces, EOS) {got}, sealed {sealed}"]
    )


def _shard_problems(
    path: Path, shard: Shard, manifest: StoreManifest, add_digest: Callable[[bytes], None]
) -> list[str]:
    """The problems of one shard. Passes the digests of its documents to ``add_digest``."""
    from reptrain.store.hashing import document_digest, file_sha256
    from reptrain.store.shards import ShardReader

    try:
        sha256 = file_sha256(path)
    except OSError as error:
        return [f"{shard.file}: {error.strerror}"]
    if sha256 != shard.sha256:
        return [f"{shard.file}: SHA-256 {sha256}, sealed {shard.sha256}"]
    try:
        reader = ShardReader(path, shard)
    except ReptrainError as error:
        return [str(error)]
    problems = []
    for offsets, tokens in zip(reader.offsets, reader.tokens, strict=True):
        if int(tokens.max()) >= manifest.vocab_size:
            problems.append(f"{shard.file}: token {int(tokens.max())} of {manifest.vocab_size} pieces")
        if (tokens[offsets[1:] - 1] != manifest.eos_id).any():
            problems.append(f"{shard.file}: a document does not end with EOS")
        for start, stop in itertools.pairwise(offsets):
            add_digest(document_digest(tokens[start:stop]))
    return problems


def _total_problems(manifest: StoreManifest, actual: dict[SplitName, SplitInfo]) -> list[str]:
    problems = [
        f"split {name}: totals or digest differ from those of its shards"
        for name, info in manifest.splits.items()
        if info != actual[name]
    ]
    fingerprint = content_fingerprint(manifest.tokenizer, actual)
    if fingerprint != manifest.fingerprint:
        problems.append(f"fingerprint {manifest.fingerprint}, but the content has {fingerprint}")
    stored = sum(info.documents for info in actual.values())
    counts = manifest.counts
    sealed = counts.kept if counts.passages is None else counts.passages
    read = counts.empty + counts.duplicates + counts.near_duplicates + counts.kept
    if sealed != stored or counts.read != read:
        problems.append(f"counts {counts} do not add up to {stored} documents")
    return problems
