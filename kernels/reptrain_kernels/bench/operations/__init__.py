"""The operations of the bench: one joins by a module beside this one and a line here."""

from reptrain_kernels.bench.operation import Operation
from reptrain_kernels.bench.operations.attention import ATTENTION_OPERATION
from reptrain_kernels.bench.operations.dropout import DROPOUT_OPERATION

OPERATIONS: dict[str, Operation] = {
    operation.name: operation
    for operation in (
        ATTENTION_OPERATION,
        DROPOUT_OPERATION,
    )
}
