"""The operations of the bench: one joins by a module beside this one and a line here."""

from reptrain_kernels.bench.operation import Operation
from reptrain_kernels.bench.operations.attention import ATTENTION_OPERATION
from reptrain_kernels.bench.operations.dropout import DROPOUT_OPERATION
from reptrain_kernels.bench.operations.gated import GATED_OPERATION
from reptrain_kernels.bench.operations.grouped import GROUPED_OPERATION
from reptrain_kernels.bench.operations.linear_cross_entropy import LINEAR_CROSS_ENTROPY_OPERATION
from reptrain_kernels.bench.operations.norm import NORM_OPERATION
from reptrain_kernels.bench.operations.permute import PERMUTE_OPERATION
from reptrain_kernels.bench.operations.rope import ROPE_OPERATION
from reptrain_kernels.bench.operations.router import ROUTER_OPERATION

OPERATIONS: dict[str, Operation] = {
    operation.name: operation
    for operation in (
        ATTENTION_OPERATION,
        DROPOUT_OPERATION,
        NORM_OPERATION,
        GATED_OPERATION,
        ROPE_OPERATION,
        GROUPED_OPERATION,
        PERMUTE_OPERATION,
        ROUTER_OPERATION,
        LINEAR_CROSS_ENTROPY_OPERATION,
    )
}
