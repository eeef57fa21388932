"""tokenizer.json files: encoding, special pieces that no text encodes to, what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tokenizers import Tokenizer as Library

from reptrain.errors import TokenizerError
from reptrain.text import load_tokenizer
from reptrain.text.huggingface import HuggingFaceTokenizer

WORDS = [f"{one}{two}" for one in ("ab", "ca", "do", "ex") for two in ("la", "mi", "so", "ti")]
TEXTS = [f"{one} {two}.\n{two} {one}!" for one in WORDS for two in WORDS]
SPECIAL = ["<unk>", "<pad>", "</s>", "<extra_id_0>", "<extra_id_1>"]
TASKS = Path("/proc/self/task")
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def with_byte_fallback() -> Library:
    """BPE over characters, with a piece for each byte, as Llama and Mistral have."""
    library = Library(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    library.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    library.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(content=" ", left=1, right=0),
        ]
    )
    # Bytes are ordinary pieces, not special ones: a text may need them.
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=SPECIAL + BYTES, show_progress=False)
    library.train_from_iterator(TEXTS, trainer)
    data = json.loads(library.to_str())
    data["added_tokens"] = [token for token in data["added_tokens"] if token["content"] not in BYTES]
    return Library.from_str(json.dumps(data))


def byte_level(vocab_size: int = 320) -> Library:
    """BPE over bytes, as GPT-2 has."""
    library = Library(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    library.train_from_iterator(TEXTS, trainer)
    return library


def unigram() -> Library:
    """Unigram with its special pieces in the vocabulary proper, as T5 has."""
    library = Library(models.Unigram())
    library.pre_tokenizer = pre_tokenizers.Metaspace()
    library.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=60, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
    )
    library.train_from_iterator(TEXTS, trainer)
    return library


def words() -> Library:
    """Whole words, with pieces that are in the vocabulary alone."""
    vocab = {piece: index for index, piece in enumerate(["[UNK]", "[PAD]", "[SEP]", *WORDS])}
    library = Library(models.WordLevel(vocab, unk_token="[UNK]"))
    library.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return library


def read(library: Library, eos: str | None = None, **changes: Any) -> HuggingFaceTokenizer:
    data = json.loads(library.to_str()) | changes
    return HuggingFaceTokenizer(json.dumps(data).encode(), eos)


@pytest.fixture(scope="module")
def fallback() -> HuggingFaceTokenizer:
    return read(with_byte_fallback())


@settings(deadline=None, max_examples=50)
@given(st.text())
def test_encode_with_byte_fallback_gives_back_every_text(fallback: HuggingFaceTokenizer, text: str) -> None:
    (ids,) = fallback.encode([text])
    assert fallback.decode(ids) == text
    assert fallback.unk_id not in ids


def test_encode_spells_rare_characters_in_bytes(fallback: HuggingFaceTokenizer) -> None:
    (ids,) = fallback.encode(["語"])
    assert [fallback.piece(index) for index in ids] == ["▁", "<0xE8>", "<0xAA>", "<0x9E>"]


def test_encode_is_that_of_the_library(fallback: HuggingFaceTokenizer) -> None:
    library = with_byte_fallback()
    texts = [*TEXTS, "héllo 語"]
    expected = [library.encode(text, add_special_tokens=False).ids for text in texts]
    assert [ids.tolist() for ids in fallback.encode(texts)] == expected


@pytest.mark.parametrize("make", [with_byte_fallback, byte_level, unigram, words])
def test_encode_never_gives_a_special_piece(make: Any) -> None:
    library = make()
    tokenizer = read(library)
    names = (*SPECIAL, "<|endoftext|>", "[SEP]", "[PAD]")
    special = [piece for piece in names if library.token_to_id(piece) is not None]
    ids = {library.token_to_id(piece) for piece in special} - {tokenizer.unk_id}
    assert {tokenizer.eos_id} <= ids and tokenizer.pad_id in {-1, *ids}
    spelled = [
        f"{left}{piece}{right}" for piece in special for left in ("", "ab ", "ab") for right in ("", " ")
    ]
    spelled += ["".join(special), "\U0010fffe</s>", "\U0010fffe[SEP]"]
    assert ids.isdisjoint(index for found in tokenizer.encode(spelled) for index in found.tolist())
    assert [tokenizer.piece(index) for index in sorted(ids)] == [library.id_to_token(i) for i in sorted(ids)]


def test_decode_leaves_special_pieces_out(fallback: HuggingFaceTokenizer) -> None:
    (ids,) = fallback.encode(["abla so"])
    assert fallback.decode([*ids, fallback.eos_id, fallback.pad_id, *fallback.sentinel_ids]) == "abla so"


def test_special_pieces_are_found_by_their_usual_names(fallback: HuggingFaceTokenizer) -> None:
    assert (fallback.unk_id, fallback.pad_id, fallback.eos_id) == (0, 1, 2)
    assert fallback.sentinel_ids == (3, 4) and fallback.num_sentinels == 2
    gpt = read(byte_level())
    assert (gpt.unk_id, gpt.pad_id, gpt.eos_id, gpt.sentinel_ids) == (-1, -1, 0, ())
    assert gpt.vocab_size == byte_level().get_vocab_size() and gpt.dtype == "uint16"


def test_stored_truncation_padding_and_template_are_switched_off() -> None:
    library = byte_level()
    plain = read(library)
    library.add_special_tokens(["<|bos|>"])
    bos = library.token_to_id("<|bos|>")
    library.enable_truncation(3)
    library.enable_padding(length=64)
    library.post_processor = processors.TemplateProcessing(
        single="<|bos|> $A <|endoftext|>", special_tokens=[("<|bos|>", bos), ("<|endoftext|>", 0)]
    )
    assert library.encode(TEXTS[0]).ids[0] == bos
    assert [ids.tolist() for ids in read(library).encode(TEXTS)] == [i.tolist() for i in plain.encode(TEXTS)]


def test_eos_may_be_any_added_token() -> None:
    library = byte_level()
    library.add_tokens([AddedToken("<|stop|>"), AddedToken("<|turn|>", special=True)])
    for piece in ("<|stop|>", "<|turn|>"):
        tokenizer = read(library, piece)
        assert tokenizer.eos_id == library.token_to_id(piece)
        assert tokenizer.eos_id not in tokenizer.encode([f"a {piece}{piece}"])[0]
    with pytest.raises(TokenizerError, match=r"among its added tokens.*but got 'ab'.*<\|endoftext\|>"):
        read(library, "ab")


def test_eos_is_not_guessed_among_several() -> None:
    library = byte_level()
    library.add_special_tokens(["</s>"])
    with pytest.raises(TokenizerError, match=r"got </s> and <\|endoftext\|>\. Choose with --eos"):
        read(library)
    assert read(library, "</s>").eos_id == library.token_to_id("</s>")


def test_eos_that_is_unk_too_is_refused_unless_every_byte_is_known() -> None:
    library = byte_level()
    data = json.loads(library.to_str())
    data["model"]["unk_token"] = "<|endoftext|>"
    tokenizer = HuggingFaceTokenizer(json.dumps(data).encode())
    assert (tokenizer.unk_id, tokenizer.eos_id) == (-1, 0)
    del data["model"]["vocab"]["Ġ"]
    data["model"]["merges"] = []
    with pytest.raises(TokenizerError, match="must have an unknown piece that differs from EOS"):
        HuggingFaceTokenizer(json.dumps(data).encode())


@pytest.mark.skipif(not TASKS.exists(), reason="needs /proc to count the library's threads")
def test_encode_starts_no_threads(fallback: HuggingFaceTokenizer) -> None:
    before = len(list(TASKS.iterdir()))
    fallback.encode(TEXTS * 10)
    assert len(list(TASKS.iterdir())) == before


@pytest.mark.parametrize("make", [with_byte_fallback, byte_level])
def test_load_tokenizer_recognizes_the_kind_by_content(tmp_path: Path, make: Any) -> None:
    path = tmp_path / "tokenizer.model"
    path.write_text(make().to_str())
    tokenizer = load_tokenizer(path)
    assert isinstance(tokenizer, HuggingFaceTokenizer) and tokenizer.file_name == "tokenizer.json"
    assert tokenizer.model_bytes == path.read_bytes()
    path.write_text(json.dumps(json.loads(path.read_text()), indent=1))
    assert load_tokenizer(path).fingerprint != tokenizer.fingerprint


@pytest.mark.parametrize(
    ("content", "got"),
    [
        ("", "0 bytes"),
        ("{}", "JSON with no keys"),
        ('{"model_type": "llama", "hidden_size": 4}', "JSON with model_type, hidden_size"),
        ('{"a": 1, "b": 2}', "JSON with a, b"),
        ('{"model": {"type": "BPE", "vocab": {}}}', "a model without vocabulary"),
        ('{"model": {"type": "BPE", "vocab": {"a": "b"}}}', "a vocabulary of another form"),
        ('{"model": {"type": "Other", "vocab": {"a": 0}}}', "what the library refuses"),
        ('{"model": }', "no JSON"),
        ('{"model": ' + "[" * 100_000, "100010 other bytes"),
        ("words", "5 other bytes"),
    ],
)
def test_load_refuses_other_files(tmp_path: Path, content: str, got: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text(content)
    with pytest.raises(
        TokenizerError, match=rf"json: must be a SentencePiece model or a tokenizer\.json, but got {got}"
    ):
        load_tokenizer(path)


def two_ends() -> Library:
    """BPE over bytes with two special pieces of usual names."""
    library = byte_level()
    library.add_special_tokens(["</s>"])
    return library


@pytest.mark.parametrize(
    ("name", "content", "eos"),
    [
        ("config.json", '{"eos_token_id": END}', "</s>"),
        ("config.json", '{"eos_token_id": [END, 0]}', "</s>"),
        ("generation_config.json", '{"eos_token_id": END}', "</s>"),
        ("tokenizer_config.json", '{"eos_token": "</s>"}', "</s>"),
        ("tokenizer_config.json", '{"eos_token": {"content": "</s>", "special": true}}', "</s>"),
        ("model.yaml", "end_ids: [END]", "</s>"),
        ("manifest.json", '{"tokenizer_file": "tokenizer.json", "eos_id": END}', "</s>"),
        ("config.json", '\ufeff{"eos_token_id": 0}', "<|endoftext|>"),
        # The id of a piece that texts need, or of none.
        ("config.json", '{"eos_token_id": 40}', None),
        ("config.json", '{"eos_token_id": 100000}', None),
    ],
)
def test_load_takes_the_end_that_a_file_beside_it_names(
    tmp_path: Path, name: str, content: str, eos: str | None
) -> None:
    library = two_ends()
    path = tmp_path / "tokenizer.json"
    path.write_text(library.to_str())
    (tmp_path / name).write_text(content.replace("END", str(library.token_to_id("</s>"))), encoding="utf-8")
    tokenizer = load_tokenizer(path)
    assert tokenizer.eos_id == (-1 if eos is None else library.token_to_id(eos))
    # What the caller says comes first, and so does a file that is read before another.
    assert load_tokenizer(path, "<|endoftext|>").eos_id == 0
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<|endoftext|>"}')
    assert load_tokenizer(path).eos_id == (0 if name == "tokenizer_config.json" else tokenizer.eos_id)


@pytest.mark.parametrize("content", ["{}", '{"eos_token_id": null}', '{"eos_token_id": true}', "[]"])
def test_load_tokenizer_does_not_guess_between_two_ends(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_text(two_ends().to_str())
    for name in ("config.json", "manifest.json"):
        (tmp_path / name).write_text(content)
    with pytest.raises(TokenizerError, match=r"Choose with --eos, or by the eos_token_id of a config\.json"):
        load_tokenizer(tmp_path / "tokenizer.json")
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(
        TokenizerError, match=r"config\.json.*must be readable, because it may declare the EOS"
    ):
        load_tokenizer(tmp_path / "tokenizer.json")


@pytest.mark.parametrize("form", ["texts", "pairs"])
def test_merges_that_build_a_special_piece_are_left_out(form: str) -> None:
    library = with_byte_fallback()
    data = json.loads(library.to_str())
    vocab = data["model"]["vocab"]
    for piece in ("<", "/", "s", ">", "</", "s>"):
        vocab.setdefault(piece, len(vocab))
    added: list[Any] = [["<", "/"], ["s", ">"], ["</", "s>"], ["</s>", ">"]]
    vocab["</s>>"] = len(vocab)
    merges = [*(merge.split(" ") if isinstance(merge, str) else merge for merge in data["model"]["merges"])]
    merges += added
    data["model"]["merges"] = [" ".join(merge) for merge in merges] if form == "texts" else merges
    Library.from_str(json.dumps(data))
    tokenizer = HuggingFaceTokenizer(json.dumps(data).encode())
    (ids,) = tokenizer.encode(["ab</s>>"])
    assert tokenizer.eos_id == 2 and 2 not in ids and tokenizer.decode(ids) == "ab</s>>"
    assert [tokenizer.piece(index) for index in ids][-3:] == ["</", "s>", ">"]


def test_normalizers_make_no_special_piece() -> None:
    library = words()
    ascii_only = normalizers.Replace(Regex("[^ -~]"), "")
    library.normalizer = normalizers.Sequence([ascii_only, normalizers.Replace("stop", "[SEP]")])
    library.add_tokens([AddedToken("[SEP]", normalized=True, special=False)])
    tokenizer = read(library)
    assert tokenizer.eos_id == 2
    for text in ("abla [SEP]", "stop", "\U0010fffe[SEP]"):
        assert 2 not in tokenizer.encode([text])[0]
