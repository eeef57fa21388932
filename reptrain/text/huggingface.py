"""Tokenizers of the Hugging Face `tokenizers` library: tokenizer.json files."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import tokenizers
from tokenizers.pre_tokenizers import ByteLevel

from reptrain.errors import TokenizerError
from reptrain.reading import parse_json
from reptrain.text.ends import NamedEnd
from reptrain.text.tokenizer import EOS_NAMES, Ids, Tokenizer

_PAD = ("<pad>", "[PAD]", "<|pad|>", "<|padding|>", "<|finetune_right_pad_id|>")
_BYTES = frozenset(ByteLevel.alphabet())
_BYTE_PIECE = re.compile(r"<0x[0-9A-F]{2}>")
# A Unicode noncharacter, which is replaced in texts: no text can spell a piece that begins with it.
_MARK = "\U0010fffe"


class HuggingFaceTokenizer(Tokenizer):
    """A tokenizer.json.

    Stored truncation, padding and templates are disabled. In memory, every special piece except unk gets a
    name that no text can spell: `encode_special_tokens` alone does not prevent a unigram or word model from
    matching ``</s>`` in its vocabulary.

    Args:
        model_bytes: The file's content.
        eos: The piece that ends a document, or the end that a file names. None looks for a usual name.

    Raises:
        TokenizerError: If it is not a tokenizer.json, lacks the piece, or has several with usual names.
    """

    file_name = "tokenizer.json"

    def __init__(self, model_bytes: bytes, eos: str | NamedEnd | None = None) -> None:
        super().__init__(model_bytes)
        data = _parse(model_bytes)
        ids = _ids(data)
        added = {str(token["content"]) for token in data["added_tokens"]}
        special = {str(token["content"]) for token in data["added_tokens"] if token.get("special")}
        eos = _eos(eos, ids, added, special)
        pad = next((name for name in _PAD if name in ids), None)
        sentinels = [name for name in _sentinels(ids) if name in ids]
        unk = _unk(data, ids)
        hidden = {*special, *sentinels} - {unk}
        hidden |= {name for name in (eos, pad) if name is not None}
        self.eos_id = -1 if eos is None else ids[eos]
        self.pad_id = -1 if pad is None else ids[pad]
        self.unk_id = -1 if unk is None or unk in hidden else ids[unk]
        self.sentinel_ids = tuple(ids[name] for name in sentinels)
        self._hidden = frozenset(ids[name] for name in hidden)
        self._vocab_size = 1 + max(ids.values())
        if unk in hidden:
            _check_bytes(unk, ids)
            data["model"]["unk_token"] = None
        self._is_byte_level = set(ByteLevel.alphabet()) <= ids.keys()
        self._tokenizer = _build(data, hidden, ids)

    @property
    def vocab_size(self) -> int:
        """One more than the largest id."""
        return self._vocab_size

    def decode(self, ids: npt.ArrayLike) -> str:
        """The text of one sequence of ids; special pieces (pad, EOS, sentinels) are skipped."""
        shown = [index for index in np.asarray(ids, np.int64).tolist() if index not in self._hidden]
        return str(self._tokenizer.decode(shown, skip_special_tokens=False))

    def piece(self, index: int) -> str:
        """The piece as in the vocabulary."""
        return str(self._tokenizer.id_to_token(index) or "").removeprefix(_MARK)

    def _piece_bytes(self, index: int) -> int:
        piece = self.piece(index)
        if index in self._hidden:
            return 0
        if self._is_byte_level and _BYTES.issuperset(piece):
            # Each character represents one byte.
            return len(piece)
        if _BYTE_PIECE.fullmatch(piece):
            return 1
        return len(piece.removeprefix("##").replace("▁", " ").encode())

    def _encode(self, texts: Sequence[str]) -> list[Ids]:
        # One text at a time: a batch would start a thread per core in every worker process.
        return [
            np.array(
                self._tokenizer.encode(text.replace(_MARK, "\ufffd"), add_special_tokens=False).ids, np.int32
            )
            for text in texts
        ]


def _parse(model_bytes: bytes) -> dict[str, Any]:
    try:
        data = parse_json(model_bytes)
    except ValueError as error:
        raise _not_one("no JSON") from error
    model = data.get("model") if isinstance(data, dict) else None
    if not isinstance(model, dict) or not model.get("vocab"):
        keys = (", ".join(list(data)[:8]) if isinstance(data, dict) else "no object") or "no keys"
        raise _not_one(f"JSON with {keys}" if not isinstance(model, dict) else "a model without vocabulary")
    data["added_tokens"] = data.get("added_tokens") or []
    data["truncation"] = data["padding"] = data["post_processor"] = None
    return dict(data)


def _ids(data: Mapping[str, Any]) -> dict[str, int]:
    """The id of every piece, including added ones."""
    vocab = data["model"]["vocab"]
    try:
        pieces = vocab.items() if isinstance(vocab, dict) else ((row[0], i) for i, row in enumerate(vocab))
        added = ((token["content"], token["id"]) for token in data["added_tokens"])
        return {str(piece): int(index) for piece, index in [*pieces, *added]}
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise _not_one("a vocabulary of another form") from error


def _eos(
    asked: str | NamedEnd | None, ids: Mapping[str, int], added: set[str], special: set[str]
) -> str | None:
    if asked is None:
        return _choose_eos(ids, added, special)
    if isinstance(asked, str):
        return _check_eos(asked, added)
    names = {asked.piece} if asked.id is None else {name for name in ids if ids[name] == asked.id}
    # A piece that texts need, such as a line end, cannot be reserved.
    return next((name for name in names if name in ids and (name in added or name in EOS_NAMES)), None)


def _choose_eos(ids: Mapping[str, int], added: set[str], special: set[str]) -> str | None:
    for pieces in (special, added, set(ids)):
        names = [name for name in EOS_NAMES if name in pieces and name in ids]
        if len(names) > 1:
            raise TokenizerError(
                "tokenizer",
                got=f"{' and '.join(names)}",
                rule="must have one end-of-sentence piece",
                remedy="Choose with --eos, or by the eos_token_id of a config.json beside it.",
            )
        if names:
            return names[0]
    return None


def _check_eos(eos: str, added: set[str]) -> str:
    if eos in added or eos in EOS_NAMES:
        return eos
    raise TokenizerError(
        "tokenizer",
        got=repr(eos),
        rule="must have the --eos piece among its added tokens, so that no text encodes to it",
        remedy=f"Name one of {', '.join(sorted(added)[:12]) or 'them (it has none)'}.",
    )


def _sentinels(ids: Mapping[str, int]) -> Iterable[str]:
    index = 0
    while (name := f"<extra_id_{index}>") in ids:
        yield name
        index += 1


def _unk(data: Mapping[str, Any], ids: Mapping[str, int]) -> str | None:
    model = data["model"]
    if isinstance(model["vocab"], list):
        index = model.get("unk_id")
        return None if index is None else str(model["vocab"][index][0])
    name = model.get("unk_token")
    return name if name in ids else None


def _check_bytes(unk: str | None, ids: Mapping[str, int]) -> None:
    """If EOS or pad is also unk, the vocabulary must encode every text without unk."""
    if not set(ByteLevel.alphabet()) <= ids.keys():
        raise TokenizerError(
            "tokenizer",
            got=f"{unk} for both",
            rule="must have an unknown piece that differs from EOS and pad",
            remedy="Choose another EOS with --eos.",
        )


def _build(data: dict[str, Any], hidden: set[str], ids: Mapping[str, int]) -> tokenizers.Tokenizer:
    def name(piece: str) -> str:
        return _MARK + piece if piece in hidden else piece

    model = data["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {name(piece): index for piece, index in model["vocab"].items()}
        if model.get("merges"):
            model["merges"] = _without(model["merges"], hidden, model.get("continuing_subword_prefix") or "")
    else:
        model["vocab"] = [[name(piece), score] for piece, score in model["vocab"]]
    for token in data["added_tokens"]:
        # A normalizer may remove the mark from a name.
        token["normalized"] = token.get("normalized", False) and token["content"] not in hidden
        token["content"] = name(token["content"])
    try:
        tokenizer = tokenizers.Tokenizer.from_str(json.dumps(data))
    except Exception as error:  # The library raises nothing narrower.
        raise _not_one(f"what the library refuses ({error})") from error
    tokenizer.encode_special_tokens = True
    for token in data["added_tokens"]:
        if tokenizer.token_to_id(token["content"]) != token["id"]:
            raise TokenizerError(
                "tokenizer",
                got=f"id {token['id']} for {token['content'].removeprefix(_MARK)}",
                rule="must number its added tokens without gaps",
                remedy="Save it again with the tokenizers library.",
            )
    return tokenizer


def _without(merges: Sequence[Any], hidden: set[str], prefix: str) -> list[Any]:
    """The merges, without those that produce or use a hidden piece."""

    def is_kept(merge: Any) -> bool:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        return hidden.isdisjoint((left, right, left + right.removeprefix(prefix)))

    try:
        return [merge for merge in merges if is_kept(merge)]
    except (TypeError, ValueError) as error:
        raise _not_one("merges of another form") from error


def _not_one(got: str) -> TokenizerError:
    return TokenizerError(
        "tokenizer",
        got=got,
        rule="must be a SentencePiece model or a tokenizer.json",
        remedy="Pass the tokenizer.json that the tokenizers library writes, not its config or vocabulary.",
    )
