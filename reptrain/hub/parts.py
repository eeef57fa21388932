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
    """Names of parameters that lie one behind the other along its first dimension."""
    expert: int | None = None
    """Which expert's share of them; None: all of them."""
    transposed: bool = False
    """Whether it lies there as input by output."""


def shape_of(part: Part, shapes: Mapping[str, Iterable[int]]) -> tuple[int, ...]:
    """The shape of the tensor in the folder.

    Args:
        part: The tensor.
        shapes: Those of our parameters.
    """
    held = [tuple(shapes[name])[0 if part.expert is None else 1 :] for name in part.ours]
    shape = (sum(one[0] for one in held), *held[0][1:])
    return shape[::-1] if part.transposed else shape


def join(part: Part, weights: Mapping[str, Tensor]) -> Tensor:
    """The tensor for a folder, from our parameters."""
    held = [weights[name] if part.expert is None else weights[name][part.expert] for name in part.ours]
    tensor = torch.cat(held) if len(held) > 1 else held[0]
    return (tensor.T if part.transposed else tensor).contiguous()


def take_apart(part: Part, tensor: Tensor, weights: Mapping[str, Tensor]) -> None:
    """Write a folder's tensor into our parameters."""
    targets = [weights[name] if part.expert is None else weights[name][part.expert] for name in part.ours]
    whole = tensor.T if part.transposed else tensor
    for target, found in zip(targets, whole.split([len(target) for target in targets]), strict=True):
        target.copy_(found)
