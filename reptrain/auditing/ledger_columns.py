"""The ledger as columns, for the audit."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import NamedTuple, Self

import numpy as np
import numpy.typing as npt

from reptrain.runs.ledger import LedgerRecord

Int64s = npt.NDArray[np.int64]

# Records held as objects at a time: they take far more memory than their columns.
_BLOCK = 1 << 12
_LARGEST = 2**62
_NO_SHARE = (-1, -1, -1)


class Columns(NamedTuple):
    """Records of the ledger. Numbers above 2**62, which no run reaches, become 2**62."""

    step: Int64s
    first_index: Int64s
    windows: Int64s
    tokens: Int64s
    epoch: Int64s
    applied: npt.NDArray[np.bool_]
    digest: npt.NDArray[np.uint64]
    inputs: npt.NDArray[np.uint64]
    """Input digest, 0 if a record lacks it."""
    targets: Int64s
    """Number of targets, -1 if a record lacks it or the input digest."""
    shares: Int64s
    """int64 [R, S, 3]: windows, tokens and epoch of each source of a mixture, -1 if a record lacks it.
    int64 [R, 0, 3] for a run on one store."""

    @classmethod
    def of(cls, records: Sequence[LedgerRecord], sources: Sequence[str] = ()) -> Self:
        """The columns of records.

        Args:
            records: At least one.
            sources: Names of the sources of a mixture.
        """
        shares = [_share(record, name) for record in records for name in sources]
        return cls(
            _integers([record.step for record in records]),
            _integers([record.first_index for record in records]),
            _integers([record.windows for record in records]),
            _integers([record.tokens for record in records]),
            _integers([record.epoch for record in records]),
            np.asarray([record.applied for record in records]),
            np.asarray([int(record.digest, 16) for record in records], dtype=np.uint64),
            np.asarray([int(record.inputs or "0", 16) for record in records], dtype=np.uint64),
            _integers([_targets(record) for record in records]),
            _integers(shares).reshape(len(records), len(sources), 3),
        )

    def at(self, where: npt.NDArray[np.bool_] | slice) -> Self:
        """The records where a mask is true, or of a slice."""
        return type(self)._make(column[where] for column in self)


def column_chunks(records: Iterable[LedgerRecord], sources: Sequence[str], size: int) -> Iterator[Columns]:
    """The records in order, in chunks of about `size`, each of at least one."""
    waiting, held = [], 0
    records = iter(records)
    while block := list(islice(records, min(_BLOCK, size))):
        waiting.append(Columns.of(block, sources))
        held += len(block)
        if held >= size:
            yield _joined(waiting)
            waiting, held = [], 0
    if waiting:
        yield _joined(waiting)


def _joined(parts: Sequence[Columns]) -> Columns:
    return Columns._make(np.concatenate(columns) for columns in zip(*parts, strict=True))


def _targets(record: LedgerRecord) -> int:
    return -1 if record.inputs is None or record.targets is None else record.targets


def _share(record: LedgerRecord, source: str) -> tuple[int, int, int]:
    share = (record.sources or {}).get(source)
    return _NO_SHARE if share is None else (share.windows, share.tokens, share.epoch)


def _integers(values: Sequence[int] | Sequence[tuple[int, int, int]]) -> Int64s:
    try:
        return np.minimum(np.asarray(values, dtype=np.int64), _LARGEST)
    except OverflowError:
        return np.asarray(np.minimum(np.asarray(values, dtype=object), _LARGEST).astype(np.int64))
