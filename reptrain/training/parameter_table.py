"""How the optimizer treats each parameter of a model; computed on the device "meta"."""

from __future__ import annotations

import re
from collections.abc import Iterable
from math import prod
from typing import NamedTuple

from reptrain.config.model import ModelConfig
from reptrain.config.optimizers import OptimizerConfig
from reptrain.model.init import meta_model
from reptrain.training.optimizers import optimizer_groups


class Treatment(NamedTuple):
    """The optimizer's settings for one parameter, or for the same parameter in several layers."""

    name: str
    """With `*` in place of a layer's number."""
    number: int
    """Number of stored tensors."""
    shape: tuple[int, ...]
    """Shape of each."""
    optimizer: str
    peak_lr: float
    weight_decay: float
    """At the start of the run."""

    @property
    def parameters(self) -> int:
        """Parameters in total."""
        return self.number * prod(self.shape)


def treatments(model: ModelConfig, optimizer: OptimizerConfig, *, vocab_size: int) -> list[Treatment]:
    """List the treatment of every parameter, in the model's order.

    Args:
        model: The model.
        optimizer: The optimizer's settings.
        vocab_size: Size of the tokenizer's vocabulary.
    """
    built = meta_model(model, vocab_size=vocab_size)
    groups = optimizer_groups(built, optimizer)
    group_of = {parameter: group for group in groups for parameter in group["params"]}
    counts: dict[Treatment, int] = {}
    for name, parameter in built.named_parameters():
        group = group_of[parameter]
        decay = optimizer.weight_decay.first * group.get("decay_ratio", 1.0) if group["decays"] else 0.0
        how = optimizer.name if group.get("use_muon", True) else "adamw"
        rate = optimizer.lr * group.get("lr_ratio", 1.0)
        layers = re.sub(r"\.\d+\.", ".*.", name)
        treatment = Treatment(layers, 0, tuple(parameter.shape), how, rate, decay)
        counts[treatment] = counts.get(treatment, 0) + 1
    return [treatment._replace(number=number) for treatment, number in counts.items()]


def treatments_text(found: Iterable[Treatment]) -> str:
    """The table as printed, with the number of parameters that decay."""
    rows = list(found)
    width = max(len(row.name) for row in rows)
    lines = [f"{'parameter':{width}}  {'stored':>14}  {'by':9}  {'peak lr':>8}  weight decay"]
    for row in rows:
        stored = f"{row.number} x {'x'.join(map(str, row.shape))}"
        lines.append(
            f"{row.name:{width}}  {stored:>14}  {row.optimizer:9}  {row.peak_lr:>8.2g}  {row.weight_decay:g}"
        )
    decayed = sum(row.parameters for row in rows if row.weight_decay)
    total = sum(row.parameters for row in rows)
    return "\n".join([*lines, f"{total:,} parameters, {decayed:,} of them decay"])
