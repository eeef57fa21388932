"""The dataset of Megatron-core, whose index lists the windows of all epochs."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch

from reptrain.bench.measure import Measurement, Missing
from reptrain.bench.peers.attempt import attempted, quiet

MEGATRON = "Megatron-core GPTDataset"


def megatron_file(prefix: Path, stream: np.ndarray, document_tokens: int) -> None:
    """Write tokens, uint16, in documents of ``document_tokens`` as Megatron's PREFIX.bin and PREFIX.idx."""
    from megatron.core.datasets.indexed_dataset import IndexedDatasetBuilder

    builder = IndexedDatasetBuilder(f"{prefix}.bin", dtype=np.uint16)
    for start in range(0, len(stream), document_tokens):
        builder.add_item(torch.from_numpy(stream[start : start + document_tokens].astype(np.int32)))
        builder.end_document()
    builder.finalize(f"{prefix}.idx")


def megatron_dataset(
    prefix: Path, cache: Path, window_tokens: int, samples: int
) -> torch.utils.data.Dataset[dict[str, torch.Tensor]]:
    """Megatron's dataset of shuffled windows, whose index is built unless ``cache`` has it.

    Args:
        prefix: See `megatron_file`.
        cache: Folder of the index.
        window_tokens: Tokens of a window.
        samples: Windows in all epochs together.
    """
    from megatron.core.datasets.gpt_dataset import GPTDataset, GPTDatasetConfig
    from megatron.core.datasets.indexed_dataset import IndexedDataset
    from megatron.core.datasets.utils import Split

    class Tokenizer:
        unique_identifiers: ClassVar[dict[str, str]] = {}
        eod, pad, vocab_size = 0, 0, 65536

    config = GPTDatasetConfig(
        random_seed=0,
        sequence_length=window_tokens,
        blend=([str(prefix)], None),
        split="1,0,0",
        reset_position_ids=False,
        reset_attention_mask=False,
        eod_mask_loss=False,
        create_attention_mask=False,
        tokenizer=Tokenizer(),
        path_to_cache=str(cache),
    )
    indexed = IndexedDataset(str(prefix), mmap=True)
    documents = np.arange(len(indexed), dtype=np.int32)
    data: torch.utils.data.Dataset[dict[str, torch.Tensor]] = GPTDataset(
        indexed, str(prefix), documents, samples, Split.train, config
    )
    return data


def megatron_first_batch(
    folder: Path, tokens: int, *, document_tokens: int, window_tokens: int, epochs: int, batch_windows: int
) -> Measurement | Missing:
    """Measures the seconds to the first batch with an empty cache, or says why it cannot.

    Args:
        folder: Folder for the token file and the index.
        tokens: Unique tokens.
        document_tokens: Length of a document.
        window_tokens: Tokens of a window.
        epochs: Epochs that the index covers.
        batch_windows: Windows of the batch.
    """
    prefix = folder / "megatron"

    def measure() -> float:
        with tempfile.TemporaryDirectory(dir=folder) as cache, quiet():
            begin = time.perf_counter()
            samples = tokens // window_tokens * epochs
            data = megatron_dataset(prefix, Path(cache), window_tokens, samples)
            torch.stack([data[at]["tokens"].long() for at in range(batch_windows)])
            return time.perf_counter() - begin

    def prepare() -> Measurement:
        stream = np.random.default_rng(0).integers(2, 256, tokens, dtype=np.uint16)
        megatron_file(prefix, stream, document_tokens)
        measure()
        return measure

    return attempted("megatron-core", prepare)
