import math

import pytest

from reptrain.config.optimizers import AdamWConfig, ScheduleConfig
from reptrain.config.schedule import learning_rate, step_learning_rate, weight_decay_factor

OPTIMIZER = AdamWConfig(lr=2.0)


def rate(done: float, **settings: object) -> float:
    return learning_rate(done, OPTIMIZER, ScheduleConfig(**settings))


@pytest.mark.parametrize("name", ["constant", "cosine", "linear", "inverse_sqrt", "wsd", "cyclic"])
def test_learning_rate_rises_linearly_to_its_peak(name: str) -> None:
    assert rate(0.05, name=name, warmup_fraction=0.1) == pytest.approx(1.0)
    assert rate(0.1, name=name, warmup_fraction=0.1) == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("name", "middle", "end"),
    [("constant", 2.0, 2.0), ("cosine", 1.1, 0.2), ("linear", 1.1, 0.2), ("wsd", 2.0, 0.2)],
)
def test_learning_rate_follows_its_shape(name: str, middle: float, end: float) -> None:
    settings = {"name": name, "warmup_fraction": 0.0, "final_ratio": 0.1, "decay_fraction": 0.4}
    assert rate(0.5, **settings) == pytest.approx(middle)
    assert rate(1.0, **settings) == pytest.approx(end)


def test_learning_rate_wsd_decays_linearly_at_the_end() -> None:
    assert rate(0.9, name="wsd", warmup_fraction=0, final_ratio=0, decay_fraction=0.2) == pytest.approx(1.0)


def test_learning_rate_inverse_sqrt_falls_with_the_root_of_tokens() -> None:
    assert rate(0.4, name="inverse_sqrt", warmup_fraction=0.1) == pytest.approx(1.0)
    assert rate(1.0, name="inverse_sqrt", warmup_fraction=0) == pytest.approx(2 / math.sqrt(2))


@pytest.mark.parametrize("name", ["constant", "cosine", "linear", "inverse_sqrt", "wsd", "cyclic"])
def test_learning_rate_of_a_run_of_one_step_is_finite(name: str) -> None:
    for warmup in (0.0, 0.5, 1.0):
        assert math.isfinite(rate(1.0, name=name, warmup_fraction=warmup))


@pytest.mark.parametrize("steps", [1, 2, 7])
def test_no_step_is_without_a_rate(steps: int) -> None:
    schedule = ScheduleConfig(name="linear", warmup_fraction=0.06, final_ratio=0.0)
    rates = [step_learning_rate(n, n + 1, steps, OPTIMIZER, schedule) for n in range(steps)]
    assert all(0 < found < 2 for found in rates)
    # The middles: what the rates sum up to is what the schedule spends.
    falling = ScheduleConfig(name="linear", warmup_fraction=0.0, final_ratio=0.0)
    spent = [step_learning_rate(n, n + 1, steps, OPTIMIZER, falling) for n in range(steps)]
    assert sum(spent) == pytest.approx(steps)


def test_learning_rate_cyclic_restarts_at_its_peak() -> None:
    settings = {"name": "cyclic", "cycles": 4, "warmup_fraction": 0.2, "final_ratio": 0.1}
    assert rate(0.1, **settings) == pytest.approx(1.0)
    for cycle in range(4):
        begin = 0.2 + 0.2 * cycle
        assert rate(begin + 1e-9, **settings) == pytest.approx(2.0)
        assert rate(begin + 0.1, **settings) == pytest.approx(1.1)
        assert rate(begin + 0.2 - 1e-9, **settings) == pytest.approx(0.2)
    assert rate(1.0, **settings) == pytest.approx(0.2)


@pytest.mark.parametrize("name", ["cosine", "linear", "wsd", "cyclic"])
def test_weight_decay_rises_as_the_rate_falls(name: str) -> None:
    cycles = 3 if name == "cyclic" else 1
    schedule = ScheduleConfig(name=name, cycles=cycles, warmup_fraction=0.1, weight_decay_ratio=5.0)
    assert weight_decay_factor(0, 10, 100, schedule) == 1
    for step in range(20, 100):
        rate = step_learning_rate(step, step + 1, 100, OPTIMIZER, schedule)
        share = (rate / 2 - 0.1) / 0.9
        assert weight_decay_factor(step, step + 1, 100, schedule) == pytest.approx(5 - 4 * share)


def test_weight_decay_needs_a_lowest_rate_to_rise() -> None:
    with pytest.raises(ValueError, match="constant was given"):
        ScheduleConfig(name="constant", weight_decay_ratio=2)
    with pytest.raises(ValueError, match="final_ratio below 1"):
        ScheduleConfig(final_ratio=1, weight_decay_ratio=2)


def test_cycles_need_a_cyclic_rate() -> None:
    with pytest.raises(ValueError, match="need the name cyclic; cosine was given"):
        ScheduleConfig(cycles=2)
