"""The operations of the benchmarks: dropout, and the `OPERATION` of each `ops/<name>/bench.py`."""

from __future__ import annotations

import importlib
import pkgutil

from reptrain_kernels import ops
from reptrain_kernels.bench.dropout import DROPOUT_OPERATION
from reptrain_kernels.bench.operation import Operation


def _operation(folder: str) -> Operation:
    operation = importlib.import_module(f"{ops.__name__}.{folder}.bench").OPERATION
    assert isinstance(operation, Operation)
    return operation


OPERATIONS: dict[str, Operation] = {
    operation.name: operation
    for operation in (
        DROPOUT_OPERATION,
        *(_operation(module.name) for module in pkgutil.iter_modules(ops.__path__)),
    )
}
