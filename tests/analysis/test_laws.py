"""Values and gradients of the laws."""

from __future__ import annotations

import numpy as np
import pytest

from reptrain.analysis.decision import best_for_budget
from reptrain.analysis.laws import LAWS, find_law
from reptrain.errors import ConfigError

LOGS = {
    "N": np.log([1e7, 4e8, 3e9, 2e9]),
    "D": np.log([1e9, 2e10, 8e9, 5e10]),
    "U": np.log([1e9, 1e9, 4e8, 2e10]),
    "x": np.log([1.0, 4.0, 16.0, 64.0]),
}


def middle(name: str) -> np.ndarray:
    """Coordinates in the middle of the range of starts."""
    return np.array([np.mean([p.coordinate(value) for value in p.starts]) for p in LAWS[name].parameters])


def test_data_constrained_law_has_the_published_values() -> None:
    law = find_law("data-constrained")
    variables = {"N": np.array([6.34e9, 8.67e9]), "D": np.array([242e9, 178e9]), "U": 25e9}
    loss = law.loss(law.published["muennighoff2023"], variables)
    np.testing.assert_allclose(loss, [2.2256440889984477, 2.2269634075087867], rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    ("epochs", "worth"),
    [(2, 0.984), (4, 0.931), (8, 0.828), (16, 0.661), (40, 0.379), (64, 0.252), (256, 0.064)],
)
def test_effective_data_over_consumed_tokens_has_the_published_values(epochs: int, worth: float) -> None:
    from reptrain.analysis.laws.data_constrained import effective_data

    logs = {"U": np.log([1e9]), "D": np.log([epochs * 1e9])}
    term = effective_data({"R_D": float(np.log(15.387756))}, logs)
    assert np.exp(np.asarray(term.log)[0] - logs["D"][0]) == pytest.approx(worth, abs=6e-4)


@pytest.mark.parametrize(
    ("constants", "ratio"),
    [
        ({"E": 1.69, "A": 406.4, "B": 410.7, "alpha": 0.34, "beta": 0.28}, 93),
        (find_law("chinchilla").published["besiroglu2024"], 18),
    ],
    ids=["hoffmann, as printed", "besiroglu"],
)
def test_chinchilla_law_has_the_published_ratio_of_tokens_to_parameters(
    constants: dict[str, float], ratio: float
) -> None:
    size, tokens, *_ = best_for_budget(find_law("chinchilla"), constants, 5.76e23, 1e15)
    assert tokens / size == pytest.approx(ratio, rel=0.05)


@pytest.mark.parametrize("name", LAWS)
def test_log_loss_gradient_is_that_of_differences(name: str) -> None:
    law, theta = LAWS[name], middle(name)
    _, gradient = law.log_loss(theta, LOGS)
    step = 1e-6 * np.eye(len(theta))
    rows = [(law.log_loss(theta + e, LOGS)[0] - law.log_loss(theta - e, LOGS)[0]) / 2e-6 for e in step]
    np.testing.assert_allclose(gradient, rows, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", [name for name in LAWS if name != "data-constrained"])
def test_scaled_multiplies_each_term(name: str) -> None:
    law, theta = LAWS[name], middle(name)
    scales = np.linspace(-0.5, 0.7, len(law.scales))
    before, _ = law.log_terms(theta, LOGS)
    after, _ = law.log_terms(law.scaled(theta, scales), LOGS)
    np.testing.assert_allclose(after - before, np.broadcast_to(scales[:, None], before.shape), atol=1e-12)


@pytest.mark.parametrize("name", ["excess-1", "excess-2", "excess-4", "excess-saturating"])
def test_excess_laws_have_no_penalty_at_one_epoch_and_one_that_grows_with_size(name: str) -> None:
    law = LAWS[name]
    values = law.values(middle(name))
    without = {**values, "P": 1e-12}
    size = np.array([1e7, 1e8, 1e9])
    once = {"N": size, "D": 1e9, "U": 1e9}
    np.testing.assert_allclose(law.loss(values, once), law.loss(without, once), rtol=1e-9)
    often = {"N": size, "D": 64e9, "U": 1e9}
    assert (np.diff(law.loss(values, often) - law.loss(without, often)) > 0).all()


def test_find_law_refuses_an_unknown_name() -> None:
    with pytest.raises(ConfigError, match="must be one of chinchilla, data-constrained"):
        find_law("chinchila")


def test_every_law_states_formula_source_and_bounds_around_its_starts() -> None:
    for law in LAWS.values():
        assert law.formula and law.source
        for p in law.parameters:
            assert p.meaning and p.lower < p.starts[0] < p.starts[1] < p.upper, (law.name, p.name)
        for values in law.published.values():
            assert set(values) == set(law.names)
