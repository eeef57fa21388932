"""Bytes that each id represents add up to the bytes of a text."""

from __future__ import annotations

from pathlib import Path

import pytest
import tokenizers
from tokenizers import decoders, models, pre_tokenizers, trainers

from reptrain.text import Tokenizer, load_tokenizer, train_tokenizer

TEXTS = [f"Straße {n}: 山水 and ünï-cödé, بيت نهر 🙂 line {n}\n  two" for n in range(60)]


@pytest.fixture(params=["byte-level", "unigram"])
def tokenizer(request: pytest.FixtureRequest, tmp_path: Path) -> Tokenizer:
    """A byte-level BPE of the tokenizers library, or a unigram model of ours."""
    if request.param == "unigram":
        return train_tokenizer(iter(TEXTS), tmp_path / "m.model", vocab_size=70, num_sentinels=4)
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["</s>"], initial_alphabet=alphabet)
    made.train_from_iterator(TEXTS, trainer)
    made.save(str(tmp_path / "tokenizer.json"))
    return load_tokenizer(tmp_path / "tokenizer.json")


def test_byte_lengths_add_up_to_the_bytes_of_the_text(tokenizer: Tokenizer) -> None:
    lengths = tokenizer.byte_lengths()
    assert lengths.shape == (tokenizer.vocab_size,)
    for text, ids in zip(TEXTS, tokenizer.encode(TEXTS), strict=True):
        if tokenizer.unk_id not in ids:
            assert lengths[ids].sum() == len(text.encode())
    assert lengths[tokenizer.eos_id] == 0 and not lengths[list(tokenizer.sentinel_ids)].any()
    assert any(tokenizer.unk_id not in ids for ids in tokenizer.encode(TEXTS))
