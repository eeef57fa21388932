"""The tokenizer of a new store: copied, or trained on the training documents."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from reptrain.files import write_atomically
from reptrain.stages import StageProgress
from reptrain.store.manifest import TRAINED
from reptrain.text import Tokenizer, load_tokenizer, train_tokenizer
from reptrain.text.documents import Fields
from reptrain.tokenization.encode import kept_documents
from reptrain.tokenization.jobs import TokenizeJob
from reptrain.tokenization.work import Work
from reptrain.tokenize_options import StoreOptions

_TRAINING_BYTES = 1 << 26


@dataclass(frozen=True)
class TrainingTexts:
    """The training documents, or a sample of them by content hash; each iteration reads the files again."""

    jobs: Sequence[TokenizeJob]
    fields: Fields
    work: Work
    fraction: float

    def __iter__(self) -> Iterator[str]:
        limit = int(self.fraction * 2**64)
        for job in self.jobs:
            for split, document, _ in kept_documents(job, self.fields, self.work):
                if split == "train" and (self.fraction == 1.0 or _draw(document.text) < limit):
                    yield document.text


def copy_tokenizer(tokenizer: Tokenizer, work: Work) -> Tokenizer:
    """Write a given tokenizer into the store, without a flush."""
    write_atomically(work.out / tokenizer.file_name, tokenizer.model_bytes, flush=False)
    return tokenizer


def train_or_load(
    jobs: Sequence[TokenizeJob],
    fields: Fields,
    work: Work,
    options: StoreOptions,
    *,
    text_bytes: int,
    fit_vocab: bool,
    progress: StageProgress,
) -> Tokenizer:
    """Train the store's tokenizer, or load it where an interrupted call has trained it.

    Args:
        jobs: As planned, with line numbers.
        fields: What to read of a record.
        work: The work in progress.
        options: Vocabulary size and sentinels.
        text_bytes: UTF-8 bytes of the text; a sample of large text is used for training.
        fit_vocab: Whether the vocabulary size is a default, which may be changed to fit the text.
        progress: Called at the start and the end.
    """
    path = work.out / TRAINED
    if path.exists():
        return load_tokenizer(path)
    progress("train tokenizer", 0, text_bytes)
    assert options.vocab_size is not None and options.num_sentinels is not None
    fraction = min(1.0, _TRAINING_BYTES / text_bytes)
    tokenizer = train_tokenizer(
        TrainingTexts(jobs, fields, work, fraction),
        path,
        vocab_size=options.vocab_size,
        num_sentinels=options.num_sentinels,
        fit=fit_vocab,
    )
    progress("train tokenizer", text_bytes, text_bytes)
    return tokenizer


def _draw(text: str) -> int:
    digest = hashlib.blake2b(text.encode(), digest_size=8, person=b"reptrain.sample").digest()
    return int.from_bytes(digest)
