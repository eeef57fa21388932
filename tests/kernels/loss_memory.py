"""Prints how far the loss of 128 thousand ids raises this process's peak of memory, in bytes.

Argument: torch, the definition with all logits, or triton, interpreted.
"""

from __future__ import annotations

import json
import resource
import sys
from typing import Any

import torch

from reptrain_kernels.ops.linear_cross_entropy import Targets, linear_cross_entropy

N, D, V = 256, 8, 128_256


def raised(impl: Any) -> int:
    """By forward and backward pass, without the gradients that both must return."""
    generator = torch.Generator().manual_seed(0)
    x_ND, head_VD = (torch.randn(rows, D, generator=generator, dtype=torch.bfloat16) for rows in (N, V))
    leaves = [x_ND.requires_grad_(), head_VD.requires_grad_()]
    # What is loaded at a first call is not what is asked for.
    for ids in (64, V):
        target_N = torch.randint(ids, (N,), generator=generator)
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        linear_cross_entropy(
            x_ND, head_VD[:ids], Targets(target_N, wants_correct=False), impl=impl
        ).loss.backward()
    assert all(leaf.grad is not None for leaf in leaves)
    return 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)


if __name__ == "__main__":
    print(json.dumps(raised(sys.argv[1])))
