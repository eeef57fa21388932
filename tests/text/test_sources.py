"""What a user may name as a source, and what is kept with its documents."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer as Library
from tokenizers import decoders, models, pre_tokenizers, trainers

from reptrain.errors import ReptrainError, StoreError, TextError, TokenizerError
from reptrain.store import describe, describe_text, open_store, verify
from reptrain.text.sources import expand_sources, select
from reptrain.tokenization import tag_pairs, tokenize

FilesOf = Callable[[Path], dict[str, bytes]]
SPLITS = ("train", "select", "report")


def metadata_of(out: Path) -> dict[str, dict[str, Any]]:
    """Metadata of every document by its id."""
    store = open_store(out)
    return {
        split.document_id(index): split.document_metadata(index)
        for split in map(store.split, SPLITS)
        for index in range(split.num_documents)
    }


def write_dataset(folder: Path, tables: Sequence[pa.Table]) -> None:
    """The files that the datasets library (5.2) writes by save_to_disk."""
    folder.mkdir(parents=True)
    names = [f"data-{index:05d}-of-{len(tables):05d}.arrow" for index in range(len(tables))]
    for name, table in zip(names, tables, strict=True):
        with pa.ipc.new_stream(folder / name, table.schema) as writer:
            writer.write_table(table)
    state = {"_data_files": [{"filename": name} for name in names], "_split": None}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text(json.dumps({"features": {}, "splits": None}))


@pytest.fixture(scope="module")
def table(texts: list[str]) -> pa.Table:
    """The corpus of the other tests as a table."""
    return pa.table({"id": [f"d{index}" for index in range(len(texts))], "text": texts})


@pytest.fixture(scope="module")
def library(texts: list[str]) -> Library:
    """A byte-level BPE."""
    library = Library(models.BPE())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    library.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    library.train_from_iterator(texts, trainer)
    return library


def test_tokenize_gives_one_fingerprint_for_every_kind_of_source(
    corpus: Path, table: pa.Table, model: Path, tmp_path: Path
) -> None:
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=20)
    with pa.CompressedOutputStream(str(tmp_path / "a.jsonl.zst"), "zstd") as packed:
        packed.write(corpus.read_bytes())
    with pa.ipc.new_file(tmp_path / "a.arrow", table.schema) as writer:
        writer.write_table(table, max_chunksize=20)
    write_dataset(tmp_path / "saved", [table[:90], table[90:]])
    write_dataset(tmp_path / "dict" / "train", [table])
    (tmp_path / "dict" / "dataset_dict.json").write_text('{"splits": ["train"]}')
    (tmp_path / "saved" / "cache-0123.arrow").write_bytes(b"of another function")
    expected = tokenize([corpus], tmp_path / "base", tokenizer=model)
    for index, source in enumerate(
        ["a.parquet", "a.jsonl.zst", "a.arrow", "saved", "dict", f"file://{tmp_path}/a.parquet"]
    ):
        source = source if "://" in source else str(tmp_path / source)
        manifest = tokenize([source], tmp_path / f"s{index}", tokenizer=model)
        assert manifest.fingerprint == expected.fingerprint, source
        assert manifest.counts == expected.counts
        assert verify(tmp_path / f"s{index}").ok


def test_tokenize_cuts_one_parquet_file_into_jobs_and_gives_the_same_bytes_for_any_processes(
    table: pa.Table, library: Library, tmp_path: Path, files_of: FilesOf
) -> None:
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=10, compression="none")
    library.save(str(tmp_path / "t.json"))
    options: dict[str, Any] = {"tokenizer": tmp_path / "t.json", "eos": "<|endoftext|>"}
    options |= {"metadata_fields": ["id"], "tags": {"a": "b"}}
    for processes in (1, 2):
        tokenize([tmp_path / "a.parquet"], tmp_path / f"s{processes}", processes=processes, **options)
    assert len(open_store(tmp_path / "s1").manifest.splits["train"].shards) > 2
    assert files_of(tmp_path / "s1") == files_of(tmp_path / "s2")


def test_tokenize_takes_globs_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("b/2.jsonl", "b/1.jsonl", "a/3.jsonl", "b/deep/4.jsonl", "b/x.bin", "b/.hid.jsonl"):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_text('{"text": "a"}\n')
    monkeypatch.chdir(tmp_path)
    found = {
        pattern: [file.label for file in expand_sources([pattern])]
        for pattern in (
            "data/*/*.jsonl",
            "data/**/*.jsonl",
            "data/b/[12].jsonl",
            f"{tmp_path}/data/b/?.jsonl",
        )
    }
    assert found == {
        "data/*/*.jsonl": ["data/a/3.jsonl", "data/b/1.jsonl", "data/b/2.jsonl"],
        "data/**/*.jsonl": ["data/a/3.jsonl", "data/b/1.jsonl", "data/b/2.jsonl", "data/b/deep/4.jsonl"],
        "data/b/[12].jsonl": ["b/1.jsonl", "b/2.jsonl"],
        f"{tmp_path}/data/b/?.jsonl": ["b/1.jsonl", "b/2.jsonl"],
    }
    (tmp_path / "data" / "odd[1].jsonl").write_text('{"text": "a"}\n')
    assert [file.label for file in expand_sources(["data/odd[1].jsonl"])] == ["odd[1].jsonl"]
    (tmp_path / "data" / "b" / "x.bin").unlink()
    assert len(expand_sources(["data/**"])) == 5
    # A matching folder means the files below it, each once.
    assert [file.label for file in expand_sources(["data/?"])] == [
        "data/a/3.jsonl", "data/b/1.jsonl", "data/b/2.jsonl", "data/b/deep/4.jsonl",
    ]  # fmt: skip
    assert len(expand_sources(["data/**/*"])) == 5
    assert [file.label for file in expand_sources(["data/b/.h*"])] == ["b/.hid.jsonl"]
    for pattern in ("data/*.parquet", "none/*.jsonl", "data/??"):
        with pytest.raises(TextError, match="must match a file, but got none"):
            expand_sources([pattern])


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["a.jsonl", "b.csv", "c/d.xz"], r"got b\.csv, c/d\.xz beside 1 that can be read\. Choose by a glob"),
        (["b.csv"], r"must hold files that end in \.txt.*, but got b\.csv"),
        (["README.md", "LICENSE.txt"], r"must hold files that end in \.txt.*, but got none"),
    ],
)
def test_select_refuses_folders_with_other_files(names: list[str], message: str) -> None:
    with pytest.raises(TextError, match=message):
        select("data", names, lambda name: b"")


def test_select_skips_metadata_files() -> None:
    names = ["README.md", "LICENSE", "_SUCCESS", "b.parquet", "README.txt", "dataset_infos.json", "a.txt"]
    names += ["licensed.txt", "readme_first.jsonl", "README.jsonl", "notice.txt"]
    kept = ["README.jsonl", "a.txt", "b.parquet", "licensed.txt", "notice.txt", "readme_first.jsonl"]
    assert select("data", names, lambda name: b"") == kept
    for name in ("licensed.bin", "readme-of-all.csv"):
        with pytest.raises(TextError, match=rf"got {name} beside 1 that can be read"):
            select("data", [name, "a.txt"], lambda name: b"")


def test_select_refuses_a_saved_dataset_without_its_list() -> None:
    for content in (b"{}", b'{"_data_files": [3]}', b'{"_data_files": 3}', b'{"_data_files": {"a": 1}}'):
        with pytest.raises(TextError, match=r"got a x/state\.json without _data_files"):
            select("data", ["x/state.json"], lambda name, content=content: content)
    with pytest.raises(TextError, match=r"must be a JSON object, but got x/state\.json: 'no'"):
        select("data", ["x/state.json"], lambda name: b"no")


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"_indices_data_files": [{"filename": "indices.arrow"}]}, "rows selected.*flatten_indices"),
        ({"_data_files": [{"filename": "a.arrow", "skip": 3, "take": 5}]}, "uses a part of its files"),
        ({"_data_files": [{"filename": "a.arrow", "take": 5}]}, "uses a part of its files"),
        (
            {"_inplace_history": [{"transforms": [["rename_column_", ["a", "b"], {}]]}]},
            "changes their columns",
        ),
        ({"_data_files": [{"filename": "b.arrow"}]}, "b.arrow, which state.json lists, missing"),
        ({"_data_files": [{"filename": "../a.arrow"}]}, "a.arrow, which state.json lists, missing"),
        ({"_data_files": []}, "a.arrow, which state.json does not list"),
    ],
)
def test_select_refuses_a_saved_dataset_whose_state_changes_its_rows(
    state: dict[str, Any], words: str
) -> None:
    plain = {"_data_files": [{"filename": "a.arrow"}], "_indices_data_files": None, "_format_type": "numpy"}
    plain |= {"_inplace_history": [{"transforms": []}], "_format_columns": ["text"]}
    names = ["a.arrow", "state.json", "dataset_info.json", "README.md"]
    assert select("data", names, lambda name: json.dumps(plain).encode()) == ["a.arrow"]
    whole = plain | {"_data_files": [{"filename": "a.arrow", "skip": 0, "take": -1}]}
    assert select("data", names, lambda name: json.dumps(whole).encode()) == ["a.arrow"]
    with pytest.raises(TextError, match=words):
        select("data", names, lambda name: json.dumps(plain | state).encode())


def test_select_refuses_what_lies_beside_a_saved_dataset() -> None:
    files = {f"{split}/state.json": b'{"_data_files": [{"filename": "a.arrow"}]}' for split in ("one", "two")}
    files |= {"one/a.arrow": b"", "two/a.arrow": b"", "two/cache-01ab.arrow": b""}
    splits = b'{"splits": ["one", "two"]}'
    assert select("d", [*files, "dataset_dict.json"], lambda name: files.get(name, splits)) == [
        "one/a.arrow",
        "two/a.arrow",
    ]
    for names, content, words in (
        (["one/more.jsonl"], splits, "more.jsonl, which one/state.json does not list"),
        ([], b'{"splits": ["one"]}', "two, which dataset_dict.json does not list"),
        ([], b'{"splits": ["one", "two", "six"]}', "no six, which dataset_dict.json lists"),
        ([], b"{}", "a dataset_dict.json without splits"),
        (["cache-01ab.arrow"], splits, "cache-01ab.arrow beside 2 that can be read"),
    ):
        with pytest.raises(TextError, match=words):
            select("d", [*files, *names, "dataset_dict.json"], lambda name, c=content: files.get(name, c))


def test_tokenize_keeps_fields_and_tags_with_each_document(tmp_path: Path, model: Path) -> None:
    real, made = tmp_path / "real.jsonl", tmp_path / "made.jsonl"
    real.write_text(
        "".join(
            json.dumps({"text": f"epoch {n}", "id": f"r{n}", "meta": {"url": f"u{n}"}}) + "\n"
            for n in range(30)
        )
    )
    made.write_text("".join(json.dumps({"text": f"token {n}", "id": f"m{n}"}) + "\n" for n in range(30)))
    options: dict[str, Any] = {"tokenizer": model, "held_out_fraction": 0.3}
    manifest = tokenize(
        [real, made],
        tmp_path / "s",
        metadata_fields=["meta.url"],
        tags={"made:synthetic": "alpaca", "licence": "free", "made:licence": "own=x:y"},
        **options,
    )
    assert metadata_of(tmp_path / "s") == {
        **{f"r{n}": {"meta.url": f"u{n}", "licence": "free"} for n in range(30)},
        **{f"m{n}": {"licence": "own=x:y", "synthetic": "alpaca"} for n in range(30)},
    }
    assert [source.tags for source in manifest.sources] == [
        {"licence": "free"},
        {"licence": "own=x:y", "synthetic": "alpaca"},
    ]
    store = open_store(tmp_path / "s")
    assert "synthetic=alpaca" in describe_text(store)
    assert describe(store)["sources"][1]["tags"]["synthetic"] == "alpaca"
    plain = tokenize([real, made], tmp_path / "plain", **options)
    assert plain.fingerprint == manifest.fingerprint
    assert set(map(str, metadata_of(tmp_path / "plain").values())) == {"{}"}
    with pytest.raises(StoreError, match=r"tags=\{\} where manifest\.json has"):
        tokenize([real, made], tmp_path / "s", metadata_fields=["meta.url"], **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tags": {"none:a": "b"}}, r"tag none:a: must name one of the sources, web, but got 'none'"),
        ({"tags": {"a b": "c"}}, r"must have a key of letters"),
        ({"tags": {"": "c"}}, r"must have a key of letters"),
        ({"tags": {"url": "c"}, "metadata_fields": ["url"]}, r"metadata url: must be one field or tag"),
        ({"metadata_fields": ["url", "url"]}, r"metadata url: must be one field or tag"),
    ],
)
def test_tokenize_refuses_ambiguous_tags(
    corpus: Path, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(StoreError, match=message):
        tokenize([corpus], tmp_path / "s", **options)


def test_tag_pairs_are_read_up_to_the_first_equals_sign() -> None:
    assert tag_pairs(["synthetic=alpaca", "web:x=a=b"]) == {"synthetic": "alpaca", "web:x": "a=b"}
    for pairs in (["synthetic"], ["a=1", "a=2"]):
        with pytest.raises(StoreError, match="must be KEY=VALUE or SOURCE:KEY=VALUE"):
            tag_pairs(pairs)


def test_tokenize_takes_a_tokenizer_json(
    corpus: Path, texts: list[str], library: Library, tmp_path: Path
) -> None:
    path = tmp_path / "some.file"
    library.save(str(path))
    manifest = tokenize([corpus], tmp_path / "s", tokenizer=path)
    assert (tmp_path / "s" / "tokenizer.json").read_bytes() == path.read_bytes()
    store = open_store(tmp_path / "s")
    tokenizer = store.tokenizer()
    decoded, tokens, text_bytes = set(), 0, 0
    for split in map(store.split, SPLITS):
        for index, length in enumerate(split.lengths(0, split.num_documents)):
            ids = split.read([index], [0], [length])
            decoded.add(tokenizer.decode(ids[:-1]))
            tokens += len(library.encode(tokenizer.decode(ids[:-1])).ids) + 1
            text_bytes += len(tokenizer.decode(ids[:-1]).encode())
    assert decoded == {text for text in texts if text.strip()}
    infos = manifest.splits.values()
    assert (tokens, text_bytes) == (sum(i.tokens for i in infos), sum(i.text_bytes for i in infos))
    described = describe(store)["splits"]["train"]["bytes_per_token"]
    assert described == manifest.splits["train"].text_bytes / manifest.splits["train"].tokens
    assert f"{described:.3f}" in describe_text(store)
    assert verify(tmp_path / "s").ok
    (tmp_path / "s" / "tokenizer.json").unlink()
    with pytest.raises(StoreError, match=r"tokenizer\.json: must be unchanged since the store was completed"):
        open_store(tmp_path / "s")


def test_tokenize_keeps_the_eos_that_was_asked_for(corpus: Path, library: Library, tmp_path: Path) -> None:
    data = json.loads(library.to_str())
    again = Library.from_str(json.dumps(data))
    again.add_special_tokens(["<|stop|>"])
    again.save(str(tmp_path / "t.json"))
    asked = tokenize([corpus], tmp_path / "s", tokenizer=tmp_path / "t.json", eos="<|stop|>")
    assert asked.eos_id == again.token_to_id("<|stop|>") == open_store(tmp_path / "s").tokenizer().eos_id
    assert verify(tmp_path / "s").ok
    own = tokenize([corpus], tmp_path / "own", tokenizer=tmp_path / "t.json")
    assert own.eos_id == 0 and own.fingerprint != asked.fingerprint
    with pytest.raises(TokenizerError, match="must be omitted if no tokenizer is given"):
        tokenize([corpus], tmp_path / "s2", eos="</s>")


def cut_gz(path: Path, good: bytes) -> None:
    path.write_bytes(gzip.compress(good)[:-9])


def cut_zst(path: Path, good: bytes) -> None:
    path.write_bytes(pa.Codec("zstd").compress(good, asbytes=True)[:-5])


def no_column(path: Path, good: bytes) -> None:
    pq.write_table(pa.table({"body": ["a"], "title": ["b"]}), path)


def other_type(path: Path, good: bytes) -> None:
    pq.write_table(pa.table({"text": [1.5, 2.5]}), path)


def null_text(path: Path, good: bytes) -> None:
    pq.write_table(pa.table({"text": ["a", None]}), path)


def no_rows(path: Path, good: bytes) -> None:
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), path)


def no_parquet(path: Path, good: bytes) -> None:
    path.write_bytes(b"PAR1 not so")


def stray_file(path: Path, good: bytes) -> None:
    (path.parent / "notes.docx").write_bytes(b"PK")


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("b.jsonl.gz", cut_gz, "must be a readable file"),
        ("b.jsonl.zst", cut_zst, "must be a readable file"),
        ("b.parquet", no_column, "must have a column 'text' of type string, but got the columns body, title"),
        (
            "b.parquet",
            other_type,
            "must have a column 'text' of type string, but got a column of type double",
        ),
        ("b.parquet", null_text, "row 2: .*but got null under 'text'"),
        ("b.parquet", no_rows, "must hold documents, but got 0 rows"),
        ("b.parquet", no_parquet, "must be a readable file"),
        ("b.jsonl", stray_file, r"got notes\.docx beside 2"),
    ],
)
def test_tokenize_refuses_bad_input_and_resumes_once_it_is_fixed(
    corpus: Path,
    table: pa.Table,
    model: Path,
    tmp_path: Path,
    name: str,
    damage: Callable[[Path, bytes], None],
    message: str,
) -> None:
    folder, out = tmp_path / "data", tmp_path / "s"
    folder.mkdir()
    (folder / "a.jsonl").write_bytes(corpus.read_bytes())
    path = folder / name
    good = b'{"text": "one more"}\n' * 50
    path.write_bytes(good)
    damage(path, good)
    with pytest.raises(ReptrainError, match=message) as caught:
        tokenize([folder], out, tokenizer=model)
    assert str(path if damage is not stray_file else folder) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (out / "manifest.json").exists()
    if name.endswith("parquet"):
        pq.write_table(pa.table({"text": ["one more"]}), path)
    elif damage is stray_file:
        (folder / "notes.docx").unlink()
    else:
        path.write_bytes(
            gzip.compress(good) if name.endswith("gz") else pa.Codec("zstd").compress(good, asbytes=True)
        )
    assert tokenize([folder], out, tokenizer=model).counts.kept > 100
    assert not (out / ".work").exists() and verify(out).ok


@pytest.mark.parametrize("content", ["", "{}", '{"vocab": {}}', "not one", '{"model": {"vocab": {"a": 0}}}'])
def test_tokenize_refuses_a_tokenizer_json_that_is_not_one(
    corpus: Path, library: Library, tmp_path: Path, content: str
) -> None:
    path, out = tmp_path / "tokenizer.json", tmp_path / "s"
    path.write_text(content)
    with pytest.raises(TokenizerError, match=r"tokenizer\.json: must be a SentencePiece model or a token"):
        tokenize([corpus], out, tokenizer=path)
    assert not out.exists()
    library.save(str(path))
    assert tokenize([corpus], out, tokenizer=path).counts.kept > 100


def test_tokenize_of_one_long_document(
    tmp_path: Path, library: Library, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("reptrain.text.tokenizer._MOST_CHARACTERS", 1 << 15)
    text = "".join(f"window {index} epoch" + (" " if index % 9 else "\n") for index in range(15_000))
    assert len(text) > 1 << 17
    (tmp_path / "long.txt").write_text(text)
    (tmp_path / "more.jsonl").write_text("".join(f'{{"text": "run {n}"}}\n' for n in range(60)))
    library.save(str(tmp_path / "t.json"))
    for name, tokenizer in {"sp": model, "hf": tmp_path / "t.json"}.items():
        tokenize([tmp_path / "long.txt", tmp_path / "more.jsonl"], tmp_path / name, tokenizer=tokenizer)
        store = open_store(tmp_path / name)
        found = [
            store.tokenizer().decode(split.read([index], [0], split.lengths(index, 1))[:-1])
            for split in map(store.split, SPLITS)
            for index in range(split.num_documents)
            if split.document_id(index) == "long.txt"
        ]
        assert found == [text]


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("kind", ["sp", "hf"])
def test_tokenize_of_a_document_of_1e8_characters(
    tmp_path: Path, library: Library, model: Path, kind: str
) -> None:
    library.save(str(tmp_path / "t.json"))
    text = ("store plan run audit exact ledger run " * (1 + 10**8 // 36))[: 10**8]
    with (tmp_path / "long.jsonl").open("w") as file:
        file.write(json.dumps({"text": text, "id": "long"}) + "\n")
        file.writelines(f'{{"text": "run {n}", "id": "{n}"}}\n' for n in range(60))
    reset_peak()
    tokenizer = model if kind == "sp" else tmp_path / "t.json"
    tokenize([tmp_path / "long.jsonl"], tmp_path / "s", tokenizer=tokenizer)
    peak = peak_bytes()
    split = next(
        split
        for split in map(open_store(tmp_path / "s").split, SPLITS)
        if any(split.document_id(index) == "long" for index in range(split.num_documents))
    )
    index = next(i for i in range(split.num_documents) if split.document_id(i) == "long")
    ids = split.read([index], [0], split.lengths(index, 1))
    tokenizer_of = open_store(tmp_path / "s").tokenizer()
    assert len(ids) > 10**7
    assert text.startswith(tokenizer_of.decode(ids[:10_000]))
    assert text.endswith(tokenizer_of.decode(ids[-10_000:]))
    # Measured: 1.0 GB with SentencePiece, 1.5 GB with a tokenizer.json.
    assert peak < 2.5e9


def reset_peak() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def peak_bytes() -> int:
    status = Path(f"/proc/{os.getpid()}/status").read_text()
    return 1024 * int(next(line for line in status.split("\n") if line.startswith("VmHWM")).split()[1])


def test_tokenize_refuses_a_tag_for_two_sources_of_one_name(tmp_path: Path) -> None:
    for folder in ("real", "made"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "part.jsonl").write_text('{"text": "a text"}\n' * 20)
    files = [tmp_path / "real" / "part.jsonl", tmp_path / "made" / "part.jsonl"]
    with pytest.raises(StoreError, match=r"tag part:synthetic: must name one source.*made/.*real/"):
        tokenize(files, tmp_path / "store", tags={"part:synthetic": "alpaca"})
    assert not (tmp_path / "store" / "manifest.json").exists()


@pytest.mark.parametrize("setting", ["vocab_size", "num_sentinels"])
def test_tokenize_refuses_settings_of_training_beside_a_tokenizer(
    store_path: Path, text_file: Path, tmp_path: Path, setting: str
) -> None:
    with pytest.raises(TokenizerError, match=rf"{setting}: must be omitted if a tokenizer is given"):
        tokenize([text_file], tmp_path / "store", tokenizer=store_path / "tokenizer.model", **{setting: 512})
