"""Dropout whose mask is a pure function of seed, step and position: no generator, no state, no stored mask.

Layout. A 64-bit key is folded word by word, each fold being the first output of SplitMix64 from the seed
``key ^ word``:

    fold(key, word) = mix64((key ^ word) + GAMMA)
    row key         = fold(fold(fold(0, seed), step), row)
    call key        = fold(row key, site), and fold(that, head) for attention weights
    line key        = fold(call key, position)
    word of a unit  = mix32((unit ^ low half of the line key) (high half of the line key | 1))

A line key depends on ``call key ^ position`` only. So this word is the call key of a tensor with that one
position (`position_keys`). A rank with some of a row's positions thus has its part of the row's mask.

All arithmetic is unsigned and wraps; seed, step, row, site, head and position have 64 bits, a unit
has 32. A unit is kept where its word, read as a signed 32-bit number, is at least
``threshold - 2**31`` with ``threshold = round(rate * 2**32)``. Kept values are multiplied by
``2**32 / (2**32 - threshold)``, the inverse of the exact probability of being kept.

Signed integers of torch wrap like unsigned ones; only the right shift needs a mask.

Sources:
    mix64 and GAMMA: Steele, Lea & Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
    mix32: Wellons, "Prospecting for hash functions" (lowbias32), 2018.
    Folding by nested hashes: Jarzynski & Olano, "Hash functions for GPU rendering", JCGT 9(3), 2020.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from reptrain_kernels import counter_native
from reptrain_kernels.implementation import Implementation, choose_implementation
from reptrain_kernels.rates import Rate, packed

_GAMMA = 0x9E3779B97F4A7C15
_MIX64 = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
_MIX32 = (0x7FEB352D, 0x846CA68B)


def _signed(value: int, num_bits: int) -> int:
    """The two's complement number with the low ``num_bits`` bits of ``value``."""
    half = 1 << (num_bits - 1)
    return (value + half) % (1 << num_bits) - half


def _xor_shift_(x: Tensor, num_bits: int, scratch: Tensor) -> Tensor:
    """``x ^= x >> num_bits`` with a logical shift."""
    width = 8 * x.element_size()
    return x.bitwise_xor_(
        scratch.copy_(x).bitwise_right_shift_(num_bits).bitwise_and_(2 ** (width - num_bits) - 1)
    )


# In place: eager mode spends most of its time on memory allocation (9 ms instead of 18 for 2**20 words).
def mix32_(x: Tensor) -> Tensor:
    """lowbias32, in place: a bijection of 32-bit words (int32) in which each bit depends on every bit."""
    scratch = torch.empty_like(x)
    _xor_shift_(x, 16, scratch).mul_(_signed(_MIX32[0], 32))
    _xor_shift_(x, 15, scratch).mul_(_signed(_MIX32[1], 32))
    return _xor_shift_(x, 16, scratch)


def mix64_(x: Tensor) -> Tensor:
    """SplitMix64's output function, in place: a bijection of 64-bit words (int64)."""
    scratch = torch.empty_like(x)
    _xor_shift_(x, 30, scratch).mul_(_signed(_MIX64[0], 64))
    _xor_shift_(x, 27, scratch).mul_(_signed(_MIX64[1], 64))
    return _xor_shift_(x, 31, scratch)


def fold(key: Tensor, word: Tensor | int) -> Tensor:
    """Derive keys that also depend on ``word``.

    Args:
        key: int64, any shape.
        word: An int, or int64 that broadcasts against ``key``.

    Returns:
        int64, of the broadcast shape.
    """
    # The xor comes before any arithmetic: compiled code may assume that arithmetic on an index never wraps.
    return mix64_((key ^ word) + _signed(_GAMMA, 64))


def fold_int(key: int, word: int) -> int:
    """`fold` of Python ints: unsigned 64-bit numbers in and out."""
    x = ((key ^ word) + _GAMMA) % 2**64
    x = (x ^ (x >> 30)) * _MIX64[0] % 2**64
    x = (x ^ (x >> 27)) * _MIX64[1] % 2**64
    return x ^ (x >> 31)


def row_keys(seed: int, step: int, row: Tensor) -> Tensor:
    """The keys of a step's rows.

    Args:
        seed: Seed of the run.
        step: Optimizer step.
        row: int64, any shape: index of the row in the global batch of the step.

    Returns:
        int64, the shape of ``row``.
    """
    step_key = _signed(fold_int(fold_int(0, seed), step), 64)
    return fold(torch.full_like(row, step_key), row)


def position_keys(key: Tensor, position_P: Tensor) -> Tensor:
    """Call keys of single positions, for tensors that have some of the positions of a row.

    >>> x, key = torch.ones(1, 6, 4), torch.tensor([7])
    >>> late = dropout(x[:, 4:], position_keys(key, torch.tensor([4, 5])), 0.5)
    >>> torch.equal(late, dropout(x, key, 0.5)[:, 4:])
    True

    Args:
        key: int64, shape [...]: call keys.
        position_P: int64, the position of each line in its row.

    Returns:
        int64, shape [..., P].
    """
    return key[..., None] ^ position_P


