"""The sealed description of a token store: what it holds, and from what it was made."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field, ValidationError

from reptrain.config.base import FileName, Frozen
from reptrain.config.fingerprint import fingerprint
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
    """A source file as it was read; a remote one with its URL, but without what gives access to it.

    `version` is what the server told of the file's content: ETag, checksum or time of change.
    """

    name: str
    bytes: int
    sha256: str
    url: str | None = None
    version: str | None = None


class Counts(Frozen):
    """Documents by what became of them: read = empty + duplicates + near_duplicates + kept.

    `clusters` counts the clusters of two and more near-duplicates, equal texts counted once, and
    `largest_cluster` the documents of the largest. `passages` are what the kept documents were cut into.
    """

    read: int
    empty: int
    duplicates: int
    near_duplicates: int = 0
    clusters: int = 0
    largest_cluster: int = 0
    kept: int
    passages: int | None = None


class SourceCount(Frozen):
    """What a source gave to all splits together, and the tags that each of its documents carries."""

    name: str
    documents: int
    tokens: int
    tags: dict[str, str] = Field(default_factory=dict)


class Shard(Frozen):
    """One Arrow IPC file."""

    file: FileName
    sha256: str
    bytes: int
    documents: int
    tokens: int
    text_bytes: int


class SplitInfo(Frozen):
    """The shards of a split, in order, with their totals and the digest of its tokens.

    Where documents were cut into passages, each passage counts as a document here.
    """

    documents: int
    tokens: int
    text_bytes: int
    digest: str
    shards: tuple[Shard, ...]

    @classmethod
    def of(cls, shards: tuple[Shard, ...], digest: str) -> SplitInfo:
        """Sum the shards up."""
        return cls(
            documents=sum(shard.documents for shard in shards),
            tokens=sum(shard.tokens for shard in shards),
            text_bytes=sum(shard.text_bytes for shard in shards),
            digest=digest,
            shards=shards,
        )


class StoreManifest(Frozen):
    """The store's table of contents, written last: a folder without it is no store.

    `text_bytes` counts UTF-8 before tokenization, for bits per byte. `fingerprint` names the content: it is
    equal for equal tokens from an equal tokenizer, whatever the paths, the shards and the processes.
    """

    format: Literal["reptrain-store-2"]
    fingerprint: str
    tokenizer: str
    tokenizer_file: Literal["tokenizer.model", "tokenizer.json"]
    vocab_size: int
    eos_id: int
    dtype: Literal["uint16", "uint32"]
    options: StoreOptions
    counts: Counts
    sources: tuple[SourceCount, ...]
    inputs: tuple[Input, ...]
    splits: dict[SplitName, SplitInfo]

    @property
    def end(self) -> NamedEnd:
        """What ends every document."""
        return NamedEnd(self.eos_id, None, MANIFEST)


def content_fingerprint(tokenizer: str, splits: Mapping[SplitName, SplitInfo]) -> str:
    """The fingerprint of a store's content.

    Args:
        tokenizer: Fingerprint of the tokenizer.
        splits: Each with the digest of its documents' tokens.
    """
    digests = {name: [info.documents, info.tokens, info.digest] for name, info in splits.items()}
    return fingerprint({"format": FORMAT, "tokenizer": tokenizer, "splits": digests})


def write_manifest(folder: Path, manifest: StoreManifest) -> None:
    """Seal a store."""
    write_atomically(folder / MANIFEST, manifest.model_dump_json(indent=2) + "\n")


def read_manifest(folder: Path, *, named_by: str | None = None) -> StoreManifest:
    """The manifest of a sealed store.

    Args:
        folder: The store.
        named_by: As in `open_store`.

    Raises:
        StoreError: If there is none, it is in another format, or it is damaged.
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
            remedy="Make it with `reptrain tokenize`; an interrupted one resumes with the same command."
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
        found = parse_json(content).get("format")
    except (ValueError, AttributeError):
        # Validation names what is wrong.
        return
    match = _FORMAT_NAME.fullmatch(found) if isinstance(found, str) else None
    if match is not None and found != FORMAT:
        newer = int(match[1]) > int(FORMAT.rpartition("-")[2])
        read_by = "a later version of reptrain" if newer else "the version of reptrain that wrote it"
        raise StoreError(
            f"store {folder}",
            got=found,
            rule=f"must have the format {FORMAT}",
            remedy=f"Read it with {read_by}, or rebuild the store with `reptrain tokenize`.",
        )
