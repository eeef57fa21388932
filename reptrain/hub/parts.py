"""Mapping between the parameters of our models and the tensors of a Hugging Face folder.

Shapes: E experts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor


class Part(NamedTuple):
    """One tensor of a folder, and our parameters that it holds."""

    theirs: str
    """Name of the tensor."""
    ours: tuple[str, ...]
    """Names of our parameters, concatenated along ``dim``."""
    expert: int | None = None
    """The expert whose slice of the parameters it holds; None: the whole parameters."""
    transposed: bool = False
    """Whether the tensor has the shape (input, output)."""
    dim: int = 0
    """The dimension along which several parameters are concatenated."""


def shape_of(part: Part, shapes: Mapping[str, Iterable[int]]) -> tuple[int, ...]:
    """The shape of the tensor in the folder.

    Args:
        part: The tensor.
        shapes: Shapes of our parameters by name.
    """
    held = [tuple(shapes[name])[0 if part.expert is None else 1 :] for name in part.ours]
    joined = sum(one[part.dim] for one in held)
    shape = (*held[0][: part.dim], joined, *held[0][part.dim + 1 :])
    return shape[::-1] if part.transposed else shape


def join(part: Part, parameter: Callable[[str, int | None], Tensor]) -> Tensor:
    """Build a folder's tensor from our parameters.

    Args:
        part: The tensor.
        parameter: Returns a parameter by name, or the slice of one expert.
    """
    held = [parameter(name, part.expert) for name in part.ours]
    tensor = torch.cat(held, part.dim) if len(held) > 1 else held[0]
    return (tensor.T if part.transposed else tensor).contiguous()


def split(
    part: Part, tensor: Tensor, weights: Mapping[str, Tensor], shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """Copy a folder's tensor into those of our parameters that are given.

    Args:
        part: The tensor.
        tensor: Its values.
        weights: Parameters by name, filled in place.
        shapes: Shapes of all our parameters by name.
    """
    whole = tensor.T if part.transposed else tensor
    sizes = [shapes[name][part.dim if part.expert is None else part.dim + 1] for name in part.ours]
    for name, values in zip(part.ours, torch.split(whole, sizes, part.dim), strict=True):
        if name in weights:
            target = weights[name] if part.expert is None else weights[name][part.expert]
            target.copy_(values)
