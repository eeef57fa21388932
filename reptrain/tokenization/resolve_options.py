"""The options of `tokenize`: checked, defaults filled in, the tokenizer loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

from pydantic import TypeAdapter, ValidationError

from reptrain.errors import ConfigError, StoreError, TokenizerError, check_choice
from reptrain.text import Tokenizer, load_tokenizer
from reptrain.text.ends import find_end
from reptrain.text.train_unigram import DEFAULT_VOCAB_SIZE
from reptrain.tokenization.near import check_near
from reptrain.tokenization.strata import SPLIT_VERSION
from reptrain.tokenize_options import Dedup, NearSettings, StoreOptions, TokenizeOptions

_DEFAULT_SENTINELS = 32


def check_options(options: Mapping[str, Any]) -> TokenizeOptions:
    """Options of `tokenize` from keywords.

    Raises:
        ConfigError: If an option is unknown, has another type, or ``dedup`` is unknown.
        StoreError: If a value is out of range.
    """
    if "dedup" in options:
        check_choice("dedup", options["dedup"], get_args(Dedup))
    try:
        checked = TypeAdapter(TokenizeOptions).validate_python(options)
    except ValidationError as error:
        detail = error.errors()[0]
        raise ConfigError(
            f"option {'.'.join(map(str, detail['loc']))}",
            got=repr(detail["input"]),
            rule=f"must be an option of tokenize, of its type ({detail['msg']})",
            remedy=f"Options: {', '.join(field.name for field in fields(TokenizeOptions))}.",
        ) from error
    if not 0 < checked.held_out_fraction < 1:
        raise StoreError(
            "held_out_fraction",
            got=checked.held_out_fraction,
            rule="must be between 0 and 1",
            remedy="The default is 0.05.",
        )
    if checked.passages is not None and checked.passages < 2:
        raise StoreError(
            "passages",
            got=checked.passages,
            rule="must be at least 2 tokens",
            remedy="One of them is the EOS.",
        )
    return checked


def resolve_options(options: TokenizeOptions, tokenizer: Tokenizer | None) -> StoreOptions:
    """The options with their defaults filled in, as the manifest records them.

    Raises:
        TokenizerError: If options for training are set beside a given tokenizer.
        StoreError: If settings for near-duplicates are wrong, or set where `dedup` does not use them.
    """
    resolved: dict[str, Any] = vars(options) | {
        "near": _resolve_near(options),
        "split_version": SPLIT_VERSION,
        "tokenizer": None if tokenizer is None else tokenizer.fingerprint,
    }
    defaults = {"vocab_size": DEFAULT_VOCAB_SIZE, "num_sentinels": _DEFAULT_SENTINELS}
    for name, default in defaults.items():
        value = resolved[name]
        if tokenizer is None:
            resolved[name] = default if value is None else value
        elif value is not None:
            raise TokenizerError(
                name,
                got=f"{value} beside a model of {tokenizer.vocab_size} pieces,"
                f" {tokenizer.num_sentinels} sentinels",
                rule="must be omitted if a tokenizer is given",
                remedy="Omit it, or omit the tokenizer to train one.",
            )
    return StoreOptions(**resolved)


def load_given_tokenizer(path: Path | None, eos: str | None) -> Tokenizer | None:
    """The given tokenizer, or None where one is to be trained.

    Raises:
        TokenizerError: If it cannot be loaded or has no EOS, or ``eos`` is set without a tokenizer.
    """
    if path is None:
        if eos is not None:
            raise TokenizerError(
                "eos",
                got=repr(eos),
                rule="must be omitted if no tokenizer is given",
                remedy="A trained tokenizer ends documents with </s>.",
            )
        return None
    tokenizer = load_tokenizer(path, eos)
    if tokenizer.eos_id < 0:
        got = "none"
        if (named := find_end(path.parent)) is not None:
            got = (
                f"{named.id if named.piece is None else named.piece} in {named.file}, no special piece of it"
            )
        raise TokenizerError(
            f"tokenizer {path}",
            got=got,
            rule="must have an end-of-sentence piece, which ends every document",
            remedy="Name a special piece with --eos, or leave the tokenizer out to train one.",
        )
    return tokenizer


def _resolve_near(options: TokenizeOptions) -> NearSettings | None:
    if options.dedup in ("minhash", "group"):
        return check_near(options.near or NearSettings())
    if options.near is not None:
        raise StoreError(
            "near",
            got=f"settings with dedup {options.dedup!r}",
            rule="must be omitted if near-duplicates are not detected",
            remedy="Set dedup to `minhash` or `group`.",
        )
    return None
