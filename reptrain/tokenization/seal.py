"""The manifest, assembled from the records of the jobs."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence

import numpy as np

from reptrain.store.manifest import (
    FORMAT,
    SPLITS,
    Counts,
    Input,
    SourceCount,
    SplitInfo,
    SplitName,
    StoreManifest,
    content_fingerprint,
)
from reptrain.text import Tokenizer
from reptrain.text.documents import Fields
from reptrain.tokenization.clusters import Decided
from reptrain.tokenization.encode import Encoded
from reptrain.tokenization.scan import DUPLICATE, EMPTY, KEPT, NEAR_DUPLICATE
from reptrain.tokenization.work import Work
from reptrain.tokenize_options import StoreOptions


def assemble(
    options: StoreOptions,
    fields: Fields,
    tokenizer: Tokenizer,
    inputs: Sequence[Input],
    decided: Decided,
    encoded: Sequence[Encoded],
    work: Work,
) -> StoreManifest:
    """The manifest of a finished store.

    Args:
        options: The resolved options.
        fields: The tags of each source.
        tokenizer: The store's tokenizer.
        inputs: The source files.
        decided: Documents by status, and the clusters of near-duplicates.
        encoded: The records of pass 2, in the order of the jobs.
        work: The work in progress, with the digests.
    """
    splits = {name: _split(name, encoded, work) for name in SPLITS}
    counts = decided.counts
    empty = sum(record.empty for record in encoded)
    return StoreManifest(
        format=FORMAT,
        fingerprint=content_fingerprint(tokenizer.fingerprint, splits),
        tokenizer=tokenizer.fingerprint,
        tokenizer_file=tokenizer.file_name,
        vocab_size=tokenizer.vocab_size,
        eos_id=tokenizer.eos_id,
        dtype="uint16" if tokenizer.dtype == np.uint16 else "uint32",
        options=options,
        counts=Counts(
            read=int(counts.sum()),
            empty=int(counts[EMPTY]) + empty,
            duplicates=int(counts[DUPLICATE]),
            near_duplicates=int(counts[NEAR_DUPLICATE]),
            clusters=decided.clusters,
            largest_cluster=decided.largest,
            kept=int(counts[KEPT:].sum()) - empty,
            passages=None if options.passages is None else sum(info.documents for info in splits.values()),
        ),
        sources=_sources(encoded, fields),
        inputs=tuple(inputs),
        splits=splits,
    )


def _split(name: SplitName, encoded: Sequence[Encoded], work: Work) -> SplitInfo:
    digest = hashlib.sha256()
    for job, record in enumerate(encoded):
        if name in record.shards:
            digest.update(work.digests(name, job).read_bytes())
    shards = tuple(record.shards[name] for record in encoded if name in record.shards)
    return SplitInfo.of(shards, digest.hexdigest())


def _sources(encoded: Sequence[Encoded], fields: Fields) -> tuple[SourceCount, ...]:
    documents: Counter[str] = Counter()
    tokens: Counter[str] = Counter()
    for record in encoded:
        documents.update(record.documents)
        tokens.update(record.tokens)
    return tuple(
        SourceCount(name=name, documents=documents[name], tokens=tokens[name], tags=fields.tags_of(name))
        for name in documents
    )
