"""Span corruption: counts, reconstruction, and the distribution and keys of its noise."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from made_batches import places, windows

from reptrain.batch.objectives import IGNORE, NoisePlaces, SpanCorruption
from reptrain.config.spans import span_counts, window_filling

EOS, START, FIRST_RAW, VOCABULARY = 1, 0, 2, 40_000
SENTINELS = tuple(range(VOCABULARY - 1, VOCABULARY - 601, -1))


def make(window_tokens: int, density: float = 0.15, mean: float = 3.0, **settings) -> SpanCorruption:
    return SpanCorruption(
        density,
        mean,
        sentinel_ids=SENTINELS,
        eos_id=EOS,
        start_id=START,
        window_tokens=window_tokens,
        **settings,
    )


def drawn(objective: SpanCorruption, lengths: list[int], *, epoch: int = 0) -> np.ndarray:
    width = objective.window_tokens
    return objective.noise(places(lengths, epoch=epoch, width=width), width=width)["is_noise_BL"]


def runs_of(mask: np.ndarray) -> list[tuple[bool, int]]:
    """Runs of equal values, as (value, length)."""
    cuts = np.flatnonzero(np.diff(mask)) + 1
    return [(bool(part[0]), len(part)) for part in np.split(mask, cuts)]


def rebuilt(source: list[int], targets: list[int]) -> list[int]:
    """Reconstruct the window from inputs and targets."""
    assert source[-1] == targets[-1] == EOS
    spans: dict[int, list[int]] = {}
    for token in targets[:-1]:
        if token in SENTINELS:
            spans[token] = []
        else:
            spans[next(reversed(spans))].append(token)
    assert list(spans) == [token for token in source if token in SENTINELS]
    return [raw for token in source[:-1] for raw in spans.get(token, [token])]


@pytest.mark.parametrize(
    ("density", "mean", "raw", "targets", "noise", "spans"),
    [
        (0.15, 3, 568, 114, 85, 28),
        (0.15, 8, 588, 100, 88, 11),
        (0.15, 64, 600, 92, 90, 1),
        (0.5, 3, 766, 512, 383, 128),
        (0.5, 8, 908, 512, 454, 57),
        (0.5, 64, 1006, 512, 503, 8),
    ],
)
def test_span_counts_are_the_published_ones(density, mean, raw, targets, noise, spans) -> None:
    assert window_filling(512, density, mean) == raw
    counts = span_counts(raw, density, mean)
    assert counts == (noise, spans, 512, targets)
    mask = drawn(make(raw, density, mean), [raw] * 3)
    assert mask.sum(axis=1).tolist() == [noise] * 3
    assert [len([run for run in runs_of(row) if run[0]]) for row in mask] == [spans] * 3


@given(
    window=st.integers(1, 200),
    density=st.floats(0.01, 0.99),
    mean=st.floats(1, 40),
    seed=st.integers(0, 2**62),
    data=st.data(),
)
def test_example_reconstructs_the_window(window, density, mean, seed, data) -> None:
    lengths = [*data.draw(st.lists(st.integers(0, window), min_size=1, max_size=4)), window]
    objective = make(window, density, mean, noise_seed=seed)
    tokens = np.random.default_rng(seed).integers(FIRST_RAW, 30_000, (len(lengths), window))
    mask = drawn(objective, lengths)
    made = objective.example(windows(torch.from_numpy(tokens), lengths, {"is_noise_BL": mask}))
    scored = 0
    for row, length in enumerate(lengths):
        source = made.inputs["source_BS"][row][made.inputs["source_segments_BS"][row] > 0].tolist()
        targets = made.targets_BT[row][made.targets_BT[row] != IGNORE].tolist()
        scored += len(targets)
        assert made.inputs["inputs_BT"][row, : len(targets)].tolist() == [START, *targets][: len(targets)]
        assert made.targets_BT[row][made.is_raw_BT[row]].tolist() == tokens[row][mask[row]].tolist()
        if length:
            assert rebuilt(source, targets) == tokens[row, :length].tolist()
            counts = span_counts(length, density, mean)
            assert (len(source), len(targets)) == (counts.inputs, counts.targets)
        else:
            assert source == targets == []
    assert scored == objective.loss_tokens(places(lengths))


def test_noise_is_uniform_over_all_corruptions() -> None:
    # 3 of 9 tokens in 2 spans: 2 divisions of the hidden tokens times 5 of the others give 10 masks.
    objective = make(9, 1 / 3, 1.5)
    masks = drawn(objective, [9] * 100_000)
    actual = Counter(map(tuple, masks.tolist()))
    assert len(actual) == 10
    # Chi-squared with 9 degrees of freedom: one seed in 10,000 exceeds 33.7.
    assert sum((count - 10_000) ** 2 / 10_000 for count in actual.values()) < 33.7


def test_noise_hides_all_positions_but_the_first_about_equally() -> None:
    masks = drawn(make(64), [64] * 100_000)
    share = masks.mean(axis=0)
    assert share.mean() == pytest.approx(10 / 64)
    assert share[0] == 0
    # A window begins with a kept token and ends with a hidden one; all positions between are equally likely.
    assert np.all(np.abs(share[8:48] - share[8:48].mean()) < 0.01)
    assert masks[:, -1].all()


def test_noise_depends_on_the_window_alone() -> None:
    objective = make(64, noise_seed=5)
    length = np.array([64, 64, 10, 0, 64])
    start, epoch, seed = np.array([0, 64, 128, 0, 192]), np.array([2, 2, 2, 0, 3]), np.array([7, 7, 8, 0, 7])

    def noise(objective, seed, epoch, start, length):
        return objective.noise(NoisePlaces(seed, epoch, start, length), width=64)["is_noise_BL"]

    whole = noise(objective, seed, epoch, start, length)
    for rows in ([4, 2], [3], [1, 0, 4, 2, 3]):
        part = noise(objective, seed[rows], epoch[rows], start[rows], length[rows])
        assert np.array_equal(part, whole[rows])
    assert not whole[3].any()
    for other in (
        noise(replace(objective, noise_seed=6), seed, epoch, start, length),
        noise(objective, seed + 1, epoch, start, length),
        noise(objective, seed, epoch + 1, start, length),
        noise(objective, seed, epoch, start + 1, length),
    ):
        assert not np.array_equal(other, whole)


def test_noise_is_fresh_in_each_epoch_or_frozen() -> None:
    fresh, frozen = make(64), make(64, frozen=True)
    assert not np.array_equal(drawn(fresh, [64] * 4, epoch=0), drawn(fresh, [64] * 4, epoch=1))
    assert np.array_equal(drawn(frozen, [64] * 4, epoch=0), drawn(frozen, [64] * 4, epoch=1))
    assert np.array_equal(drawn(frozen, [64] * 4), drawn(fresh, [64] * 4, epoch=0))


def test_document_mask_gives_each_token_its_own_segment() -> None:
    tokens = torch.tensor([[11, 12, EOS, 21, 22, EOS, 31, 32]])
    hidden = {"is_noise_BL": np.array([[False, True, True, True, False, False, False, True]])}
    objective = make(8, 0.5, 2.0, document_eos_id=EOS)
    made = objective.example(windows(tokens, [8], hidden))
    first, second = SENTINELS[:2]
    width = int((made.targets_BT != IGNORE).sum())
    assert made.targets_BT[0, :width].tolist() == [first, 12, EOS, 21, second, 32, EOS]
    assert made.inputs["segments_BT"][0, :width].tolist() == [1, 1, 1, 2, 3, 3, 3]
    # At the start of a segment, the input is the start token, not the last token of another document.
    assert made.inputs["inputs_BT"][0, :width].tolist() == [START, first, 12, START, START, second, 32]
    source = made.inputs["source_segments_BS"][0]
    assert made.inputs["source_BS"][0][source > 0].tolist() == [11, first, 22, EOS, 31, second, EOS]
    assert source[source > 0].tolist() == [1, 1, 2, 2, 3, 3, 3]
