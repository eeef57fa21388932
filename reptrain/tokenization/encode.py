"""Pass 2: tokenize the kept documents into shards."""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

import numpy as np

from reptrain.errors import StoreError
from reptrain.files import flush_files, write_atomically
from reptrain.store.hashing import document_digest, file_sha256
from reptrain.store.manifest import SPLITS, Shard, SplitName
from reptrain.store.shards import ShardWriter
from reptrain.text import Document, Tokenizer, load_tokenizer
from reptrain.text.documents import Fields, read_slice
from reptrain.text.ends import NamedEnd
from reptrain.text.tokenizer import Encoding, TokenArray
from reptrain.text.words import count_words
from reptrain.tokenization.jobs import TokenizeJob
from reptrain.tokenization.scan import KEPT, DocumentDigest, Scan, text_hash
from reptrain.tokenization.work import Work, read_record, write_record

_ENCODE_CHARACTERS = 1 << 20


class StoredTokenizer(NamedTuple):
    """The tokenizer of an unfinished store: its file, its fingerprint and its end of document."""

    file: str
    fingerprint: str
    end: NamedEnd | None = None


class EncodeTask(NamedTuple):
    """One job of pass 2."""

    job: TokenizeJob
    fields: Fields
    work: Work
    tokenizer: StoredTokenizer
    passages: int | None = None
    flush: bool = False
    """Whether the job flushes its shards to the disk; else the caller does, for all jobs together."""


class Encoded(NamedTuple):
    """Result of pass 2 for a job: shards by split, documents without tokens, and counts by source."""

    shards: dict[SplitName, Shard]
    empty: int
    documents: dict[str, int]
    tokens: dict[str, int]

    @classmethod
    def read(cls, path: Path) -> Encoded:
        """Read a finished job's record."""
        shards, *counts = read_record(path)
        return cls({split: Shard.model_validate(shard) for split, shard in shards.items()}, *counts)

    def write(self, work: Work, index: int) -> None:
        """Write the record that marks the job as done."""
        files = {work.out / shard.file: shard.sha256 for shard in self.shards.values()}
        files |= {path: file_sha256(path) for path in (work.digests(split, index) for split in self.shards)}
        shards = {split: shard.model_dump() for split, shard in self.shards.items()}
        write_record(work.encoded(index), [shards, *self[1:]], files)


class KeptDocument(NamedTuple):
    """A document, its split, and the UTF-8 bytes of its text."""

    split: SplitName
    document: Document
    text_bytes: int


class Passage(NamedTuple):
    """A document with its tokens, or a part of one; only the first part counts bytes and words."""

    split: SplitName
    document: Document
    tokens: TokenArray
    """With EOS."""
    text_bytes: int
    words: int


def kept_documents(job: TokenizeJob, fields: Fields, work: Work) -> Iterator[KeptDocument]:
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
        content = document.text.encode()
        read.add(document, text_hash(content))
        if status >= KEPT:
            yield KeptDocument(SPLITS[status - KEPT], document, len(content))
    if read.hexdigest() != Scan.read(work.scan(job.index)).digest:
        raise changed(_job_name(job), "other documents than before")


def _job_name(job: TokenizeJob) -> str:
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
        for group in _groups(kept_documents(task.job, task.fields, task.work)):
            encoding = tokenizer.encode_together([kept.document.text for kept in group])
            empty += int(np.count_nonzero(encoding.lengths == 0))
            lengths = encoding.lengths.tolist()
            documents.update(kept.document.source for kept, size in zip(group, lengths, strict=True) if size)
            for passage in _passages(group, encoding, task.passages, tokenizer.eos_id):
                split, document, ids, text_bytes, words = passage
                writers[split].add(document, ids, text_bytes=text_bytes, words=words)
                digests[split] += document_digest(ids)
                tokens[document.source] += len(ids)
        shards = {split: shard for split in SPLITS if (shard := writers[split].close()) is not None}
    for split in shards:
        write_atomically(task.work.digests(split, index), bytes(digests[split]), flush=False)
    if task.flush:
        flush_files(task.work.out / shard.file for shard in shards.values())
    encoded = Encoded(shards, empty, dict(documents), dict(tokens))
    encoded.write(task.work, index)
    return encoded


def _passages(
    group: Sequence[KeptDocument], encoding: Encoding, most_tokens: int | None, eos_id: int
) -> Iterator[Passage]:
    """The documents that have tokens, or their passages.

    A document has as few passages as possible, with lengths that differ by at most one token. With 4 as
    ``most_tokens``, one of them for EOS:

        d = a b c d e f g  ->  d#0 = a b c EOS, d#1 = d e EOS, d#2 = f g EOS
    """
    lengths = encoding.lengths
    counts = np.minimum(lengths, 1) if most_tokens is None else -(-lengths // (most_tokens - 1))
    owner = np.repeat(np.arange(len(group)), counts)
    number = np.arange(len(owner)) - np.repeat(np.cumsum(counts) - counts, counts)
    # The first passages of a document are the longer ones.
    sizes = lengths[owner] // counts[owner] + (number < lengths[owner] % counts[owner])
    ended = np.insert(encoding.ids, np.cumsum(sizes), eos_id)
    stops = np.cumsum(sizes + 1).tolist()
    words = count_words([kept.document.text for kept in group])
    start = 0
    for index, part, stop in zip(owner.tolist(), number.tolist(), stops, strict=True):
        split, document, text_bytes = group[index]
        if most_tokens is not None:
            document = document._replace(id=f"{document.id}#{part}")
        # The bytes and words of a text count once.
        text_bytes, num_words = (text_bytes, words[index]) if part == 0 else (0, 0)
        yield Passage(split, document, ended[start:stop], text_bytes, num_words)
        start = stop


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
