"""Time limits: every test has one, and what is known to be long states its own.

A limit only has to end what hangs. It is many times what the work takes on two quiet cores, so that a machine
with other work, ten times slower, does not fail for its load.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import pytest

START_S = 300
"""For a process that imports torch and does a little work: 10 s on a quiet machine."""
_F = TypeVar("_F", bound=Callable[..., object])


def takes_up_to(seconds: float) -> Callable[[_F], _F]:
    """Grant every test that requests a fixture so many seconds more; write it below ``@pytest.fixture``.

    Args:
        seconds: At most, on a loaded machine.
    """

    def mark(function: _F) -> _F:
        function.limit_s = seconds  # type: ignore[attr-defined]
        return function

    return mark


def extend(item: pytest.Item, default_s: float) -> None:
    """Add to a test's limit those of its fixtures.

    Args:
        item: The test.
        default_s: Limit of a test that states none.
    """
    info = getattr(item, "_fixtureinfo", None)
    if info is None:
        return
    fixtures = [definitions[-1].func for definitions in info.name2fixturedefs.values() if definitions]
    more_s = sum(getattr(function, "limit_s", 0) for function in fixtures)
    if more_s:
        marker = item.get_closest_marker("timeout")
        own_s = marker.args[0] if marker is not None else default_s
        item.add_marker(pytest.mark.timeout(own_s + more_s), append=False)
