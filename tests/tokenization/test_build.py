"""`tokenize`: what gets in, what stays out, and what is refused."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest
import sentencepiece

from reptrain.errors import StoreError, TextError, TokenizerError
from reptrain.store import Split, Store, open_store, verify
from reptrain.text import SentencePieceTokenizer, Tokenizer
from reptrain.tokenization import tokenize

FilesOf = Callable[[Path], dict[str, bytes]]
SPLITS = ("train", "select", "report")


def documents_of(split: Split, tokenizer: Tokenizer) -> list[tuple[str, str]]:
    """Id and text of every document; each must end with its only EOS."""
    found = []
    for index, length in enumerate(split.lengths(0, split.num_documents)):
        tokens = split.read([index], [0], [length])
        assert (tokens == tokenizer.eos_id).nonzero()[0].tolist() == [length - 1]
        found.append((split.document_id(index), tokenizer.decode(tokens[:-1])))
    return found


def all_documents(store: Store) -> list[tuple[str, str]]:
    tokenizer = store.tokenizer()
    return [item for name in SPLITS for item in documents_of(store.split(name), tokenizer)]


def test_tokenize_keeps_the_first_of_equal_texts_in_order(
    corpus: Path, model: Path, texts: list[str], tmp_path: Path
) -> None:
    manifest = tokenize([corpus], tmp_path / "store", tokenizer=model, held_out_fraction=0.2)
    store = open_store(tmp_path / "store")
    first: dict[str, str] = {}
    for index, text in enumerate(texts):
        if text.strip():
            first.setdefault(text, f"d{index}")
    assert sorted(all_documents(store)) == sorted((name, text) for text, name in first.items())
    for name in SPLITS:
        numbers = [int(key[1:]) for key, _ in documents_of(store.split(name), store.tokenizer())]
        assert numbers == sorted(numbers)
    num_empty = sum(not text.strip() for text in texts)
    counts = manifest.counts
    assert (counts.read, counts.empty, counts.kept) == (len(texts), num_empty, len(first))
    assert counts.duplicates == len(texts) - num_empty - len(first)
    assert len(manifest.splits["train"].shards) > 3


def test_tokenize_counts_tokens_bytes_and_sources(
    corpus: Path, model: Path, texts: list[str], tmp_path: Path
) -> None:
    (tmp_path / "more").mkdir()
    (tmp_path / "more" / "b.txt").write_text("a store token")
    (tmp_path / "more" / ".hidden.txt").write_text("not this")
    manifest = tokenize([corpus, tmp_path / "more"], tmp_path / "store", tokenizer=model)
    store = open_store(tmp_path / "store")
    kept = all_documents(store)
    infos = manifest.splits.values()
    assert sum(info.text_bytes for info in infos) == sum(len(text.encode()) for _, text in kept)
    assert sum(info.tokens for info in infos) == sum(store.split(name).num_tokens for name in SPLITS)
    assert [(s.name, s.documents) for s in manifest.sources] == [("web", len(kept) - 1), ("more", 1)]
    assert sum(s.tokens for s in manifest.sources) == sum(info.tokens for info in infos)
    assert [item.name for item in manifest.inputs] == ["web.jsonl", "more/b.txt"]
    assert ("b.txt", "a store token") in kept


def test_tokenize_with_dedup_none_keeps_equal_texts_on_one_side(
    corpus: Path, model: Path, texts: list[str], tmp_path: Path
) -> None:
    manifest = tokenize([corpus], tmp_path / "s", tokenizer=model, dedup="none", held_out_fraction=0.5)
    assert manifest.counts.duplicates == 0
    assert manifest.counts.kept == sum(bool(text.strip()) for text in texts)
    store = open_store(tmp_path / "s")
    sides = [{text for _, text in documents_of(store.split(name), store.tokenizer())} for name in SPLITS]
    assert sides[0].isdisjoint(sides[1] | sides[2]) and sides[1].isdisjoint(sides[2])


def test_tokenize_gives_the_same_bytes_for_any_number_of_processes(
    corpus: Path, tmp_path: Path, files_of: FilesOf
) -> None:
    one = tokenize([corpus], tmp_path / "a", vocab_size=80, num_sentinels=4)
    three = tokenize([corpus], tmp_path / "b", vocab_size=80, num_sentinels=4, processes=3)
    assert one == three
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")


def test_tokenize_fingerprint_hangs_on_the_content_alone(
    corpus: Path, model: Path, texts: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tokenize([corpus], tmp_path / "a", tokenizer=model)
    packed = tmp_path / "elsewhere.jsonl.gz"
    packed.write_bytes(gzip.compress(corpus.read_bytes()))
    monkeypatch.setattr("reptrain.tokenization.jobs._SMALLEST_JOB_BYTES", 1_500)
    cut = tokenize([corpus], tmp_path / "b", tokenizer=model)
    assert len(cut.splits["train"].shards) > len(base.splits["train"].shards)
    assert cut.fingerprint == base.fingerprint
    assert tokenize([packed], tmp_path / "c", tokenizer=model).fingerprint == base.fingerprint
    other = tmp_path / "other.jsonl"
    other.write_text(corpus.read_text().replace(texts[0], texts[0] + "!", 1))
    assert tokenize([other], tmp_path / "d", tokenizer=model).fingerprint != base.fingerprint


def test_tokenize_trains_on_the_training_text_alone(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text("".join(json.dumps({"text": f"text {chr(0x4E00 + n)}"}) + "\n" for n in range(60)))
    tokenize([path], tmp_path / "s", vocab_size=50, num_sentinels=0, held_out_fraction=0.3)
    store = open_store(tmp_path / "s")
    tokenizer = store.tokenizer()
    unknown = dict.fromkeys(SPLITS, 0)
    for name in SPLITS:
        split = store.split(name)
        for index, length in enumerate(split.lengths(0, split.num_documents)):
            unknown[name] += tokenizer.unk_id in split.read([index], [0], [length])
    assert unknown["train"] == 0
    assert unknown["select"] == store.split("select").num_documents
    assert unknown["report"] == store.split("report").num_documents


def test_tokenize_trains_on_a_share_of_much_text(
    corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tokenize([corpus], tmp_path / "a", vocab_size=64, num_sentinels=4)
    monkeypatch.setattr("reptrain.tokenization.store_tokenizer._TRAINING_BYTES", 8_000)
    share = tokenize([corpus], tmp_path / "b", vocab_size=64, num_sentinels=4)
    again = tokenize([corpus], tmp_path / "c", vocab_size=64, num_sentinels=4)
    assert whole.tokenizer != share.tokenizer == again.tokenizer
    assert whole.counts == share.counts


def test_tokenize_takes_uint32_for_a_large_vocabulary(
    corpus: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SentencePieceTokenizer, "vocab_size", 70_000)
    assert tokenize([corpus], tmp_path / "s", tokenizer=model).dtype == "uint32"
    split = open_store(tmp_path / "s").split("train")
    assert split.read([0], [0], [1]).dtype == "uint32"


def test_tokenize_again_returns_at_once_and_refuses_other_options(
    corpus: Path, model: Path, tmp_path: Path, files_of: FilesOf
) -> None:
    copy = tmp_path / "web.jsonl"
    copy.write_bytes(corpus.read_bytes())
    out = tmp_path / "s"
    sealed = tokenize([copy], out, tokenizer=model)
    before = files_of(out)
    stages: list[str] = []
    again = tokenize([corpus], out, tokenizer=model, progress=lambda stage, *_: stages.append(stage))
    assert again == sealed and set(stages) == {"hash"}
    for change in ({"held_out_fraction": 0.1}, {"dedup": "none"}, {"tokenizer": None}, {"id_field": "k"}):
        with pytest.raises(StoreError, match=f"{next(iter(change))}=.* where manifest.json has"):
            tokenize([copy], out, **{"tokenizer": model, **change})
    copy.write_bytes(corpus.read_bytes().replace(b"epoch", b"cpohe", 1))
    with pytest.raises(StoreError, match="sources with other content"):
        tokenize([copy], out, tokenizer=model)
    copy.write_bytes(corpus.read_bytes() + b"\n")
    with pytest.raises(StoreError, match="sources="):
        tokenize([copy], out, tokenizer=model)
    assert files_of(out) == before


def test_tokenize_leaves_a_folder_of_other_files_alone(corpus: Path, tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("dear")
    with pytest.raises(StoreError, match="a folder with other files"):
        tokenize([corpus], tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


@pytest.mark.parametrize("processes", [1, 2])
def test_tokenize_names_the_line_that_is_wrong(corpus: Path, tmp_path: Path, processes: int) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(corpus.read_text() + "\n{}\n")
    with pytest.raises(TextError, match=r"bad\.jsonl:201: "):
        tokenize([path], tmp_path / "s", processes=processes)
    with pytest.raises(StoreError, match="must be a folder with a manifest"):
        open_store(tmp_path / "s")


@pytest.mark.parametrize(
    ("content", "options", "error", "message"),
    [
        ("", {}, TextError, "0 bytes"),
        ("\n", {}, StoreError, "must hold documents that are not empty, but got none"),
        ('{"text": " "}', {}, StoreError, "must hold documents that are not empty, but got none"),
        ('{"text": "a"}', {}, StoreError, r"none of 1 with held_out_fraction 0\.05"),
        ('{"text": "a"}', {"held_out_fraction": 0.0}, StoreError, "must be between 0 and 1"),
        ('{"text": "a"}', {"processes": 0}, StoreError, "must be at least 1"),
    ],
)
def test_tokenize_refuses_what_gives_no_store(
    tmp_path: Path, content: str, options: dict[str, float], error: type[Exception], message: str
) -> None:
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(error, match=message):
        tokenize([tmp_path / "a.jsonl"], tmp_path / "s", **options)
    assert not (tmp_path / "s" / "manifest.json").exists()


def test_tokenize_refuses_a_folder_without_text(tmp_path: Path) -> None:
    with pytest.raises(TextError, match=r"must hold files that end in \.txt"):
        tokenize([tmp_path], tmp_path / "s")


def test_tokenize_refuses_a_tokenizer_without_eos(corpus: Path, texts: list[str], tmp_path: Path) -> None:
    model = tmp_path / "endless.model"
    with model.open("wb") as writer:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts), model_writer=writer, vocab_size=40, eos_id=-1, minloglevel=2
        )
    with pytest.raises(TokenizerError, match=r"must have an end-of-sentence piece.*got none"):
        tokenize([corpus], tmp_path / "s", tokenizer=model)
    for named, shown in ((99_999, "99999"), (-1, "-1"), ('"<nope>"', "<nope>")):
        (tmp_path / "config.json").write_text(f'{{"eos_token_id": {named}}}')
        with pytest.raises(TokenizerError, match=f"got {shown} in config.json, no special piece of it"):
            tokenize([corpus], tmp_path / "s", tokenizer=model)
    (tmp_path / "config.json").unlink()
    assert tokenize([corpus], tmp_path / "s", tokenizer=model, eos="<s>").eos_id == 1
    assert open_store(tmp_path / "s").tokenizer().eos_id == 1


def test_tokenize_counts_documents_without_tokens(
    corpus: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, texts: list[str]
) -> None:
    encode = SentencePieceTokenizer._encode
    monkeypatch.setattr(
        SentencePieceTokenizer,
        "_encode",
        lambda self, group: [
            ids[:0] if text == texts[0] else ids for text, ids in zip(group, encode(self, group), strict=True)
        ],
    )
    counts = tokenize([corpus], tmp_path / "s", tokenizer=model).counts
    assert counts.empty == 1 + sum(not text.strip() for text in texts)
    assert counts.read == counts.empty + counts.duplicates + counts.kept
    assert verify(tmp_path / "s").ok


def test_tokenize_notices_a_source_that_changes_meanwhile(tmp_path: Path, corpus: Path, model: Path) -> None:
    path = tmp_path / "web.jsonl"
    path.write_bytes(corpus.read_bytes())

    def grow(stage: str, done: int, total: int) -> None:
        if stage == "tokenize" and done == 0:
            path.write_text("\n".join(path.read_text().splitlines()[:-1]))

    with pytest.raises(StoreError, match="must not change while it is tokenized"):
        tokenize([path], tmp_path / "s", tokenizer=model, progress=grow)
