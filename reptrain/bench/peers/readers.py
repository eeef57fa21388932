"""Loaders that read shuffled windows of a flat file of uint16 tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from reptrain.bench.measure import Missing
from reptrain.bench.peers.attempt import attempted
from reptrain.bench.peers.megatron import MEGATRON, megatron_dataset, megatron_file

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

        def start() -> Batches:
            folder.mkdir(exist_ok=True)
            batches = self.make(flat, folder, window_tokens, batch_windows)
            return chain([next(batches)], batches)

        return attempted(self.packages[0], start)


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
    stream = np.fromfile(flat, np.uint16)
    # One document: Megatron shuffles documents before it cuts windows.
    megatron_file(folder / "tokens", stream, len(stream))
    data = megatron_dataset(folder / "tokens", folder / "cache", window_tokens, len(stream) // window_tokens)
    loader = torch.utils.data.DataLoader(data, batch_size=batch_windows, drop_last=True)
    while True:
        for batch in loader:
            yield batch["tokens"].long()


READERS = (
    Reader("NumPy gather", ("numpy",), _gather),
    Reader("torch DataLoader", ("torch", "numpy"), _data_loader(0)),
    Reader("torch DataLoader, 2 workers", ("torch", "numpy"), _data_loader(2)),
    Reader("HF Datasets", ("datasets", "torch", "pyarrow"), _hugging_face),
    Reader("litdata", ("litdata", "torch"), _litdata),
    Reader(MEGATRON, ("megatron-core", "torch"), _megatron),
)
