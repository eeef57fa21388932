"""Ids of published tokenizers, held against those that their own libraries gave."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, pre_tokenizers

from reptrain.text import load_tokenizer

ROOT = Path(__file__).resolve().parents[2]
DATA = Path(os.environ.get("REPTRAIN_DATA") or ROOT.parent / "shared" / "data") / "tokenizers"
needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"no folder {DATA}; REPTRAIN_DATA names another")


def parity(name: str) -> list[dict[str, Any]]:
    # Texts hold Unicode's own line separators.
    lines = (DATA / name / "parity.jsonl").read_text(encoding="utf-8").split("\n")
    return [json.loads(line) for line in lines if line]


def gpt2(path: Path) -> Path:
    """GPT-2's vocabulary and merges as a tokenizer.json."""
    vocab = json.loads((DATA / "gpt2_bpe_50k" / "encoder.json").read_text(encoding="utf-8"))
    _, *lines = (DATA / "gpt2_bpe_50k" / "vocab.bpe").read_text(encoding="utf-8").split("\n")
    merges = [(left, right) for left, right in (line.split(" ") for line in lines if line)]
    library = Library(models.BPE(vocab, merges))
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    path.write_text(library.to_str(), encoding="utf-8")
    return path


@needs_data
@pytest.mark.parametrize(
    ("name", "file", "eos", "pad"),
    [("albert_30k", "spiece.model", "[SEP]", 0), ("mistral_v1_32k", "tokenizer.model", "</s>", -1)],
)
def test_encode_equals_sentencepiece(name: str, file: str, eos: str, pad: int) -> None:
    tokenizer = load_tokenizer(DATA / name / file)
    rows = parity(name)
    assert len(rows) > 100
    found = tokenizer.encode([row["text"] for row in rows])
    assert [ids.tolist() for ids in found] == [row["ids"] for row in rows]
    assert (tokenizer.piece(tokenizer.eos_id), tokenizer.pad_id) == (eos, pad)


@needs_data
def test_encode_gives_gpt2s_ids_and_texts_back(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(gpt2(tmp_path / "gpt2"))
    rows = parity("gpt2_bpe_50k")
    assert len(rows) > 100
    found = tokenizer.encode([row["text"] for row in rows])
    assert [ids.tolist() for ids in found] == [row["ids"] for row in rows]
    assert [tokenizer.decode(ids) for ids in found] == [row["text"] for row in rows]
    assert (tokenizer.vocab_size, tokenizer.eos_id, tokenizer.dtype) == (50_257, 50_256, "uint16")


@needs_data
@pytest.mark.parametrize("name", ["albert_30k", "mistral_v1_32k", "gpt2_bpe_50k"])
def test_encode_of_a_long_text_in_parts_is_that_of_the_whole(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = gpt2(tmp_path / "gpt2") if name.startswith("gpt2") else next((DATA / name).glob("*.model"))
    tokenizer = load_tokenizer(path)
    # Without line ends at the texts' seams alone, and with runs of spaces and of one letter.
    text = "\n\n".join(row["text"] + "  " + row["text"] for row in parity(name)) + "a" * 300 + " " * 100 + "b"
    (whole,) = tokenizer.encode([text])
    monkeypatch.setattr("reptrain.text.tokenizer._MOST_CHARACTERS", 2_000)
    parts, short = tokenizer.encode([text, "short"])
    assert parts.tolist() == whole.tolist() and parts.dtype == whole.dtype
    assert short.tolist() == tokenizer.encode(["short"])[0].tolist()
