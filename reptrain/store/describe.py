"""Descriptions of a store, as data and as text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from reptrain.store.manifest import StoreManifest

if TYPE_CHECKING:
    from reptrain.store.reader import Store

_FEW_DOCUMENTS = 20
_FEW_TOKENS = 4096


def describe(store: Store) -> dict[str, Any]:
    """The contents of a store for JSON: counts by split and source, the tokenizer, the options."""
    manifest = store.manifest
    return {
        "path": str(store.path),
        "fingerprint": manifest.fingerprint,
        "tokenizer": {
            "fingerprint": manifest.tokenizer,
            "file": manifest.tokenizer_file,
            "vocab_size": manifest.vocab_size,
            "eos_id": manifest.eos_id,
        },
        "dtype": manifest.dtype,
        "documents": manifest.counts.model_dump(),
        "splits": {
            name: {
                "documents": info.documents,
                "tokens": info.tokens,
                "text_bytes": info.text_bytes,
                "words": info.words,
                "bytes_per_token": info.text_bytes / info.tokens,
                "shards": len(info.shards),
            }
            for name, info in manifest.splits.items()
        },
        "sources": [source.model_dump() for source in manifest.sources],
        "inputs": [item.model_dump() for item in manifest.inputs],
        "options": asdict(manifest.options),
        "warnings": split_warnings(manifest),
    }


def _count(number: int | None) -> str:
    return "-" if number is None else f"{number:,}"


def _tags(tags: Mapping[str, str]) -> str:
    return " ".join(f"{key}={value}" for key, value in tags.items())


def _near_line(manifest: StoreManifest) -> list[str]:
    near, counts = manifest.options.near, manifest.counts
    if near is None:
        return []
    return [
        f"clusters     {counts.clusters:,} of near-duplicates, the largest of {counts.largest_cluster:,};"
        f" similarity >= {near.threshold:g} over {near.shingle_words} words"
    ]


def _passages_line(manifest: StoreManifest) -> list[str]:
    passages, longest = manifest.counts.passages, manifest.options.passages
    if passages is None or longest is None:
        return []
    return [f"passages     {passages:,} of at most {longest:,} tokens"]


def describe_text(store: Store) -> str:
    """The same as lines of text."""
    manifest = store.manifest
    counts = manifest.counts
    row = "documents" if counts.passages is None else "passages"
    lines = [
        f"store        {store.path}",
        f"fingerprint  {manifest.fingerprint}",
        f"tokenizer    {manifest.vocab_size:,} pieces, EOS {manifest.eos_id}, {manifest.tokenizer}",
        f"documents    {counts.read:,} read, {counts.empty:,} empty, {counts.duplicates:,} duplicates,"
        f" {counts.near_duplicates:,} near-duplicates, {counts.kept:,} kept",
        *_near_line(manifest),
        *_passages_line(manifest),
        "",
        f"{'split':<12} {row:>12} {'tokens':>16} {'words':>16} {'bytes/token':>12} {'shards':>7}",
    ]
    for name, info in manifest.splits.items():
        ratio = info.text_bytes / info.tokens
        lines.append(
            f"{name:<12} {info.documents:>12,} {info.tokens:>16,} {_count(info.words):>16} {ratio:>12.3f}"
            f" {len(info.shards):>7,}"
        )
    lines += ["", f"{'source':<12} {'documents':>12} {'tokens':>16}"]
    lines += [
        f"{item.name:<12} {item.documents:>12,} {item.tokens:>16,}  {_tags(item.tags)}".rstrip()
        for item in manifest.sources
    ]
    lines += [f"WARNING: {text}" for text in split_warnings(manifest)]
    return "\n".join(lines)


def split_warnings(manifest: StoreManifest) -> list[str]:
    """Warnings about held-out splits with too few documents or tokens for a reliable loss."""
    few = [
        f"{name} ({info.documents:,} documents, {info.tokens:,} tokens)"
        for name, info in manifest.splits.items()
        if name != "train" and (info.documents < _FEW_DOCUMENTS or info.tokens < _FEW_TOKENS)
    ]
    if not few:
        return []
    return [
        f"held-out text is small: {', '.join(few)}. Losses on it vary with the choice of documents."
        " Add more text, or raise the held-out fraction (--held-out)."
    ]
