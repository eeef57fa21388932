"""The options of `tokenize`: the Python call, the command line and the store's manifest all use these.

Imports neither pydantic nor pyarrow, so that the command line starts quickly.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, Literal, NamedTuple

Dedup = Literal["none", "exact", "minhash", "group"]

_RECORD = {"extra": "forbid", "allow_inf_nan": False}


class Option(NamedTuple):
    """How the command line shows an option; its default and type are those of the field."""

    help: str
    flag: str | None = None
    """Where it is not the field's name."""
    metavar: str | None = None
    default: str | None = None
    """Text for a default of None."""
    least: int = 1
    """Smallest count."""


@dataclass(frozen=True)
class NearSettings:
    """How near-duplicates are detected: MinHash over shingles of words, and banded hashing of signatures."""

    __pydantic_config__: ClassVar[Any] = _RECORD

    algorithm: Literal["r-minhash-2"] = "r-minhash-2"
    """The signature's function, as rensa numbers its versions."""
    shingle_words: int = 5
    """Words per shingle; a shorter text is one shingle."""
    permutations: int = 128
    """Length of a signature."""
    bands: int = 21
    """Bands of a signature; documents that agree in one band are compared."""
    rows: int = 6
    """Entries of the signature per band."""
    threshold: float = 0.8
    """Estimated Jaccard similarity from which two documents are near-duplicates."""
    seed: int = 0
    """Seed of the permutations."""


@dataclass(frozen=True, kw_only=True)
class TokenizeOptions:
    """What determines a store's content, apart from its sources and a given tokenizer."""

    __pydantic_config__: ClassVar[Any] = _RECORD

    eos: Annotated[
        str | None,
        Option("Special piece of the given tokenizer that ends a document.", metavar="PIECE"),
    ] = None
    """None takes the tokenizer's own EOS."""
    vocab_size: Annotated[
        int | None,
        Option("Vocabulary size of the tokenizer to train.", default="2048, or as near as the text allows"),
    ] = None
    """Must be None with a given tokenizer."""
    num_sentinels: Annotated[
        int | None,
        Option("Sentinels among these pieces, for span corruption.", default="32", least=0),
    ] = None
    """Must be None with a given tokenizer."""
    dedup: Annotated[
        Dedup,
        Option(
            "exact: keep the first of documents with equal text. minhash: also drop near-duplicates. group: "
            "keep near-duplicates, but never divide a cluster of them between splits."
        ),
    ] = "exact"
    held_out_fraction: Annotated[
        float,
        Option(
            "Fraction of the documents to hold out, half as `select`, half as `report`.", flag="--held-out"
        ),
    ] = 0.05
    """Of each source, large file, or folder of .txt files (see `reptrain.tokenization.strata`)."""
    near: Annotated[
        NearSettings | None,
        Option(
            "How to detect near-duplicates: shingle_words, permutations, bands, rows, threshold, seed.",
            metavar="KEY=VALUE",
        ),
    ] = None
    """None takes the defaults where `dedup` needs them."""
    passages: Annotated[
        int | None,
        Option("Cut documents into passages of at most N tokens, each with its EOS."),
    ] = None
    """A small subset then holds many passages. Those of one document stay in one split."""
    text_field: Annotated[
        str, Option("Key of the text in a JSON line, or column of a table; a.b is key b inside a.")
    ] = "text"
    id_field: Annotated[str, Option("Key or column of the document's id.")] = "id"
    metadata_fields: Annotated[
        tuple[str, ...],
        Option(
            "Key or column to keep with each document; repeat for several.",
            flag="--metadata-field",
            metavar="NAME",
        ),
    ] = ()
    tags: Annotated[
        Mapping[str, str],
        Option(
            "Key and value to keep with each document, of all sources or of one; repeat for several.",
            flag="--tag",
            metavar="[SOURCE:]KEY=VALUE",
        ),
    ] = field(default_factory=dict)
    """By KEY, or by SOURCE:KEY for the documents of one source."""


@dataclass(frozen=True, kw_only=True)
class StoreOptions(TokenizeOptions):
    """The resolved options, as the manifest records them. With a given tokenizer, vocab_size is None."""

    split_version: int = 1
    """How held-out documents are drawn: 1 by content hash alone, 2 with quotas for small strata."""
    tokenizer: str | None
    """Fingerprint of the given tokenizer; None if it was trained."""
