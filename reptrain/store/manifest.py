"""The manifest of a token store: its contents, and the sources and options that made it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, ValidationError, model_validator

from reptrain.config.base import FileName, Frozen, Number
from reptrain.config.json_digest import fingerprint
from reptrain.errors import StoreError
from reptrain.files import read_small, write_atomically
from reptrain.reading import parse_json
from reptrain.text.ends import NamedEnd
from reptrain.tokenize_options import StoreOptions

MANIFEST = "manifest.json"
TRAINED = "tokenizer.model"
FORMAT = "reptrain-store-2"
"""Format of a store. `reptrain-store-1` is refused."""

_FORMAT_NAME = re.compile(r"reptrain-store-(\d{1,9})")

SplitName = Literal["train", "select", "report"]
SPLITS: tuple[SplitName, ...] = ("train", "select", "report")


class Input(Frozen):
    """A source file as it was read; a remote one with its URL, without credentials.

    `version` is the server's ETag, checksum or modification time.
    """

    name: str
    bytes: Number
    sha256: str
    url: str | None = None
    version: str | None = None


class Counts(Frozen):
    """Documents by status: read = empty + duplicates + near_duplicates + kept.

    `clusters` counts clusters of at least two near-duplicates, with equal texts counted once;
    `largest_cluster` is the size of the largest. `passages` counts the passages of the kept documents.
    """

    read: Number
    empty: Number
    duplicates: Number
    near_duplicates: Number = 0
    clusters: Number = 0
    largest_cluster: Number = 0
    kept: Number
    passages: Number | None = None


class SourceCount(Frozen):
    """Documents and tokens of a source in all splits together, and the tags of its documents."""

    name: str
    documents: Number
    tokens: Number
    tags: dict[str, str] = Field(default_factory=dict)


class Shard(Frozen):
    """One Arrow IPC file."""

    file: FileName
    sha256: str
    bytes: Number
    documents: Number
    tokens: Number
    text_bytes: Number
    words: Number | None = None


class SplitInfo(Frozen):
    """The shards of a split, in order, with their totals and the digest of its tokens.

    If documents were cut into passages, each passage counts as a document. `words` are separated by white
    space; None in a store that was made before they were counted.
    """

    documents: Number
    tokens: Number
    text_bytes: Number
    words: Number | None = None
    digest: str
    shards: tuple[Shard, ...]

    @model_validator(mode="after")
    def _totals_are_sums(self) -> Self:
        for name in ("documents", "tokens", "text_bytes"):
            total, added = getattr(self, name), sum(getattr(shard, name) for shard in self.shards)
            if total != added:
                raise ValueError(f"{name} must be the sum over the shards, {added}, but got {total}")
        if self.words != (words := _words(self.shards)):
            raise ValueError(f"words must be the sum over the shards, {words}, but got {self.words}")
        return self

    @classmethod
    def of(cls, shards: tuple[Shard, ...], digest: str) -> SplitInfo:
        """The totals of shards."""
        return cls(
            documents=sum(shard.documents for shard in shards),
            tokens=sum(shard.tokens for shard in shards),
            text_bytes=sum(shard.text_bytes for shard in shards),
            words=_words(shards),
            digest=digest,
            shards=shards,
        )


def _words(shards: tuple[Shard, ...]) -> int | None:
    """None if they were not counted in a shard."""
    counts = [shard.words for shard in shards if shard.words is not None]
    return sum(counts) if len(counts) == len(shards) else None


class StoreManifest(Frozen):
    """The store's table of contents. It is written last, so a folder without it is not a store.

    `text_bytes` counts UTF-8 before tokenization, for bits per byte. `fingerprint` identifies the content:
    equal tokens from an equal tokenizer give equal fingerprints, whatever the paths, shards and processes.
    """

    format: Literal["reptrain-store-2"]
    fingerprint: str
    tokenizer: str
    tokenizer_file: Literal["tokenizer.model", "tokenizer.json"]
    vocab_size: Number
    eos_id: Number
    dtype: Literal["uint16", "uint32"]
    options: StoreOptions
    counts: Counts
    sources: tuple[SourceCount, ...]
    inputs: tuple[Input, ...]
    splits: dict[SplitName, SplitInfo]

    @property
    def end(self) -> NamedEnd:
        """The end of every document."""
        return NamedEnd(self.eos_id, None, MANIFEST)


def content_fingerprint(tokenizer: str, splits: Mapping[SplitName, SplitInfo]) -> str:
    """The fingerprint of a store's content.

    Args:
        tokenizer: Fingerprint of the tokenizer.
        splits: The splits, with the digest of their tokens.
    """
    digests = {name: [info.documents, info.tokens, info.digest] for name, info in splits.items()}
    return fingerprint({"format": FORMAT, "tokenizer": tokenizer, "splits": digests})


def write_manifest(folder: Path, manifest: StoreManifest) -> None:
    """Seal a store by writing its manifest."""
    write_atomically(folder / MANIFEST, manifest.model_dump_json(indent=2) + "\n")


def read_manifest(folder: Path, *, named_by: str | None = None) -> StoreManifest:
    """The manifest of a sealed store.

    Args:
        folder: The store.
        named_by: As in `open_store`.

    Raises:
        StoreError: If it is missing, damaged or in another format.
    """
    path = folder / MANIFEST
    try:
        content = read_small(path)
        _refuse_other_format(folder, content)
        return StoreManifest.model_validate_json(content)
    except OSError as error:
        elsewhere = (
            "" if named_by is None else f" If the store is elsewhere, name its folder with {named_by}."
        )
        raise StoreError(
            f"store {folder}" + ("" if folder.is_absolute() else f" in {Path.cwd()}"),
            got=f"{path.name}: {error.strerror}",
            rule="must be a folder with a manifest",
            remedy="Create it with `reptrain tokenize`; an interrupted one resumes with the same command."
            + elsewhere,
        ) from error
    except ValidationError as error:
        detail = error.errors()[0]
        raise StoreError(
            f"store {folder}",
            got=f"{'.'.join(map(str, detail['loc'])) or path.name}: {detail['msg']}",
            rule=f"must have a manifest of the format {FORMAT}",
            remedy="Rebuild the store with `reptrain tokenize`.",
        ) from error


def _refuse_other_format(folder: Path, content: bytes) -> None:
    try:
        name = parse_json(content).get("format")
    except (ValueError, AttributeError):
        # Validation will name the fault.
        return
    match = _FORMAT_NAME.fullmatch(name) if isinstance(name, str) else None
    if match is not None and name != FORMAT:
        newer = int(match[1]) > int(FORMAT.rpartition("-")[2])
        read_by = "a later version of reptrain" if newer else "the version of reptrain that wrote it"
        raise StoreError(
            f"store {folder}",
            got=name,
            rule=f"must have the format {FORMAT}",
            remedy=f"Read it with {read_by}, or rebuild the store with `reptrain tokenize`.",
        )
