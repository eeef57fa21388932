"""The distributions of the objectives' noise over 100,000 windows, and of masked diffusion's bound."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import combinations

import numpy as np
import pytest
import torch
from made_batches import places
from test_objectives import DECODER, MASK, VOCABULARY, diffusion, example_of, middle, prefix_lm, ul2

from reptrain.config import RunConfig
from reptrain.errors import ConfigError
from reptrain.model import build_model
from reptrain.training.regularize import Settings
from reptrain.training.setup import open_data
from reptrain.training.targets import targets_of
from reptrain_kernels.ops.linear_cross_entropy import Targets, cross_entropy

NUM = 100_000


def chi_squared(counts: np.ndarray, shares: np.ndarray | None = None) -> float:
    expected = counts.sum() * (np.full(len(counts), 1 / len(counts)) if shares is None else shares)
    return float(((counts - expected) ** 2 / expected).sum())


def test_prefix_lm_splits_are_uniform() -> None:
    split = prefix_lm(33, in_one_row=True).noise(places([33] * NUM), width=33)["split_B"]
    assert (split.min(), split.max()) == (1, 32)
    # 31 degrees of freedom: one seed in 100,000 exceeds 75.8.
    assert chi_squared(np.bincount(split)[1:]) < 75.8


def test_ul2_draws_denoisers_by_weight_with_their_spans() -> None:
    drawn = ul2(32, in_one_row=False).noise(places([32] * NUM), width=32)
    # Of seven denoisers, two are R, one S, four X; 2 degrees of freedom.
    assert chi_squared(np.bincount(drawn["mode_B"]), np.array([2, 1, 4]) / 7) < 23.0
    hidden, mode = drawn["is_noise_BL"], drawn["mode_B"]
    sequential = hidden[mode == 1]
    assert (sequential == (np.arange(32) >= 24)).all()
    assert set(hidden[mode == 0].sum(1)) == {5}
    of_half, of_few = (int((hidden[mode == 2].sum(1) == noise).sum()) for noise in (16, 5))
    assert of_half + of_few == (mode == 2).sum()
    assert of_half / of_few == pytest.approx(3, abs=0.1)
    # Spans by the seven settings, noise 5 or 16 over means of 3, 8 and 64, and the one of S.
    begins = (hidden & ~np.pad(hidden, ((0, 0), (1, 0)))[:, :-1]).sum(1)
    ways = ((0, 2), (0, 1), (1, 1), (2, 5), (2, 2), (2, 1))
    actual = np.array([((mode == of) & (begins == spans)).sum() for of, spans in ways])
    assert actual.sum() == NUM
    assert chi_squared(actual, np.array([1, 1, 1, 1, 1, 2]) / 7) < 30.9


@pytest.mark.parametrize("exact", [True, False])
def test_masked_diffusion_masks_are_uniform(exact: bool) -> None:
    drawn = diffusion(8, exact=exact).noise(places([8] * NUM), width=8)
    masked = drawn["is_noise_BL"].sum(1)
    counts = np.bincount(masked, minlength=9)
    if exact:
        assert counts[0] == 0
        assert np.array_equal(drawn["weight_B"], (8 / masked).astype(np.float32))
        # 7 degrees of freedom; 8 if the count may be 0.
        assert chi_squared(counts[1:]) < 39.0
    else:
        assert chi_squared(counts) < 41.0
    assert np.abs(drawn["is_noise_BL"].mean(0) - (9 / 16 if exact else 1 / 2)).max() < 0.008
    # With two masks there are 28 pairs of positions: 27 degrees of freedom.
    pairs = drawn["is_noise_BL"][masked == 2]
    actual = np.array([(pairs[:, i] & pairs[:, j]).sum() for i, j in combinations(range(8), 2)])
    assert chi_squared(actual) < 69.0


def test_fill_in_the_middle_splits_at_its_rate_and_uniformly() -> None:
    drawn = middle(9, rate=0.3).noise(places([9] * NUM), width=9)
    # 2 degrees of freedom.
    assert chi_squared(np.bincount(drawn["order_B"]), np.array([0.7, 0.15, 0.15])) < 23.0
    first, second = drawn["cuts_B2"].T
    assert (first <= second).all() and first.min() == 0 and second.max() == 9
    # Two of ten cuts: an unequal pair is twice as likely as an equal one. 54 degrees of freedom.
    actual = np.zeros((10, 10))
    np.add.at(actual, (first, second), 1)
    upper = np.triu_indices(10)
    assert chi_squared(actual[upper], np.where(upper[0] == upper[1], 1, 2) / 100) < 108.0


def nats(logits_BTV: torch.Tensor, targets_BT: torch.Tensor) -> torch.Tensor:
    return cross_entropy(logits_BTV, Targets(targets_BT)).nats


def elbo(logits_of: Callable[..., torch.Tensor], objective, window: int, rows: int) -> tuple[float, float]:
    """Mean bound in nats per token over the rows, and its standard error."""
    tokens = np.random.default_rng(0).integers(2, 600, (rows, window))
    example = example_of(objective, tokens, [window] * rows)
    with torch.no_grad():
        nats_B = example.weighted(nats(logits_of(**example.inputs), example.targets_BT)).sum(1)
    per_token = (nats_B / example.loss_tokens_B).double()
    return float(per_token.mean()), float(per_token.std() / rows**0.5)


def uniform(tokens_BT: torch.Tensor, **_: torch.Tensor) -> torch.Tensor:
    return torch.zeros(1, 1, 50).expand(*tokens_BT.shape, 50)


def test_masked_diffusion_bound_of_a_uniform_model_is_log_v() -> None:
    objective, expected = diffusion(32, noise_seed=1), math.log(50)
    tokens_below_50 = np.random.default_rng(0).integers(2, 50, (4000, 32))

    def bound(objective) -> torch.Tensor:
        example = example_of(objective, tokens_below_50, [32] * 4000)
        nats_BT = nats(uniform(example.inputs["tokens_BT"]), example.targets_BT)
        return (example.weighted(nats_BT).sum(1) / example.loss_tokens_B).double()

    # With exact masking the weight is the inverse fraction of masked tokens: every window gives log V.
    assert torch.allclose(bound(objective), torch.tensor(expected, dtype=torch.float64), rtol=1e-5)
    per_window = bound(diffusion(32, exact=False, noise_seed=1))
    error = float(per_window.std()) / 4000**0.5
    assert 0.001 < error < 0.2
    assert float(per_window.mean()) == pytest.approx(expected, abs=4 * error)


def test_masked_diffusion_weights_apply_to_loss_regularizers() -> None:
    tokens = np.random.default_rng(0).integers(2, 50, (100, 32))
    example = example_of(diffusion(32, noise_seed=1), tokens, [32] * 100)
    logits_BTV = uniform(example.inputs["tokens_BT"])
    targets = targets_of(example, Settings(label_smoothing=0.1, z_loss=0.5))
    per_token = cross_entropy(logits_BTV, targets).loss / example.loss_tokens_B.sum()
    # For a uniform model label smoothing adds 0, and the logsumexp is log V.
    assert float(per_token) == pytest.approx(math.log(50) + 0.5 * math.log(50) ** 2, rel=1e-5)


def test_masked_diffusion_bound_is_the_same_for_both_maskings() -> None:
    model = build_model(DECODER, vocab_size=VOCABULARY, seed=0).eval()
    exact, error = elbo(model, diffusion(8, noise_seed=1), 8, 4000)
    independent, other_error = elbo(model, diffusion(8, exact=False, noise_seed=1), 8, 4000)
    assert error < other_error / 2
    assert exact == pytest.approx(independent, abs=4 * (error + other_error))


def test_stratified_times_are_even_over_the_epochs_of_a_window() -> None:
    objective = diffusion(64, exact=False, noise_seed=2)
    stratified = type(objective)(MASK, exact=False, stratified=True, noise_seed=2)
    window = places([64] * 200)
    for objective_, evenly in ((stratified, True), (objective, False)):
        times = np.stack(
            [
                1 / objective_.noise(window._replace(epoch_N=np.full(200, epoch)), width=64)["weight_B"]
                for epoch in range(8)
            ]
        )
        gaps = np.diff(np.sort(times, axis=0), axis=0)
        assert (gaps.min() > 0.08) == evenly
        # Over windows both are uniform: the standard error of 200 is 0.02.
        assert np.abs(times.mean(1) - 0.5).max() < 0.1


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (
            ["objective={name: span_corruption, noise_density: 0.5}", "data.window_tokens=1000"],
            r"mean_span_tokens.*at most 32 spans, one for each sentinel of the tokenizer, but got",
        ),
        (
            ["objective.name=ul2", "data.window_tokens=200"],
            r"objective\.denoisers\[3\].*besides the mode tokens, but got mode X, mean_span_tokens 3\.0,"
            r" noise_density 0\.5, which makes 33 spans of 200 tokens",
        ),
    ],
)
def test_too_few_sentinels_are_refused_before_training(
    tiny: Callable[..., RunConfig], overrides: list[str], words: str
) -> None:
    for family in ("t5", "decoder"):
        with pytest.raises(ConfigError, match=words):
            open_data(tiny(f"model={{family: {family}}}", *overrides))


@pytest.mark.parametrize("name", ["ul2", "masked_diffusion", "fill_in_the_middle"])
def test_tokenizer_without_sentinels_is_refused(
    tiny: Callable[..., RunConfig], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    from reptrain.store import Store

    honest = Store.tokenizer

    def without_sentinels(self: Store):
        tokenizer = honest(self)
        tokenizer.sentinel_ids = ()
        return tokenizer

    monkeypatch.setattr(Store, "tokenizer", without_sentinels)
    with pytest.raises(ConfigError, match=f"{name}, which needs .* a tokenizer of 0 sentinels"):
        open_data(tiny(f"objective.name={name}"))


def test_reserved_ids_are_the_last_sentinels(tiny: Callable[..., RunConfig]) -> None:
    # The tokenizer has 512 pieces: <extra_id_31> is 480, <extra_id_29> is 482.
    ids = tuple(range(511, 479, -1))
    assert open_data(tiny("objective.name=fill_in_the_middle")).objective.ids == (480, 481, 482)
    assert open_data(tiny("objective.name=masked_diffusion")).objective.mask_id == 480
    views = open_data(tiny("objective={name: augmented_causal, max_offset: 4}"))
    assert views.objective.start_ids == (views.tokenizer.pad_id, 480, 481, 482)
    actual = open_data(tiny("objective.name=ul2")).objective
    assert (actual.mode_ids, actual.sentinel_ids) == ((480, 481, 482), ids[:-3])
