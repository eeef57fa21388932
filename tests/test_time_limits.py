"""Time limits of tests and of their fixtures."""

from __future__ import annotations

import pytest
from time_limits import takes_up_to


@pytest.fixture
@takes_up_to(40)
def long() -> None:
    """Says how long it takes."""


@pytest.fixture
def longer(long: None) -> None:
    """Stands on another one that does."""


def limit(request: pytest.FixtureRequest) -> float:
    marker = request.node.get_closest_marker("timeout")
    return float(marker.args[0]) if marker is not None else float(request.config.getoption("timeout"))


@pytest.mark.timeout(20)
def test_a_fixture_adds_to_the_limit_of_a_test(longer: None, request: pytest.FixtureRequest) -> None:
    assert limit(request) == 60


def test_a_fixture_adds_to_the_default_limit(long: None, request: pytest.FixtureRequest) -> None:
    assert limit(request) == float(request.config.getoption("timeout")) + 40


def test_a_test_without_long_fixtures_keeps_the_default(request: pytest.FixtureRequest) -> None:
    assert request.node.get_closest_marker("timeout") is None and limit(request) > 0
