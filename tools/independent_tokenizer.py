"""The special ids of a store's tokenizer, read from its file without reptrain.

Written from docs/format.md; see independent_audit.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from independent_windows import Store

PADS = ("<pad>", "[PAD]", "<|pad|>", "<|padding|>", "<|finetune_right_pad_id|>")


def special_ids(store: Store) -> tuple[int, list[int]]:
    """The padding id of a store's tokenizer, or -1, and its sentinels in the order of use."""
    path = store.folder / store.manifest["tokenizer_file"]
    pad, names = sentencepiece_ids(path) if path.suffix == ".model" else huggingface_ids(path)
    sentinels: list[int] = []
    while f"<extra_id_{len(sentinels)}>" in names:
        sentinels.append(names[f"<extra_id_{len(sentinels)}>"])
    return pad, sentinels


def unknown_id(path: Path) -> int:
    """The id of unknown text in a tokenizer file, or -1."""
    if path.suffix == ".model":
        unknown = 0
        for field, value in protobuf(path.read_bytes()):
            if field == 2:
                unknown = dict(protobuf(value)).get(40, unknown)
        return unknown
    data = json.loads(path.read_bytes())
    model, names = data["model"], huggingface_ids(path)[1]
    if isinstance(model["vocab"], list):
        number = model.get("unk_id")
        return -1 if number is None else int(number)
    return int(names.get(model.get("unk_token"), -1))


def huggingface_ids(path: Path) -> tuple[int, dict[str, int]]:
    """The padding id, or -1, and the id of each piece of a tokenizer.json."""
    data = json.loads(path.read_bytes())
    vocab = data["model"]["vocab"]
    names = dict(vocab) if isinstance(vocab, dict) else {row[0]: i for i, row in enumerate(vocab)}
    names |= {token["content"]: token["id"] for token in data.get("added_tokens") or []}
    return next((names[name] for name in PADS if name in names), -1), names


def sentencepiece_ids(path: Path) -> tuple[int, dict[str, int]]:
    """The padding id, or -1, and the ids of the control pieces of a SentencePiece model (a protocol buffer).

    ModelProto: pieces 1, trainer_spec 2. SentencePiece: piece 1, type 3 (3: control). TrainerSpec: pad_id 43.
    """
    pad, names, number = -1, {}, 0
    for field, value in protobuf(path.read_bytes()):
        if field == 1:
            piece = dict(protobuf(value))
            if piece.get(3, 1) == 3:
                names[piece[1].decode()] = number
            number += 1
        if field == 2:
            # The message may come in parts, which are merged.
            pad = dict(protobuf(value)).get(43, pad)
    return (pad if pad < 2**63 else -1), names


def protobuf(data: bytes) -> Iterator[tuple[int, Any]]:
    """The fields of a message by number: int for a varint, bytes for any other."""
    place = 0

    def varint() -> int:
        nonlocal place
        value = shift = 0
        while True:
            byte = data[place]
            place += 1
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value

    while place < len(data):
        tag = varint()
        kind = tag & 7
        if kind == 0:
            yield tag >> 3, varint()
            continue
        size = varint() if kind == 2 else 4 if kind == 5 else 8
        yield tag >> 3, data[place : place + size]
        place += size
