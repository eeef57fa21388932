"""Tokenizer files of a Hugging Face folder.

The exported tokenizer.json gives the same ids in transformers as our tokenizer does. A SentencePiece model is
converted to tokenizer.json too, and also copied unchanged. If a unigram model scores two segmentations of a
text equally, the libraries may choose different ones; both decode to the text.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any, NamedTuple

import tokenizers
from sentencepiece import sentencepiece_model_pb2
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing

from reptrain.errors import TokenizerError
from reptrain.reading import decode
from reptrain.text import Tokenizer, load_tokenizer
from reptrain.text.ends import find_end

_SPACE = "\u2581"
_NAMES = ("tokenizer.model", "spiece.model", "tokenizer.json")
_UNIGRAM, _BPE = 1, 2
_NORMAL, _UNKNOWN, _CONTROL, _USER_DEFINED = 1, 2, 3, 4


class SpecialIds(NamedTuple):
    """Start and end ids of a text."""

    start: int | None
    """Id before the first token of a decoder's text; None: none."""
    ends: tuple[int, ...]
    """Ids that end a text."""


def special_ids(tokenizer: Tokenizer) -> SpecialIds:
    """The ids of our runs: as in T5, a decoder starts with the padding id, or else with EOS."""
    start = tokenizer.pad_id if tokenizer.pad_id >= 0 else tokenizer.eos_id
    return SpecialIds(start, (tokenizer.eos_id,))


def read_tokenizer(path: Path) -> Tokenizer | None:
    """The tokenizer of a folder; None if there is none.

    Of several files, the one with the most ids: T5's spiece.model lacks the sentinels of its tokenizer.json.
    A model file in another format, such as tiktoken's, is skipped with a note if there is a tokenizer.json.

    Raises:
        TokenizerError: If a file is not a tokenizer.
    """
    end = find_end(path)
    loaded: list[Tokenizer] = []
    for name in _NAMES:
        if not (path / name).exists():
            continue
        try:
            loaded.append(load_tokenizer(path / name, end))
        except TokenizerError as error:
            if name == "tokenizer.json" or not (path / "tokenizer.json").exists():
                raise
            sys.stderr.write(f"note: {path / name} is skipped in favor of tokenizer.json: got {error.got}\n")
    return max(loaded, key=lambda tokenizer: tokenizer.vocab_size, default=None)


def write_tokenizer(
    tokenizer: Tokenizer, path: Path, *, special: SpecialIds, is_encoder_decoder: bool
) -> None:
    """Write tokenizer.json, tokenizer_config.json, and the SentencePiece model if there is one.

    Args:
        tokenizer: The tokenizer.
        path: The folder.
        special: Start and end ids. A decoder's text begins with `start`; an encoder's ends with `ends[0]`.
        is_encoder_decoder: Whether the tokenizer is for an encoder-decoder.

    Raises:
        TokenizerError: If tokenizer.json cannot express the type of SentencePiece model.
    """
    library = _library(tokenizer)
    added = special.start
    if is_encoder_decoder:
        added = special.ends[0] if special.ends else None
    if added is not None:
        piece = tokenizer.piece(added)
        template = [f"$A {piece}", piece] if is_encoder_decoder else [f"{piece} $A", piece]
        library.post_processor = TemplateProcessing(single=template[0], special_tokens=[(piece, added)])
    library.save(str(path / "tokenizer.json"))
    if tokenizer.file_name != "tokenizer.json":
        (path / tokenizer.file_name).write_bytes(tokenizer.model_bytes)
    end = special.ends[0] if special.ends else -1
    # A decoder starts with our padding id, which must not be masked.
    pad = tokenizer.pad_id if is_encoder_decoder else end
    named = {"eos_token": end, "pad_token": pad, "unk_token": tokenizer.unk_id}
    if not is_encoder_decoder and special.start is not None:
        named["bos_token"] = special.start
    settings: dict[str, Any] = {"tokenizer_class": "PreTrainedTokenizerFast"}
    settings |= {key: tokenizer.piece(index) for key, index in named.items() if index >= 0}
    settings["clean_up_tokenization_spaces"] = False
    (path / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _library(tokenizer: Tokenizer) -> tokenizers.Tokenizer:
    if tokenizer.file_name == "tokenizer.json":
        return tokenizers.Tokenizer.from_str(decode(tokenizer.model_bytes))
    return _from_sentencepiece(tokenizer.model_bytes)


def _from_sentencepiece(model_bytes: bytes) -> tokenizers.Tokenizer:
    """Convert a SentencePiece model to the tokenizers library."""
    proto = sentencepiece_model_pb2.ModelProto.FromString(model_bytes)
    trained, rules, pieces = proto.trainer_spec, proto.normalizer_spec, proto.pieces
    fallback = bool(trained.byte_fallback)
    if trained.model_type == _UNIGRAM:
        scores = [(piece.piece, piece.score) for piece in pieces]
        unk_id = next(i for i, piece in enumerate(pieces) if piece.type == _UNKNOWN)
        model: Any = models.Unigram(scores, unk_id, fallback)
    elif trained.model_type == _BPE:
        vocab = {piece.piece: index for index, piece in enumerate(pieces)}
        unk = next(piece.piece for piece in pieces if piece.type == _UNKNOWN)
        merges = _merges(pieces)
        model = models.BPE(vocab, merges, unk_token=unk, fuse_unk=True, byte_fallback=fallback)
    else:
        raise TokenizerError(
            "tokenizer",
            got=f"a SentencePiece model of type {trained.model_type}",
            rule="must be a unigram or BPE model to be exported",
            remedy="Export with --tokenizer and a tokenizer.json of the same ids.",
        )
    library = tokenizers.Tokenizer(model)
    steps: list[Any] = []
    if rules.precompiled_charsmap:
        steps.append(normalizers.Precompiled(rules.precompiled_charsmap))
    if rules.remove_extra_whitespaces:
        steps += [normalizers.Replace(Regex("^ +| +$"), ""), normalizers.Replace(Regex(" {2,}"), " ")]
    if rules.add_dummy_prefix:
        steps.append(normalizers.Prepend(_SPACE))
    library.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", _SPACE)])
    fixed = [piece.piece for piece in pieces if piece.type == _USER_DEFINED]
    if fixed:
        either = "|".join(re.escape(piece) for piece in sorted(fixed, key=len, reverse=True))
        library.pre_tokenizer = pre_tokenizers.Split(Regex(either), "isolated")
    shown: list[Any] = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    library.decoder = decoders.Sequence(
        [*shown, decoders.Strip(" ", 1, 0)] if rules.add_dummy_prefix else shown
    )
    specials = [piece.piece for piece in pieces if piece.type in (_UNKNOWN, _CONTROL)]
    library.add_special_tokens([AddedToken(piece, normalized=False, special=True) for piece in specials])
    return library


def _merges(pieces: Any) -> list[tuple[str, str]]:
    """The merges of a BPE model in order; SentencePiece merges the neighbors whose union scores best."""
    rank = {piece.piece: (-piece.score, i) for i, piece in enumerate(pieces) if piece.type == _NORMAL}
    splits = (
        (place, piece[:cut], piece[cut:])
        for piece, place in rank.items()
        for cut in range(1, len(piece))
        if piece[:cut] in rank and piece[cut:] in rank
    )
    return [(left, right) for _, left, right in sorted(splits)]
