"""How our parameters lie in the tensors of a Hugging Face folder.

Shapes: E experts.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor


class Part(NamedTuple):
    """One tensor of a folder, and the parameters of ours that it holds."""

    theirs: str
    """Its name there."""
    ours: tuple[str, ...]
    """Names of parameters that lie one behind the other along ``dim``."""
    expert: int | None = None
    """Which expert's share of them; None: all of them."""
    transposed: bool = False
    """Whether it lies there as input by output."""
    dim: int = 0
    """The dimension along which several parameters lie."""


def shape_of(part: Part, shapes: Mapping[str, Iterable[int]]) -> tuple[int, ...]:
    """The shape of the tensor in the folder.

    Args:
        part: The tensor.
        shapes: Those of our parameters.
    """
    held = [tuple(shapes[name])[0 if part.expert is None else 1 :] for name in part.ours]
    joined = sum(one[part.dim] for one in held)
    shape = (*held[0][: part.dim], joined, *held[0][part.dim + 1 :])
    return shape[::-1] if part.transposed else shape


def join(part: Part, weights: Mapping[str, Tensor]) -> Tensor:
    """The tensor for a folder, from our parameters."""
    held = [weights[name] if part.expert is None else weights[name][part.expert] for name in part.ours]
    tensor = torch.cat(held, part.dim) if len(held) > 1 else held[0]
    return (tensor.T if part.transposed else tensor).contiguous()


def take_apart(part: Part, tensor: Tensor, weights: Mapping[str, Tensor]) -> None:
    """Write a folder's tensor into our parameters."""
    targets = [weights[name] if part.expert is None else weights[name][part.expert] for name in part.ours]
    whole = tensor.T if part.transposed else tensor
    sizes = [target.shape[part.dim] for target in targets]
    for target, found in zip(targets, whole.split(sizes, part.dim), strict=True):
        target.copy_(found)
