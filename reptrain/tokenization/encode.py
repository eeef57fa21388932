"""Pass 2: tokenize the kept documents into shards."""

from __future__ import annotations

import functools
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np

from reptrain.errors import StoreError
from reptrain.files import write_atomically
from reptrain.store.hashing import document_digest
from reptrain.store.manifest import SPLITS, Shard, SplitName
from reptrain.store.shards import ShardWriter
from reptrain.text import Document, Tokenizer, load_tokenizer
from reptrain.text.documents import Fields, read_slice
from reptrain.text.ends import NamedEnd
from reptrain.text.tokenizer import TokenArray
from reptrain.tokenization.jobs import Job
from reptrain.tokenization.scan import KEPT, DocumentDigest, Scan
from reptrain.tokenization.work import Work

_ENCODE_CHARACTERS = 1 << 20


class StoredTokenizer(NamedTuple):
    """The tokenizer of an unfinished store: its file, its fingerprint and its end of document."""

    file: str
    fingerprint: str
    end: NamedEnd | None = None


class EncodeTask(NamedTuple):
    """One job of pass 2."""

    job: Job
    fields: Fields
    work: Work
    tokenizer: StoredTokenizer
    passages: int | None = None


class Encoded(NamedTuple):
    """Result of pass 2 for a job: shards by split, documents without tokens, and counts by source."""

    shards: dict[SplitName, Shard]
    empty: int
    documents: dict[str, int]
    tokens: dict[str, int]

    @classmethod
    def read(cls, path: Path) -> Encoded:
        """Read a finished job's record."""
        shards, *counts = json.loads(path.read_text())
        return cls({split: Shard.model_validate(shard) for split, shard in shards.items()}, *counts)

    def write(self, path: Path) -> None:
        """Write the record that marks the job as done."""
        shards = {split: shard.model_dump() for split, shard in self.shards.items()}
        write_atomically(path, json.dumps([shards, *self[1:]]))


class KeptDocument(NamedTuple):
    """A document and its split."""

    split: SplitName
    document: Document


def kept_documents(job: Job, fields: Fields, work: Work) -> Iterator[KeptDocument]:
    """The documents of a job that are kept, in order.

    Raises:
        StoreError: If the source has changed since pass 1; raised after the last document.
    """
    # Bytes, not a list: one byte per document.
    statuses = np.load(work.statuses(job.index)).tobytes()
    documents = (document for part in job.slices for document in read_slice(part, fields))
    read = DocumentDigest()
    for document, status in itertools.zip_longest(documents, statuses):
        if document is None or status is None:
            raise changed(_job_name(job), "another number of documents")
        read.add(document, document.text.encode())
        if status >= KEPT:
            yield KeptDocument(SPLITS[status - KEPT], document)
    if read.hexdigest() != Scan.read(work.scan(job.index)).digest:
        raise changed(_job_name(job), "other documents than before")


def _job_name(job: Job) -> str:
    names = list(dict.fromkeys(part.origin for part in job.slices))
    return names[0] + (f" or one of {len(names) - 1} files after it" if len(names) > 1 else "")


def changed(source: str, got: str) -> StoreError:
    """The error of a source that changes while it is tokenized."""
    return StoreError(
        f"source {source}",
        got=got,
        rule="must not change while it is tokenized",
        remedy="Repeat the command when no process writes to it.",
    )


def encode_job(task: EncodeTask) -> Encoded:
    """Tokenize the kept documents of a job into one shard for each split that has any."""
    index = task.job.index
    tokenizer = _load_stored(task.work.out, task.tokenizer)
    eos = np.array([tokenizer.eos_id], dtype=tokenizer.dtype)
    empty = 0
    documents: Counter[str] = Counter()
    tokens: Counter[str] = Counter()
    digests: dict[SplitName, bytearray] = {split: bytearray() for split in SPLITS}
    with ExitStack() as stack:
        writers = {
            split: stack.enter_context(
                ShardWriter(task.work.out / f"{split}-{index:05d}.arrow", tokenizer.dtype)
            )
            for split in SPLITS
        }
        for (split, document), ids in _encode(kept_documents(task.job, task.fields, task.work), tokenizer):
            if len(ids) == 0:
                empty += 1
                continue
            documents[document.source] += 1
            for part, part_ids in _passages(document, ids, task.passages):
                ended = np.concatenate([part_ids, eos])
                writers[split].add(part, ended)
                digests[split] += document_digest(ended)
                tokens[document.source] += len(ended)
        shards = {split: shard for split in SPLITS if (shard := writers[split].close()) is not None}
    for split in shards:
        write_atomically(task.work.digests(split, index), bytes(digests[split]))
    encoded = Encoded(shards, empty, dict(documents), dict(tokens))
    encoded.write(task.work.encoded(index))
    return encoded


def _passages(
    document: Document, ids: TokenArray, most_tokens: int | None
) -> Iterator[tuple[Document, TokenArray]]:
    """The document, or its passages: as few as possible, with lengths that differ by at most one token.

    most_tokens 4, one of them for EOS:  d = a b c d e f g  ->  d#0 = a b c, d#1 = d e, d#2 = f g
    """
    if most_tokens is None:
        yield document, ids
        return
    count = -(-len(ids) // (most_tokens - 1))
    for number, part in enumerate(np.array_split(ids, count)):
        # The first passage keeps the text, so that its bytes count once.
        text = document.text if number == 0 else ""
        yield document._replace(id=f"{document.id}#{number}", text=text), part


def _encode(
    documents: Iterable[KeptDocument], tokenizer: Tokenizer
) -> Iterator[tuple[KeptDocument, TokenArray]]:
    for group in _groups(documents):
        yield from zip(group, tokenizer.encode([kept.document.text for kept in group]), strict=True)


def _groups(documents: Iterable[KeptDocument]) -> Iterator[list[KeptDocument]]:
    """Groups of about equal length, to bound the memory."""
    group: list[KeptDocument] = []
    characters = 0
    for kept in documents:
        group.append(kept)
        characters += len(kept.document.text)
        if characters >= _ENCODE_CHARACTERS:
            yield group
            group, characters = [], 0
    if group:
        yield group


@functools.lru_cache(maxsize=1)
def _load_stored(folder: Path, stored: StoredTokenizer) -> Tokenizer:
    """The tokenizer, loaded once in each worker. The fingerprint in the cache key detects a replaced file."""
    tokenizer = load_tokenizer(folder / stored.file, stored.end)
    assert tokenizer.fingerprint == stored.fingerprint
    return tokenizer
