"""The exposures of every token, as an Arrow IPC file that can be memory-mapped.

One row for each document of a subset, in the order of the stream; a very long document has several rows:

    source     dictionary of strings   name of the source in the run
    document   string                  id of the document in the store
    position   int64                   position of its first token in the source's subset
    counts     list<uint32>            exposures of each token; the subset may end inside its last document

The `counts` of a record batch are contiguous: `batch.column("counts").values` is one array without copying.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from reptrain.auditing.exposures import Stretches
from reptrain.errors import RunError
from reptrain.files import replacing
from reptrain.plan import Stream

EXPOSURES_SCHEMA = pa.schema(
    [
        ("source", pa.dictionary(pa.int32(), pa.string())),
        ("document", pa.string()),
        ("position", pa.int64()),
        ("counts", pa.list_(pa.uint32())),
    ]
)

# Tokens per record batch: 8 MiB of counts.
_BATCH_TOKENS = 1 << 21


def check_target(path: Path) -> None:
    """Refuse a path that holds something else, or whose folder does not exist.

    Raises:
        RunError: Naming the reason.
    """
    if path.exists():
        try:
            with pa.OSFile(str(path)) as file:
                schema = pa.ipc.open_file(file).schema
        except (OSError, pa.ArrowInvalid):
            schema = None
        if schema != EXPOSURES_SCHEMA:
            raise RunError(
                f"--exposures {path}",
                got="another kind of file",
                rule="must be a new file, or one that an earlier audit wrote",
                remedy="Choose another name.",
            )
    elif not path.parent.is_dir():
        raise RunError(
            f"--exposures {path}",
            got=f"no folder {path.parent}",
            rule="must be in a folder that exists",
            remedy="Create the folder, or choose another path.",
        )


def write_exposures(path: Path, stretches: Stretches, stream: Stream, sources: Sequence[str]) -> None:
    """Write the counts of every token. The file appears, or replaces an earlier one, when it is complete.

    Args:
        path: The file.
        stretches: The counts over the concatenated subsets.
        stream: The run's tokens.
        sources: The names of its sources.

    Raises:
        RunError: If it cannot be written.
    """
    try:
        with replacing(path) as file, pa.ipc.new_file(file, EXPOSURES_SCHEMA) as writer:
            for place in range(len(sources)):
                for batch in _batches(stretches, stream, place, sources):
                    writer.write_batch(batch)
    except OSError as error:
        raise RunError(
            f"--exposures {path}",
            got=error.strerror or error,
            rule="must be a file that can be written",
            remedy="Choose another path, or free space.",
        ) from error


def _batches(
    stretches: Stretches, stream: Stream, place: int, sources: Sequence[str]
) -> Iterator[pa.RecordBatch]:
    subset, start = stream.subsets[place], int(stream.subset_starts[place])
    names = pa.array(sources, pa.string())
    # A batch ends at a document's end if it holds one, so that only longer documents are split.
    position = 0
    while position < subset.unique_tokens:
        length = min(_BATCH_TOKENS, subset.unique_tokens - position)
        passages = subset.passages(position, length)
        if position + length < subset.unique_tokens and len(passages) > 1:
            length -= passages.pop()[1]
        lengths = [tokens for _, tokens in passages]
        offsets = np.cumsum([0, *lengths])
        counts = stretches.between(start + position, start + position + length).each().astype(np.uint32)
        columns = [
            pa.DictionaryArray.from_arrays(pa.array(np.full(len(lengths), place, np.int32)), names),
            pa.array([identity for identity, _ in passages], pa.string()),
            pa.array(position + offsets[:-1], pa.int64()),
            pa.ListArray.from_arrays(pa.array(offsets, pa.int32()), pa.array(counts)),
        ]
        yield pa.record_batch(columns, schema=EXPOSURES_SCHEMA)
        position += length
