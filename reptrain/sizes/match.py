"""Matching of sizes: change a model so that its parameters or FLOPs equal those of another model.

One dimension varies:

- width: d_model, with num_heads and d_ff in proportion. A step is the width of a head (of a group of heads
  with grouped-query attention), or 8 if num_heads x head_dim is not d_model.
- depth: num_layers, in whole cycles of sparse or stored layers; both stacks of a T5 model in proportion.
- groups: the number of stored layers, which must divide the number of layers; both stacks in proportion.
- experts: the number of experts of each sparse layer.
- d_ff: hidden units in steps of 8, those of the experts and the shared MLP in proportion. If all layers are
  sparse and moe.d_ff is set, moe.d_ff varies instead.

If no value of another dimension is within the tolerance, d_ff varies too, from half to twice its value.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from reptrain.config.load import set_dotted
from reptrain.config.model import DecoderConfig, ModelConfig, T5Config
from reptrain.errors import ConfigError, check_choice
from reptrain.sizes.subject import Subject, subject_of, trainable

By = Literal["total-params", "active-params", "flops"]
Vary = Literal["width", "depth", "experts", "groups", "d_ff"]
Changes = dict[str, Any]
_STEP = 8
_LIMITS = {"width": 2**14, "depth": 2**12, "experts": 2**14, "d_ff": 2**17}


@dataclass(frozen=True)
class Match:
    """The result of a match."""

    subject: Subject
    """The changed model."""
    wanted: float
    """Parameters of the other model, or its training FLOPs per raw token with all pairs of positions."""
    got: float
    """The same quantity of the changed model."""
    changes: dict[str, tuple[Any, Any]]
    """Changed keys of the model, with the value before and after."""

    @property
    def off(self) -> float:
        """Relative difference from the other model."""
        return self.got / self.wanted - 1


def quantity(subject: Subject, by: By) -> float:
    """The quantity to match: parameters, or training FLOPs per raw token.

    Raises:
        ConfigError: If ``by`` is unknown.
    """
    check_choice("match by", by, get_args(By))
    if by == "flops":
        return 3 * subject.forward.total / subject.window_tokens
    return subject.parameters.total if by == "total-params" else subject.parameters.active


def match(subject: Subject, other: Subject, *, by: By, vary: Vary, tolerance: float) -> Match:
    """Change ``subject`` so that its size equals that of ``other``.

    Args:
        subject: The model to change.
        other: The model to match.
        by: The quantity to match.
        vary: The dimension that varies.
        tolerance: Largest relative difference.

    Raises:
        ConfigError: If ``by`` or ``vary`` is unknown, the model lacks the dimension, or no value is within
            the tolerance.
    """
    check_choice("match vary", vary, get_args(Vary))
    _, model = trainable(subject, "the model to change")
    wanted = quantity(other, by)
    with_changes = _Trial(subject, wanted, by)
    ranked = with_changes.nearest(_steps_of(model, vary))
    if abs(with_changes.distance(ranked[0])) > math.log1p(tolerance) and vary != "d_ff":
        fine = [with_changes.nearest(_fine(with_changes.of(changes), changes))[0] for changes in ranked]
        ranked = sorted([*ranked, *fine], key=lambda changes: abs(with_changes.distance(changes)))
    best = with_changes.of(ranked[0])
    before, after = subject.run, best.run
    assert before is not None and after is not None
    old, new = _flat(before.model.model_dump()), _flat(after.model.model_dump())
    changes = {key: (old.get(key), value) for key, value in new.items() if old.get(key) != value}
    result = Match(best, wanted, quantity(best, by), changes)
    if abs(result.off) > tolerance:
        raise ConfigError(
            f"match by {by} with {vary}",
            got=f"{result.got:.6g} at the nearest, {result.off:+.2%} off",
            rule=f"must come within {tolerance:.2%} of {wanted:.6g}",
            remedy="Vary something else, change more by hand, or pass a larger --tolerance.",
        )
    return result


class _Trial:
    """The model with changes, and its distance from the target."""

    def __init__(self, subject: Subject, wanted: float, by: By) -> None:
        self.subject, self.wanted, self.by = subject, wanted, by

    def of(self, changes: Mapping[str, Any]) -> Subject:
        data = dict(self.subject.data)
        for key, value in changes.items():
            set_dotted(data, f"model.{key}", value)
        return subject_of(data, self.subject.vocab_size)

    def distance(self, changes: Mapping[str, Any]) -> float:
        """Logarithm of the quantity over the target."""
        return math.log(quantity(self.of(changes), self.by) / self.wanted)

    def nearest(self, steps: Sequence[Changes] | Callable[[int], Changes | None]) -> list[Changes]:
        """The two nearest of increasing steps, the nearer first."""
        at = steps if callable(steps) else (lambda n: steps[n] if n < len(steps) else None)
        low, high = 0, 1

        def below(n: int) -> bool:
            changes = at(n)
            return changes is not None and self.distance(changes) < 0

        while below(high):
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if below(middle) else (low, middle)
        found = [changes for changes in (at(low), at(high)) if changes is not None]
        return sorted(found, key=lambda changes: abs(self.distance(changes)))


def _steps_of(model: ModelConfig, vary: Vary) -> Sequence[Changes] | Callable[[int], Changes | None]:
    """The steps of a dimension from small to large, each as the keys of the model that it sets."""
    if vary == "width":
        return _widths(model)
    if vary == "depth":
        return _depths(model)
    if vary == "groups":
        return _groups(model)
    if vary == "d_ff":
        return lambda n: _d_ff(model, _STEP * (n + 1)) if n < _LIMITS["d_ff"] // _STEP else None
    if model.moe is None:
        raise ConfigError(
            "--vary experts",
            got="a model without model.moe",
            rule="needs sparse layers",
            remedy="Set model.moe.num_experts, or vary something else.",
        )
    least = max(2, model.moe.top_k)
    return lambda n: {"moe.num_experts": least + n} if n < _LIMITS["experts"] else None


def _widths(model: ModelConfig) -> Callable[[int], Changes | None]:
    kv_heads = model.num_kv_heads if isinstance(model, DecoderConfig) else None
    # Multi-query attention keeps its one head of keys and values.
    sharing = model.num_heads // kv_heads if kv_heads is not None and kv_heads > 1 else 1
    step = model.head_width * sharing if model.num_heads * model.head_width == model.d_model else _STEP
    if model.moe is not None:
        step = math.lcm(step, _STEP)

    def width(n: int) -> Changes | None:
        d_model = step * (n + 1)
        if d_model > _LIMITS["width"]:
            return None
        heads = max(1, round(model.num_heads * d_model / model.d_model))
        changes = {"d_model": d_model, "num_heads": heads}
        if kv_heads is not None and kv_heads > 1:
            changes["num_kv_heads"] = heads // sharing
        return changes | _d_ff(model, _rounded(_hidden(model)[1] * d_model / model.d_model))

    return width


def _depths(model: ModelConfig) -> Callable[[int], Changes | None]:
    names, layers, stored = _layers(model)
    common = math.gcd(*layers)
    unit = [number // common for number in layers]
    every = model.moe.every if model.moe else 1
    # The smallest multiple of the proportion that consists of whole cycles.
    cycles = [kept or every for kept in stored]
    times = math.lcm(*(cycle // math.gcd(cycle, part) for cycle, part in zip(cycles, unit, strict=True)))

    def depth(n: int) -> Changes | None:
        numbers = [part * times * (n + 1) for part in unit]
        return dict(zip(names, numbers, strict=True)) if max(numbers) <= _LIMITS["depth"] else None

    return depth


def _groups(model: ModelConfig) -> list[Changes]:
    names, layers, _ = _layers(model)
    names = [name.replace("num_", "num_stored_") for name in names]
    common = math.gcd(*layers)
    every = model.moe.every if model.moe else 1
    repeats = [n for n in range(common, 0, -1) if common % n == 0]
    kept = [[number // n for number in layers] for n in repeats]
    return [dict(zip(names, numbers, strict=True)) for numbers in kept if not any(n % every for n in numbers)]


def _layers(model: ModelConfig) -> tuple[list[str], list[int], list[int | None]]:
    """For each stack: the key of its number of layers, that number, and the number stored, if set."""
    if isinstance(model, T5Config):
        names = ["num_encoder_layers", "num_decoder_layers"]
        stored = [model.num_stored_encoder_layers, model.num_stored_decoder_layers]
        return names, [model.num_encoder_layers, model.num_decoder_layers], stored
    return ["num_layers"], [model.num_layers], [model.num_stored_layers]


def _fine(coarse: Subject, changes: Changes) -> Callable[[int], Changes | None]:
    """Variations of the hidden units of a model that another dimension produced."""
    _, model = trainable(coarse, "the model to change")
    _, hidden = _hidden(model)
    least, most = max(1, hidden // (2 * _STEP)), 2 * hidden // _STEP

    def fine(n: int) -> Changes | None:
        return changes | _d_ff(model, _STEP * (least + n)) if least + n <= most else None

    return fine


def _hidden(model: ModelConfig) -> tuple[str, int]:
    """The key of the hidden units that vary, and their number."""
    stacks = [model.encoder, model.decoder] if isinstance(model, T5Config) else [model.stack]
    is_dense_somewhere = any(stack.num_sparse < stack.num_layers for stack in stacks)
    if is_dense_somewhere or model.moe is None or model.moe.d_ff is None:
        return "d_ff", model.d_ff
    return "moe.d_ff", model.moe.d_ff


def _d_ff(model: ModelConfig, hidden: int) -> Changes:
    """Set the hidden units, those of the other MLPs of sparse layers in proportion."""
    key, before = _hidden(model)
    changes: Changes = {key: hidden}
    if model.moe is not None:
        for name, old in (("moe.d_ff", model.moe.d_ff), ("moe.shared_d_ff", model.moe.shared_d_ff)):
            if old and name != key:
                changes[name] = _rounded(old * hidden / before)
    return changes


def _rounded(hidden: float) -> int:
    return max(_STEP, _STEP * round(hidden / _STEP))


def _flat(data: Mapping[str, Any], prefix: str = "model.") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
