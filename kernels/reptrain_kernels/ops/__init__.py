"""The fused operations, one folder each: definition in torch, Triton kernels, and the choice between them."""
