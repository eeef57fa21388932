"""SentencePiece models: training, loading, encoding."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from reptrain.errors import TokenizerError
from reptrain.text import Tokenizer, load_tokenizer, train_tokenizer
from reptrain.text.tokenizer import token_dtype

ALPHABET = "abcdefghij XYZ.,\n\té–"
WORDS = ["".join(word) for word in itertools.product("abcdef", "ghij", ("", "X", "Yé", "Z–,\t"))]
TEXTS = [f"{one} {two}.\n  {two}  {one}" for one in WORDS for two in WORDS[::7]]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    path = tmp_path_factory.mktemp("tokenizer") / "a.model"
    train_tokenizer(iter(TEXTS), path, vocab_size=64, num_sentinels=5)
    return load_tokenizer(path)


def test_train_tokenizer_lays_the_ids_out_as_t5_does(tokenizer: Tokenizer) -> None:
    assert (tokenizer.vocab_size, tokenizer.num_sentinels) == (64, 5)
    assert [tokenizer.pad_id, tokenizer.eos_id, tokenizer.unk_id] == [0, 1, 2]
    assert tokenizer.sentinel_ids == (63, 62, 61, 60, 59)
    assert [tokenizer.piece(index) for index in (0, 1, 2, 3, 63)] == [
        "<pad>",
        "</s>",
        "<unk>",
        "\n",
        "<extra_id_0>",
    ]


def test_train_tokenizer_is_deterministic(tokenizer: Tokenizer, tmp_path: Path) -> None:
    again = train_tokenizer(iter(TEXTS), tmp_path / "b.model", vocab_size=64, num_sentinels=5)
    assert again.model_bytes == tokenizer.model_bytes == (tmp_path / "b.model").read_bytes()
    assert again.fingerprint == tokenizer.fingerprint
    other = train_tokenizer(iter(TEXTS[1:]), tmp_path / "b.model", vocab_size=64, num_sentinels=6)
    assert other.fingerprint != tokenizer.fingerprint


@settings(deadline=None)
@given(st.text(ALPHABET, max_size=50))
def test_decode_inverts_encode(tokenizer: Tokenizer, text: str) -> None:
    (ids,) = tokenizer.encode([text])
    assert ids.dtype == np.uint16
    assert tokenizer.decode(ids) == text
    assert tokenizer.unk_id not in ids


@settings(deadline=None)
@given(st.text())
def test_encode_never_gives_a_control_piece(tokenizer: Tokenizer, text: str) -> None:
    control = {tokenizer.pad_id, tokenizer.eos_id, *tokenizer.sentinel_ids}
    for spelled in (text, f"<extra_id_0>{text}</s><pad>"):
        assert control.isdisjoint(tokenizer.encode([spelled])[0].tolist())


def test_encode_reads_lines_longer_than_sentencepiece_would_train_on(tmp_path: Path) -> None:
    texts = [*TEXTS, "ab " * 20_000, "q" * 9_000]
    tokenizer = train_tokenizer(iter(texts), tmp_path / "a.model", vocab_size=64, num_sentinels=2)
    assert [tokenizer.decode(ids) for ids in tokenizer.encode(texts)] == texts


def test_train_tokenizer_without_sentinels(tmp_path: Path) -> None:
    tokenizer = train_tokenizer(iter(TEXTS), tmp_path / "a.model", vocab_size=50, num_sentinels=0)
    assert (tokenizer.vocab_size, tokenizer.sentinel_ids) == (50, ())


@pytest.mark.parametrize(
    ("texts", "vocab_size", "remedy"),
    [
        (["a b c"] * 10, 2048, "Set vocab_size to at most"),
        ([chr(0x4E00 + index) for index in range(300)], 128, "Set vocab_size to more than 33"),
        ([], 2048, "Raise vocab_size, or give other text"),
        (["a"], 34, "Raise vocab_size"),
    ],
)
def test_train_tokenizer_refuses_a_size_that_does_not_fit(
    tmp_path: Path, texts: list[str], vocab_size: int, remedy: str
) -> None:
    with pytest.raises(TokenizerError, match=remedy):
        train_tokenizer(iter(texts), tmp_path / "a.model", vocab_size=vocab_size)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("texts", "few", "many"),
    [
        ([f"a word, {'xyz'[n % 3]} and another {n % 10}" for n in range(99)], 20, 2047),
        # More characters than the default has pieces.
        ([chr(0x4E00 + n % 3000) + chr(0x4E00 + n % 1501) for n in range(9000)], 3032, 9000),
    ],
    ids=["few pieces", "many characters"],
)
def test_train_tokenizer_fits_a_default_size_to_the_text(
    tmp_path: Path, texts: list[str], few: int, many: int
) -> None:
    made = train_tokenizer(texts, tmp_path / "a.model", fit=True)
    assert few < made.vocab_size < many and made.vocab_size != 2048 and made.num_sentinels == 32
    assert made.decode(made.encode([texts[5]])[0]) == texts[5]


def test_train_tokenizer_changes_no_size_that_fits(tmp_path: Path) -> None:
    one, other = (
        train_tokenizer(TEXTS, tmp_path / f"{fit}.model", vocab_size=64, num_sentinels=5, fit=fit)
        for fit in (False, True)
    )
    assert one.model_bytes == other.model_bytes


def test_train_tokenizer_refuses_a_text_that_no_size_fits(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="give other text"):
        train_tokenizer([], tmp_path / "a.model", fit=True)


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x0a\x03abc"])
def test_load_refuses_other_files(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.model"
    path.write_bytes(content)
    with pytest.raises(TokenizerError, match=r"a\.model: must be a SentencePiece model"):
        load_tokenizer(path)


def test_load_refuses_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="No such file"):
        load_tokenizer(tmp_path / "none.model")


def test_token_dtype_is_the_smallest_that_holds_every_id() -> None:
    assert token_dtype(65_536) == np.uint16
    assert token_dtype(65_537) == np.uint32
