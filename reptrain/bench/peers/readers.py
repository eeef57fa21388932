"""Loaders that read shuffled windows of a flat file of uint16 tokens."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch

from reptrain.bench.measure import Missing, installed

Batches = Iterator[torch.Tensor]


class Reader(NamedTuple):
    """A loader."""

    name: str
    packages: tuple[str, ...]
    """Its packages; the first must be installed."""
    make: Callable[[Path, Path, int, int], Batches]

    def open(self, flat: Path, folder: Path, window_tokens: int, batch_windows: int) -> Batches | Missing:
        """Endless batches of int64 [batch_windows, window_tokens], or why there are none.

        Args:
            flat: File of uint16 tokens.
            folder: Folder for the reader's own format.
            window_tokens: Tokens of a window.
            batch_windows: Windows of a batch.
        """
        if installed(self.packages[0]) is None:
            return Missing("not installed")
        folder.mkdir(exist_ok=True)
        try:
            with _quiet():
                batches = self.make(flat, folder, window_tokens, batch_windows)
                first = next(batches)
            return chain([first], batches)
        # An error of one package must not stop the measurement of the others.
        except (Exception, SystemExit) as error:
            return Missing(f"does not run: {type(error).__name__}: {' '.join(str(error).split())[:120]}")


def _windows(flat: Path, window_tokens: int) -> Any:
    stream = np.memmap(flat, np.uint16, "r")
    return stream[: len(stream) // window_tokens * window_tokens].reshape(-1, window_tokens)


class _Mapped(torch.utils.data.Dataset):
    """Windows of a memory-mapped file, one tensor each."""

    def __init__(self, flat: Path, window_tokens: int) -> None:
        self._windows = _windows(flat, window_tokens)

    def __len__(self) -> int:
        return len(self._windows)

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.from_numpy(self._windows[index].astype(np.int64))


def _gather(flat: Path, folder: Path, window_tokens: int, batch_windows: int) -> Batches:
    windows, draw = np.asarray(_windows(flat, window_tokens)), np.random.default_rng(0)
    while True:
        order = draw.permutation(len(windows))
        for first in range(0, len(order) - batch_windows, batch_windows):
            yield torch.from_numpy(windows[order[first : first + batch_windows]].astype(np.int64))


def _data_loader(workers: int) -> Callable[[Path, Path, int, int], Batches]:
    def make(flat: Path, folder: Path, window_tokens: int, batch_windows: int) -> Batches:
        loader = torch.utils.data.DataLoader(
            _Mapped(flat, window_tokens),
            batch_size=batch_windows,
            shuffle=True,
            drop_last=True,
            num_workers=workers,
            persistent_workers=workers > 0,
        )
        while True:
            yield from loader

    return make


def _hugging_face(flat: Path, folder: Path, window_tokens: int, batch_windows: int) -> Batches:
    import datasets
    import pyarrow as pa

    tokens = pa.array(_windows(flat, window_tokens).reshape(-1))
    table = pa.table({"tokens": pa.FixedSizeListArray.from_arrays(tokens, window_tokens)})
    datasets.disable_progress_bars()
    datasets.Dataset(datasets.table.InMemoryTable(table)).save_to_disk(str(folder))
    data = datasets.load_from_disk(str(folder)).with_format("torch")
    seed = 0
    while True:
        for batch in data.shuffle(seed=seed).iter(batch_windows, drop_last_batch=True):
            yield batch["tokens"].long()
        seed += 1


def _litdata(flat: Path, folder: Path, window_tokens: int, batch_windows: int) -> Batches:
    import litdata

    stream = _windows(flat, window_tokens).reshape(-1)
    writer = litdata.streaming.writer.BinaryWriter(
        str(folder), chunk_bytes=64 << 20, item_loader=litdata.TokensLoader(block_size=window_tokens)
    )
    piece = window_tokens * 1024
    for number, first in enumerate(range(0, len(stream), piece)):
        writer[number] = torch.from_numpy(stream[first : first + piece].astype(np.int32))
    writer.done()
    writer.merge(1)
    data = litdata.StreamingDataset(
        str(folder), item_loader=litdata.TokensLoader(block_size=window_tokens), shuffle=True, drop_last=True
    )
    loader = litdata.StreamingDataLoader(data, batch_size=batch_windows, num_workers=0)
    while True:
        for batch in loader:
            yield batch.long()


def _megatron(flat: Path, folder: Path, window_tokens: int, batch_windows: int) -> Batches:
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
    from megatron.core.datasets.indexed_dataset import IndexedDataset, IndexedDatasetBuilder
    from megatron.core.datasets.utils import Split

    prefix = str(folder / "tokens")
    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.uint16)
    # One document: Megatron shuffles documents before it cuts windows.
    stream = np.fromfile(flat, np.uint16)
    builder.add_item(torch.from_numpy(stream.astype(np.int32)))
    builder.end_document()
    builder.finalize(f"{prefix}.idx")

    class Tokenizer:
        unique_identifiers: ClassVar[dict[str, str]] = {}
        eod, pad, vocab_size = 0, 0, 65536

    config = GPTDatasetConfig(
        random_seed=0,
        sequence_length=window_tokens,
        blend=([prefix], None),
        split="1,0,0",
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
        tokenizer=Tokenizer(),
        path_to_cache=str(folder / "cache"),
    )
    indexed = IndexedDataset(prefix, mmap=True)
    samples = len(stream) // window_tokens
    data = GPTDataset(indexed, prefix, np.arange(len(indexed), dtype=np.int32), samples, Split.train, config)
    loader = torch.utils.data.DataLoader(data, batch_size=batch_windows, drop_last=True)
    while True:
        for batch in loader:
            yield batch["tokens"].long()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Discard the output of other packages."""
    with Path(os.devnull).open("w") as sink, contextlib.redirect_stdout(sink):
        yield


READERS = (
    Reader("NumPy gather", ("numpy",), _gather),
    Reader("torch DataLoader", ("torch", "numpy"), _data_loader(0)),
    Reader("torch DataLoader, 2 workers", ("torch", "numpy"), _data_loader(2)),
    Reader("HF Datasets", ("datasets", "torch", "pyarrow"), _hugging_face),
    Reader("litdata", ("litdata", "torch"), _litdata),
    Reader("Megatron-core GPTDataset", ("megatron-core", "torch"), _megatron),
)
