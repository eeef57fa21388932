"""The columns of a shard have the bytes that Arrow itself would write."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from reptrain.store.shards import _lists, _strings


def written(column: pa.Array) -> bytes:
    """The column as an Arrow file."""
    buffer = pa.BufferOutputStream()
    schema = pa.schema([("column", column.type)])
    with pa.ipc.new_file(buffer, schema) as writer:
        writer.write_batch(pa.record_batch([column], schema=schema))
    return buffer.getvalue().to_pybytes()


@pytest.mark.parametrize(
    "values",
    [["a", "b\u00e9", ""], [None, None], ["a", None, *["\u6f22"] * 9, None], [""], [None] * 64 + ["x"]],
    ids=["texts", "nulls", "mixed", "empty", "long"],
)
def test_text_columns_are_those_of_arrow(values: list[str | None]) -> None:
    assert written(_strings(values)) == written(pa.array(values, pa.string()))


@pytest.mark.parametrize("dtype", [np.uint16, np.uint32])
def test_token_columns_are_those_of_arrow(dtype: type[np.unsignedinteger]) -> None:
    arrays = [np.arange(size, dtype=dtype) for size in (3, 1, 70)]
    expected = pa.array([array.tolist() for array in arrays], pa.list_(pa.from_numpy_dtype(dtype)))
    assert written(_lists(arrays)) == written(expected)