def random_words(key: Tensor, num_positions: int, num_units: int) -> Tensor:
    """Uniform 32-bit words, one for each unit of each position of each key.

    Args:
        key: int64, shape [...].
        num_positions: P.
        num_units: U, at most 2**32.

    Returns:
        int32, shape [..., P, U].
    """
    words = counter_native.random_words(key, num_positions, num_units)
    return random_words_in_torch(key, num_positions, num_units) if words is None else words


def random_words_in_torch(key: Tensor, num_positions: int, num_units: int) -> Tensor:
    """`random_words` in plain torch: on GPUs, in compiled code, and on CPUs without a C compiler."""
    position_P = torch.arange(num_positions, dtype=torch.int64, device=key.device)
    line_key = fold(key[..., None], position_P)[..., None]
    unit_U = torch.arange(num_units, dtype=torch.int32, device=key.device)
    low, high = line_key.to(torch.int32), (line_key >> 32).to(torch.int32)
    return mix32_((unit_U ^ low).mul_(high | 1))


def key_and_rate(key: Tensor | None, rate: Rate) -> tuple[Tensor | None, Tensor | None]:
    """The key and the packed rate; None and None if nothing is dropped (no key, or a rate of 0).

    Raises:
        ValueError: If the rate is not in [0, 1).
    """
    rate_2 = packed(rate)
    drops_nothing = key is None or (not isinstance(rate, Tensor) and rate == 0)
    return (None, None) if drops_nothing else (key, rate_2)


def check_key(name: str, key: Tensor, x: Tensor) -> None:
    """Raise a ValueError unless ``key`` contains a call key for each leading index of ``x``."""
    if key.shape != x.shape[:-2] or key.dtype != torch.int64:
        raise ValueError(
            f"{name}: must be int64 of shape {tuple(x.shape[:-2])}, but got {key.dtype} of {tuple(key.shape)}"
        )


def has_position_keys(key: Tensor | None, x: Tensor) -> bool:
    """Whether ``key`` contains a call key for each position of ``x`` (see `position_keys`)."""
    return key is not None and key.shape == x.shape[:-1]


def dropout(x: Tensor, key: Tensor, rate: Rate, *, impl: Implementation | None = None) -> Tensor:
    """Drop units of ``x`` at ``rate`` and scale the others up; the backward pass recomputes the mask.

    Args:
        x: Floating point, shape [..., P, U]: positions and units.
        key: int64, shape [...]: one call key for each leading index (see the module's layout); or [..., P]:
            one for each position (see `position_keys`).
        rate: Dropout probability in [0, 1), a number or the result of `packed`. A packed rate may change from
            call to call without a new compilation.
        impl: "torch" or "triton"; None: by the device (see `choose_implementation`). Both give the same
            bits.

    Returns:
        The shape and dtype of ``x``.

    Raises:
        ValueError: If the shapes, the key's dtype or the rate do not fit.
    """
    if has_position_keys(key, x):
        return dropout(x.unsqueeze(-2), key, rate, impl=impl).squeeze(-2)
    check_key("key", key, x)
    rate_2 = packed(rate)
    if choose_implementation(x.device, impl) == "triton":
        from reptrain_kernels.counter_triton import counter_dropout

        return counter_dropout(x, key, rate_2)
    return _TorchDropout.apply(x, key, rate_2)


def jitter(x: Tensor, key: Tensor, amount: float, *, impl: Implementation | None = None) -> Tensor:
    """Multiply each unit by 1 + ``amount`` u, with u uniform in [-1, 1).

    Args:
        x: fp32, shape [..., P, U]: positions and units.
        key: int64, shape [...]: one call key for each leading index.
        amount: At least 0.
        impl: As in `dropout`. The results may differ in the last bit.

    Returns:
        The shape of ``x``, fp32.

    Raises:
        ValueError: If the shapes or the key's dtype do not fit.
    """
    check_key("key", key, x)
    if choose_implementation(x.device, impl) == "triton":
        from reptrain_kernels.counter_triton import counter_jitter

        return counter_jitter(x, key, amount)
    return x * (1 + amount * 2.0**-31 * random_words(key, x.shape[-2], x.shape[-1]).float())


def dropout_in_torch(x: Tensor, key: Tensor, rate_2: Tensor) -> Tensor:
    """`dropout` in plain torch, without a gradient; the rate is packed."""
    threshold, scale = rate_2.unbind()
    # As int32: a comparison with float64 would convert the words to floating point.
    keep = random_words_in_torch(key, x.shape[-2], x.shape[-1]) >= threshold.to(torch.int32)
    return torch.where(keep, x * scale, 0.0)


class _TorchDropout(torch.autograd.Function):
    """Dropout on a CPU, and the reference. It is linear in ``x``: the backward pass is the same function."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, key: Tensor, rate_2: Tensor) -> Tensor:
        ctx.save_for_backward(key, rate_2)
        y = counter_native.dropout(x, key, rate_2)
        return dropout_in_torch(x, key, rate_2) if y is None else y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _TorchDropout.apply(grad, *ctx.saved_tensors), None, None
