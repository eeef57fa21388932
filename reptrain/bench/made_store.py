"""A token store of random tokens, of any size, for benchmarks."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from reptrain.store import Store, open_store
from reptrain.store.hashing import document_digest
from reptrain.store.manifest import Shard, SplitInfo, content_fingerprint, write_manifest
from reptrain.store.shards import ShardWriter
from reptrain.text import Document
from reptrain.text.tokenizer import TokenArray
from reptrain.tokenization import tokenize

_SHARD_TOKENS = 1 << 24
DOCUMENT_TOKENS = 600


def made_store(folder: Path, tokens: int) -> Store:
    """A sealed store, in `folder/store`. Documents have random lengths around 600 tokens.

    Args:
        folder: An empty folder.
        tokens: Smallest number of tokens of the training split.
    """
    text = folder / "text.jsonl"
    lines = (json.dumps({"text": f"{n} squared is {n * n}."}) for n in range(400))
    text.write_text("\n".join(lines) + "\n")
    tokenize([text], folder / "store", vocab_size=256, num_sentinels=100)
    manifest = open_store(folder / "store").manifest
    documents = _documents(manifest.vocab_size, manifest.eos_id, np.dtype(manifest.dtype))
    return replace_training_text(folder / "store", documents, tokens)


def replace_training_text(path: Path, documents: Iterator[TokenArray], tokens: int) -> Store:
    """Give a sealed store another training split.

    Args:
        path: The store.
        documents: Token ids of documents, each with its EOS; at least as many as are needed.
        tokens: Smallest number of tokens of the training split.
    """
    manifest = open_store(path).manifest
    digest, held = hashlib.sha256(), 0
    shards: list[Shard] = []
    while held < tokens:
        with ShardWriter(path / f"train-{len(shards):05d}.arrow", np.dtype(manifest.dtype)) as writer:
            size = 0
            while size < min(_SHARD_TOKENS, tokens - held):
                ids = next(documents)
                writer.add(Document(f"{len(shards)}:{size}", "", "text"), ids, text_bytes=4, words=1)
                digest.update(document_digest(ids))
                size += len(ids)
            shard = writer.close()
        assert shard is not None
        shards.append(shard)
        held += size
    splits = {**manifest.splits, "train": SplitInfo.of(tuple(shards), digest.hexdigest())}
    number = sum(info.documents for info in splits.values())
    changed = {
        "splits": splits,
        "counts": manifest.counts.model_copy(update={"read": number, "kept": number, "duplicates": 0}),
        "fingerprint": content_fingerprint(manifest.tokenizer, splits),
    }
    write_manifest(path, manifest.model_copy(update=changed))
    return open_store(path)


def _documents(
    vocab_size: int, eos_id: int, dtype: np.dtype[np.uint16] | np.dtype[np.uint32]
) -> Iterator[TokenArray]:
    draw = np.random.default_rng(0)
    while True:
        lengths: npt.NDArray[np.int64] = 2 + draw.exponential(DOCUMENT_TOKENS, 1024).astype(np.int64)
        ids = draw.integers(0, vocab_size - 100, int(lengths.sum()), dtype=dtype)
        ends = np.cumsum(lengths)
        ids[ends - 1] = eos_id
        yield from np.split(ids, ends[:-1])
