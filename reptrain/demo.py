"""The demo: its text, its token store and its study."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import typer

from reptrain.files import write_atomically
from reptrain.progress import stage_progress
from reptrain.store import open_store
from reptrain.study import StudyConfig, demo_study
from reptrain.text import read_documents, stdlib_documents
from reptrain.tokenization import tokenize

_QUICK_DOCUMENTS = 1500
_PIECE_CHARACTERS = 1000
_LARGEST_SUBSET, _QUICK_SUBSET = 2**18, 2**13
_QUICK = [
    "train.total_tokens=2**15",
    "axes.data.unique_tokens=[2**13, 2**11, 2**9]",
    "data.window_tokens=64",
    "train.batch_windows=16",
    "evaluate.max_windows=16",
    "evaluate.every_fraction=0.25",
]


def make_demo_store(out: Path, *, text: Sequence[Path], quick: bool) -> Path:
    """Tokenize the demo's text. A sealed store of the same text is reused.

    Args:
        out: The demo's folder.
        text: Your files; without any, the documentation that comes with Python.
        quick: Use a third of Python's documentation.

    Returns:
        The store's folder, ``out/store``.

    Raises:
        ReptrainError: If the text cannot be used, or an existing store holds other text.
    """
    out.mkdir(parents=True, exist_ok=True)
    store = out / "store"
    with stage_progress() as progress:
        sources = [_in_pieces(path, out) for path in text] or [_write_stdlib(out, quick)]
        tokenize(sources, store, processes=os.cpu_count() or 1, progress=progress)
    return store


def make_demo_study(store: Path, *, quick: bool) -> StudyConfig:
    """The demo's study on a store: 4, 16 and 64 epochs for equal training tokens.

    Args:
        store: The token store.
        quick: A thirty-second of the training.
    """
    return demo_study([f"data.store={store}", *(_QUICK if quick else []), *_for_small(store, quick)])


def _for_small(store: Path, quick: bool) -> list[str]:
    """Overrides for a store smaller than the largest subset: the same epochs over smaller subsets."""
    train_tokens = open_store(store).split("train").num_tokens
    if train_tokens >= (_QUICK_SUBSET if quick else _LARGEST_SUBSET):
        return []
    largest = 1 << (train_tokens.bit_length() - 1)
    subsets = [largest, largest >> 2, largest >> 4]
    sizes = ", ".join(f"{size:,}" for size in subsets)
    typer.echo(f"The store holds {train_tokens:,} training tokens. Subset sizes: {sizes}.")
    return [f"train.total_tokens={4 * largest}", f"axes.data.unique_tokens={subsets}"]


def _in_pieces(path: Path, out: Path) -> Path:
    """Split a .txt file at paragraphs into a .jsonl file: one document could not be split into sets."""
    if path.suffix != ".txt":
        return path
    pieces: list[str] = [""]
    for paragraph in next(iter(read_documents(path))).text.split("\n\n"):
        if len(pieces[-1]) >= _PIECE_CHARACTERS:
            pieces.append("")
        pieces[-1] += paragraph + "\n\n"
    target = out / f"{path.stem}.jsonl"
    rows = ({"id": f"{path.name}:{number}", "text": piece} for number, piece in enumerate(pieces))
    write_atomically(target, (json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return target


def _write_stdlib(out: Path, quick: bool) -> Path:
    """Write Python's documentation, or its first documents, as a .jsonl file; an existing file is kept."""
    path = out / f"python-docs{'-quick' * quick}.jsonl"
    if not path.exists():
        documents = islice(stdlib_documents(), _QUICK_DOCUMENTS if quick else None)
        rows = ({"id": document.id, "text": document.text} for document in documents)
        write_atomically(path, (json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return path
