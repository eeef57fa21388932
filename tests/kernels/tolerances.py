"""The one table of how far a kernel may be from its float64 reference. To loosen it takes a decision page.

The error is ||kernel - reference|| / ||reference||, where the reference is computed in float64 from the same
rounded inputs. A reference that is zero is measured against the upstream gradient instead.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Kind = Literal["output", "gradient", "summed"]
"""A result; a gradient of an input; a gradient summed over many positions (tables, weights)."""

TOLERANCES: dict[tuple[str, Kind], float] = {
    ("float32", "output"): 1e-6,
    ("float32", "gradient"): 2e-6,
    ("float32", "summed"): 4e-6,
    ("float16", "output"): 6e-4,
    ("float16", "gradient"): 8e-4,
    ("float16", "summed"): 8e-4,
    ("bfloat16", "output"): 4e-3,
    ("bfloat16", "gradient"): 6e-3,
    ("bfloat16", "summed"): 6e-3,
    # fp32 through tensor cores: docs/decisions/tf32x3.md.
    ("tf32x3", "output"): 6e-6,
    ("tf32x3", "gradient"): 1.2e-5,
    ("tf32x3", "summed"): 2e-5,
}


def relative_error(actual: Tensor, reference: Tensor, upstream: Tensor) -> float:
    """See above; NaN in ``actual`` gives NaN, which is within no tolerance."""
    reference, upstream = reference.double(), upstream.double()
    size = reference.norm()
    if size < 1e-9 * upstream.norm():
        size = upstream.norm()
    return ((actual.double() - reference).norm() / size).item()


def tolerance(dtype: torch.dtype, kind: Kind, *, tensor_cores: bool = False) -> float:
    """Of the table.

    Args:
        dtype: Of the inputs.
        kind: Of the result.
        tensor_cores: Whether fp32 is multiplied in parts by tensor cores, as on a GPU.
    """
    name = str(dtype).removeprefix("torch.")
    return TOLERANCES["tf32x3" if tensor_cores and dtype == torch.float32 else name, kind]
