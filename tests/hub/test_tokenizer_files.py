"""Tokenizers of folders: our ids equal those of transformers."""

from __future__ import annotations

import io
import json
from itertools import islice
from pathlib import Path

import pytest
import sentencepiece
from sentencepiece import sentencepiece_model_pb2
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, pre_tokenizers, trainers

from reptrain.errors import TokenizerError
from reptrain.hub.tokenizer_files import SpecialIds, read_tokenizer, special_ids, write_tokenizer
from reptrain.text import SentencePieceTokenizer, Tokenizer, load_tokenizer, stdlib_documents, train_tokenizer

transformers = pytest.importorskip("transformers", reason="transformers is not installed: no parity")

TEXTS = [document.text[:3000] for document in islice(stdlib_documents(), 60)]
ODD = [
    "",
    " ",
    "  two  spaces \n\n\tand a tab ",
    "naïve “quotes” 漢字 🙂 ½ ﬁ",
    "x" * 300,
    "\n",
    "a\nb",
    " lead",
]


def trained_here(tmp_path: Path) -> Tokenizer:
    return train_tokenizer(iter(TEXTS), tmp_path / "made.model", vocab_size=400, num_sentinels=8)


def sentencepiece_of(**settings: object) -> Tokenizer:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS), model_writer=model, vocab_size=500, minloglevel=2, num_threads=1,
        **settings,
    )  # fmt: skip
    return SentencePieceTokenizer(model.getvalue())


def byte_level(tmp_path: Path) -> Tokenizer:
    library = Library(models.BPE())
    library.pre_tokenizer, library.decoder = pre_tokenizers.ByteLevel(), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=["<|endoftext|>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    library.train_from_iterator(TEXTS, trainer)
    library.save(str(tmp_path / "made.json"))
    return load_tokenizer(tmp_path / "made.json")


KINDS = {
    "ours": trained_here,
    "t5": lambda _: sentencepiece_of(model_type="unigram", pad_id=0, eos_id=1, unk_id=2, bos_id=-1),
    "llama": lambda _: sentencepiece_of(
        model_type="bpe", byte_fallback=True, normalization_rule_name="identity",
        remove_extra_whitespaces=False,
    ),
    "byte-level": byte_level,
}  # fmt: skip


def score(tokenizer: Tokenizer, ids: list[int]) -> float:
    proto = sentencepiece_model_pb2.ModelProto.FromString(tokenizer.model_bytes)
    return sum(proto.pieces[int(index)].score for index in ids)


@pytest.mark.parametrize("is_encoder_decoder", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_auto_tokenizer_gives_our_ids(kind: str, is_encoder_decoder: bool, tmp_path: Path) -> None:
    tokenizer = KINDS[kind](tmp_path)
    special = special_ids(tokenizer)
    model_type = "t5" if is_encoder_decoder else "llama"
    (tmp_path / "config.json").write_text(f'{{"model_type": "{model_type}"}}')
    write_tokenizer(tokenizer, tmp_path, special=special, is_encoder_decoder=is_encoder_decoder)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ties = 0
    for text, ids in zip(TEXTS + ODD, tokenizer.encode(TEXTS + ODD), strict=True):
        expected = [*ids, tokenizer.eos_id] if is_encoder_decoder else [special.start, *ids]
        found = theirs(text).input_ids
        if kind in ("ours", "t5") and found != expected:
            # Of two ways to cut a ruled line that score the same, the libraries take different ones.
            ties += 1
            assert score(tokenizer, found) == pytest.approx(score(tokenizer, expected), rel=1e-6)
        else:
            assert found == expected, text[:80]
        if tokenizer.unk_id not in ids:
            assert theirs.decode(ids, skip_special_tokens=True) == tokenizer.decode(ids)
    assert ties < len(TEXTS) / 5
    assert theirs.eos_token_id == tokenizer.eos_id
    if kind == "ours":
        assert theirs("<extra_id_3>").input_ids.count(tokenizer.sentinel_ids[3]) == 1
    again = read_tokenizer(tmp_path)
    assert again is not None
    assert again.model_bytes == tokenizer.model_bytes or kind == "byte-level"


def with_two_ends(tmp_path: Path) -> Tokenizer:
    library = Library.from_str(byte_level(tmp_path).model_bytes.decode())
    library.add_special_tokens(["</s>"])
    library.save(str(tmp_path / "two.json"))
    return load_tokenizer(tmp_path / "two.json", "</s>")


@pytest.mark.parametrize("is_encoder_decoder", [True, False])
def test_read_tokenizer_uses_the_end_that_the_folder_names(tmp_path: Path, is_encoder_decoder: bool) -> None:
    tokenizer = with_two_ends(tmp_path)
    folder = tmp_path / "hf"
    folder.mkdir()
    write_tokenizer(tokenizer, folder, special=special_ids(tokenizer), is_encoder_decoder=is_encoder_decoder)
    for name, content in (("config.json", f'{{"eos_token_id": {tokenizer.eos_id}}}'), ("config.json", "{}")):
        (folder / name).write_text(content)
        found = read_tokenizer(folder)
        assert found is not None and found.eos_id == tokenizer.eos_id != 0


def test_read_tokenizer_skips_a_file_of_another_format(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tokenizer = byte_level(tmp_path)
    (tmp_path / "tokenizer.json").write_bytes(tokenizer.model_bytes)
    for name, content in (
        ("tokenizer.model", "IQ== 0\nIg== 1\n"),
        ("spiece.model", "version https://git-lfs"),
    ):
        (tmp_path / name).write_text(content)
        found = read_tokenizer(tmp_path)
        assert found is not None and found.fingerprint == tokenizer.fingerprint
        assert f"{name} is skipped in favor of tokenizer.json" in capsys.readouterr().err
    (tmp_path / "tokenizer.json").write_text("version https://git-lfs")
    with pytest.raises(
        TokenizerError, match=r"tokenizer\.json: must be a SentencePiece model or a tokenizer"
    ):
        read_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").unlink()
    with pytest.raises(TokenizerError, match=r"tokenizer\.model: must be a SentencePiece model"):
        read_tokenizer(tmp_path)


@pytest.mark.parametrize("is_encoder_decoder", [True, False])
def test_write_tokenizer_of_a_model_without_an_end(tmp_path: Path, is_encoder_decoder: bool) -> None:
    special = SpecialIds(None, ())
    write_tokenizer(byte_level(tmp_path), tmp_path, special=special, is_encoder_decoder=is_encoder_decoder)
    assert "eos_token" not in json.loads((tmp_path / "tokenizer_config.json").read_text())
