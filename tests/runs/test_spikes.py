"""Spikes of loss and gradient norm: planted ones are found, ordinary noisy curves raise no alarm."""

from __future__ import annotations

import math

import numpy as np
import pytest

from reptrain.runs.spikes import LEAST_STEPS, WINDOW_STEPS, SpikeWatch

STEPS = 300
CURVES = 1000


def curves(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Loss and gradient norm of an ordinary run: a power law or a plateau with noise of a random size, either
    independent or correlated, and in some a drop where an epoch ends."""
    rng = np.random.default_rng(seed)
    step = np.arange(STEPS)
    loss = rng.uniform(0.2, 4) + rng.uniform(0, 7) * (step + rng.uniform(1, 50)) ** -rng.uniform(0.1, 1)
    if rng.random() < 0.3:
        loss -= 0.1 * loss[-1] * (step // rng.integers(50, 200))
    noise = rng.normal(size=STEPS) if rng.random() < 0.7 else rng.standard_t(20, size=STEPS)
    kept = rng.choice([0.0, 0.5, 0.9])
    for place in range(1, STEPS):
        noise[place] = kept * noise[place - 1] + math.sqrt(1 - kept**2) * noise[place]
    loss = np.maximum(loss + rng.uniform(0.0005, 0.1) * noise, 1e-3)
    # Gradients grow or shrink slowly, and their noise is multiplicative and skewed.
    trend = rng.uniform(-1.5, 1.5) * np.log1p(step / 50)
    grad = np.exp(trend + rng.uniform(0.02, 0.4) * rng.normal(size=STEPS)) * rng.uniform(0.01, 10)
    return loss, grad


def alarms(loss: np.ndarray, grad: np.ndarray) -> list[tuple[int, str]]:
    watch = SpikeWatch()
    return [
        (step, text.split(" spikes")[0].rsplit(" ", 1)[0])
        for step, (nats, norm) in enumerate(zip(loss.tolist(), grad.tolist(), strict=True))
        for text in watch.add(loss_nats=nats, grad_norm=norm)
    ]


def test_ordinary_noisy_curves_raise_no_alarm() -> None:
    assert {seed: found for seed in range(CURVES) if (found := alarms(*curves(seed)))} == {}


@pytest.mark.parametrize("seed", range(20))
def test_a_planted_spike_is_reported_once_at_its_first_step(seed: int) -> None:
    loss, grad = curves(seed)
    noise = 1.4826 * np.median(np.abs(np.diff(loss)))
    grad[150] *= math.exp(1 + 10 * 1.4826 * np.median(np.abs(np.diff(np.log(grad)))))
    # A spike of some steps is one.
    loss[250:260] += 3 + 12 * noise
    assert alarms(loss, grad) == [(150, "gradient norm"), (250, "loss")]


def test_a_new_level_is_one_spike_and_each_return_counts() -> None:
    loss = np.full(600, 3.0) + np.random.default_rng(0).normal(0, 0.01, 600)
    grad = np.ones(600)
    loss[100] = loss[104] = 6
    # A run that diverges to another level is noted once, and its level becomes the history.
    loss[300:] += 4
    loss[500] += 3
    assert alarms(loss, grad) == [(100, "loss"), (104, "loss"), (300, "loss"), (500, "loss")]


def test_nothing_is_judged_without_a_history_and_what_is_not_finite_is_left_out() -> None:
    watch = SpikeWatch()
    for step in range(LEAST_STEPS - 1):
        assert watch.add(loss_nats=1 + step % 2 * 0.01, grad_norm=1.0) == []
    assert watch.add(loss_nats=100.0, grad_norm=1e6) == []
    for _ in range(WINDOW_STEPS):
        assert (
            watch.add(loss_nats=math.nan, grad_norm=math.inf)
            == watch.add(loss_nats=1.0, grad_norm=None)
            == []
        )
    (text,) = watch.add(loss_nats=1.2, grad_norm=None)
    assert text.startswith("loss 1.2 spikes above its history: median 1")


def test_a_curve_without_noise_needs_the_least_amount() -> None:
    watch = SpikeWatch()
    for _ in range(WINDOW_STEPS):
        watch.add(loss_nats=2.0, grad_norm=1.0)
    assert watch.add(loss_nats=2.05, grad_norm=1.9) == []
    assert len(watch.add(loss_nats=2.5, grad_norm=2.5)) == 2
