"""The quality of the masks: uniform, independent of neighbors on every axis, binomial in number.

The inputs are fixed, so a test that passes once passes always. Bounds are five standard deviations:
one failure in about two million for a perfect generator.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor

from reptrain_kernels import counter

SIGMAS = 5.0
AXES = ("seed", "step", "row", "site", "head", "position", "unit")


def chi2_bound(freedom: int) -> float:
    """What chi-squared exceeds as rarely as a normal deviate exceeds SIGMAS (Wilson & Hilferty 1931)."""
    spread = 2 / (9 * freedom)
    return freedom * (1 - spread + SIGMAS * spread**0.5) ** 3


def words_at(seed: int, step: int, row: int, site: int, head: int, position: int, unit: Tensor) -> Tensor:
    """int32 words of one line, at the given units."""
    key = counter.fold(counter.fold(counter.row_keys(seed, step, torch.tensor([row])), site), head)
    line_key = counter.fold(key, position)
    low, high = line_key.to(torch.int32), (line_key >> 32).to(torch.int32)
    return counter.mix32_((unit ^ low).mul_(high | 1))


def bits_of(words: Tensor) -> Tensor:
    """The 32 bits of each word, as a new last axis."""
    return (words[..., None] >> torch.arange(32, dtype=torch.int32)) & 1


@pytest.fixture(scope="module")
def grid() -> Tensor:
    """Words over small consecutive counters, as training has them: [step, row, site, position, unit]."""
    key = torch.stack([counter.row_keys(0, step, torch.arange(8)) for step in range(8)])
    key = counter.fold(key[..., None], torch.arange(8))
    return counter.random_words(key, 16, 48)


def test_words_are_uniform_in_every_byte(grid: Tensor) -> None:
    for shift in (0, 8, 16, 24):
        count = torch.bincount(((grid >> shift) & 255).flatten(), minlength=256).double()
        expected = grid.numel() / 256
        chi2 = ((count - expected) ** 2 / expected).sum().item()
        assert chi2 < chi2_bound(255)


def test_words_have_unbiased_bits_in_every_unit_and_position(grid: Tensor) -> None:
    bits = bits_of(grid).double()
    for kept in ((3, 5), (4, 5)):
        others = [axis for axis in range(6) if axis not in kept]
        mean = bits.mean(others)
        samples = bits.numel() / mean.numel()
        z2 = (mean - 0.5) ** 2 * 4 * samples
        assert z2.sum().item() < chi2_bound(z2.numel())


def test_line_keys_do_not_collide() -> None:
    key = torch.stack(
        [counter.row_keys(seed, step, torch.arange(32)) for seed in (0, 1) for step in range(8)]
    )
    line = counter.fold(counter.fold(key[..., None], torch.arange(8))[..., None], torch.arange(128))
    assert line.unique().numel() == line.numel() == 2**19


@pytest.mark.parametrize("axis", range(5), ids=["step", "row", "site", "position", "unit"])
@pytest.mark.parametrize("distance", [1, 2, 4])
def test_words_of_neighbors_are_uncorrelated_in_every_pair_of_bits(
    grid: Tensor, axis: int, distance: int
) -> None:
    length = grid.shape[axis] - distance
    here = bits_of(grid.narrow(axis, 0, length)).reshape(-1, 32).float() * 2 - 1
    there = bits_of(grid.narrow(axis, distance, length)).reshape(-1, 32).float() * 2 - 1
    z2 = (here.T @ there).double() ** 2 / here.shape[0]
    assert z2.sum().item() < chi2_bound(1024)
    # 1,024 chances: the largest deviate of a perfect generator stays below 5.9 as rarely as above.
    assert z2.max().sqrt().item() < 5.9


@pytest.mark.parametrize("name", AXES)
def test_each_bit_of_every_input_flips_half_of_the_bits(name: str) -> None:
    start = dict.fromkeys(AXES[:-1], 3)
    for bit in range(31):
        unit = torch.arange(2048, dtype=torch.int32)
        # Each pair of units counts once.
        unit = unit[(unit >> bit) & 1 == 0][:1024]
        if name == "unit":
            changed, changed_unit = start, unit ^ (1 << bit)
        else:
            changed, changed_unit = start | {name: 3 ^ (1 << bit)}, unit
        flipped = bits_of(words_at(**start, unit=unit) ^ words_at(**changed, unit=changed_unit))
        z2 = (flipped.double().mean(0) - 0.5) ** 2 * 4 * 1024
        assert z2.sum().item() < chi2_bound(32), bit


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.25, 0.5, 0.9])
def test_dropout_keeps_a_binomial_number_of_units(rate: float) -> None:
    key = counter.fold(counter.row_keys(1, 9, torch.arange(64)), 35)
    kept = (counter.dropout(torch.ones(64, 64, 256), key, rate) != 0).double()
    keep = 1 - rate
    z = (kept.mean().item() - keep) * (kept.numel() / (keep * rate)) ** 0.5
    assert abs(z) < SIGMAS
    for axis in (1, 2):
        lines = kept.sum(axis)
        variance = kept.shape[axis] * keep * rate
        dispersion = ((lines - kept.shape[axis] * keep) ** 2 / variance).sum().item()
        # Too even is as wrong as too uneven.
        assert abs(dispersion - lines.numel()) < SIGMAS * (2 * lines.numel()) ** 0.5


def test_masks_of_different_places_agree_by_chance_alone() -> None:
    key = torch.stack(
        [counter.row_keys(s, t, torch.arange(2)) for s, t in itertools.product(range(2), range(2))]
    )
    key = counter.fold(key.flatten()[:, None], torch.arange(3)).flatten()
    keep = (counter.random_words(key, 64, 64) >= 0).flatten(1).float() * 2 - 1
    agreement = keep @ keep.T / keep.shape[1] ** 0.5
    agreement.fill_diagonal_(0)
    assert agreement.abs().max().item() < SIGMAS
