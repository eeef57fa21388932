"""Tokenizing text into a store, compared with SentencePiece alone and other libraries, on equal processes."""

from __future__ import annotations

import itertools
import json
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from reptrain.bench.goals import NEAR, TOKENIZED
from reptrain.bench.measure import Measurement, Metric, Missing, compared, cores, gate, installed
from reptrain.bench.rows import OURS, Row
from reptrain.store import open_store
from reptrain.tokenization import tokenize

TOKENS = Metric("tokenizing", "tokens/s")
_WORDS, _DOCUMENT_WORDS = 20_000, 340
_DOCUMENTS, _QUICK_DOCUMENTS = 16_000, 2_000
_BATCH_DOCUMENTS = 1_000


def run(*, repetitions: int, quick: bool) -> Iterator[Row]:
    """Measure without deduplication, and with near-duplicates removed.

    Args:
        repetitions: Number of values of each implementation.
        quick: Whether to tokenize less text.
    """
    processes = cores()
    with tempfile.TemporaryDirectory(prefix="reptrain-bench-") as name:
        folder = Path(name)
        source, texts = _text(folder, _QUICK_DOCUMENTS if quick else _DOCUMENTS)
        tokenize([source], folder / "first", vocab_size=4096, num_sentinels=0, processes=processes)
        model = folder / "first" / "tokenizer.model"
        packages = {OURS: ("reptrain", "sentencepiece", "pyarrow"), "SentencePiece": ("sentencepiece",)}
        packages["HF Datasets"] = ("datasets", "sentencepiece")
        packages["SentencePiece, file to file"] = ("sentencepiece",)
        ways: dict[str, Measurement | Missing] = {
            OURS: _ours(source, folder, model, processes, "none"),
            "SentencePiece": _bare(texts, model, processes),
            "SentencePiece, file to file": _file_to_file(source, folder, model, processes),
            "HF Datasets": _hugging_face(source, folder, model, processes),
            "datatrove": Missing("reads tokenizer.json only, not a SentencePiece model"),
        }
        _check(source, folder, model, texts, processes)
        case = f"{TOKENIZED}, short form" if quick else TOKENIZED
        notes = {
            "SentencePiece": "text and ids in memory",
            "SentencePiece, file to file": "a flat file of ids",
        }
        yield from compared(
            "tokenize",
            case,
            TOKENS,
            ways,
            repetitions,
            packages=packages,
            threads=processes,
            notes=notes,
        )
        near: dict[str, Measurement | Missing] = {
            **ways,
            OURS: _ours(source, folder, model, processes, "minhash"),
        }
        notes = {name: "no deduplication" for name in ways if name not in (OURS, "datatrove")}
        yield from compared(
            "tokenize",
            f"{case}{NEAR}",
            TOKENS,
            near,
            repetitions,
            packages=packages,
            threads=processes,
            notes=notes,
        )


def _text(folder: Path, documents: int) -> tuple[Path, list[str]]:
    """Documents of about 2 kB, of made-up words by Zipf's law."""
    draw = np.random.default_rng(0)
    letters = np.array(list("etaoinshrdlu"))
    words = np.array(
        ["".join(letters[draw.integers(0, 12, n)]) for n in draw.integers(2, 10, _WORDS)], object
    )
    texts = []
    for length in draw.integers(20, 2 * _DOCUMENT_WORDS, documents):
        drawn = words[(_WORDS ** draw.random(int(length))).astype(np.int64) - 1]
        texts.append(" ".join(drawn))
    path = folder / "text.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path, texts


def _ours(source: Path, folder: Path, model: Path, processes: int, dedup: str) -> Measurement:
    def measure() -> float:
        out = folder / "store"
        shutil.rmtree(out, ignore_errors=True)
        begin = time.perf_counter()
        manifest = tokenize([source], out, tokenizer=model, dedup=dedup, processes=processes)
        seconds = time.perf_counter() - begin
        return sum(info.tokens for info in manifest.splits.values()) / seconds

    return measure


def _bare(texts: list[str], model: Path, processes: int) -> Measurement:
    """Encode texts in memory, with the threads of SentencePiece."""
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))

    def measure() -> float:
        begin = time.perf_counter()
        ids = processor.encode(texts, num_threads=processes)
        return sum(map(len, ids)) / (time.perf_counter() - begin)

    return measure


def _file_to_file(source: Path, folder: Path, model: Path, processes: int) -> Measurement:
    """Read JSON lines, encode them with the threads of SentencePiece, and write the ids to a flat file."""
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))

    def measure() -> float:
        begin = time.perf_counter()
        tokens = 0
        with source.open("rb") as lines, (folder / "ids.bin").open("wb") as out:
            while batch := list(itertools.islice(lines, _BATCH_DOCUMENTS)):
                texts = [json.loads(line)["text"] for line in batch]
                ids = processor.encode(texts, return_type="numpy", num_threads=processes)
                np.concatenate(ids).astype(np.uint16).tofile(out)
                tokens += sum(map(len, ids))
        return tokens / (time.perf_counter() - begin)

    return measure


class _Encode:
    """Encodes a batch of HF Datasets; loads the model once in each process."""

    def __init__(self, model: Path) -> None:
        self._model = str(model)

    def __call__(self, batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        import sentencepiece

        processor = sentencepiece.SentencePieceProcessor(model_file=self._model)
        return {"ids": processor.encode(batch["text"])}


def _hugging_face(source: Path, folder: Path, model: Path, processes: int) -> Measurement | Missing:
    if installed("datasets") is None:
        return Missing("not installed")
    import datasets

    datasets.disable_progress_bars()

    def measure() -> float:
        begin = time.perf_counter()
        cache = folder / "hf"
        shutil.rmtree(cache, ignore_errors=True)
        data = datasets.load_dataset("json", data_files=str(source), split="train", cache_dir=str(cache))
        done = data.map(_Encode(model), batched=True, num_proc=processes, remove_columns=data.column_names)
        tokens = sum(len(part.flatten()) for part in done.data.column("ids").chunks)
        return tokens / (time.perf_counter() - begin)

    return measure


def _check(source: Path, folder: Path, model: Path, texts: list[str], processes: int) -> None:
    """The store holds SentencePiece's tokens of every document, and an EOS after each."""
    import sentencepiece

    processor = sentencepiece.SentencePieceProcessor(model_file=str(model))
    out = folder / "checked"
    tokenize([source], out, tokenizer=model, dedup="none", processes=processes)
    store = open_store(out)
    split = store.split("train")
    for number in range(min(split.num_documents, 200)):
        length = int(split.lengths(number, 1)[0])
        ids = split.read([number], [0], [length]).tolist()
        line = int(split.document_id(number).rpartition(":")[2])
        expected = [*processor.encode(texts[line - 1]), store.eos_id]
        gate(ids == expected, bench="tokenize", what=OURS, rule="must hold SentencePiece's tokens")
