"""The objective of docs/guides/add-an-objective.md works as printed."""

from __future__ import annotations

import doctest
import re
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from reptrain.batch.objectives import NoisePlaces

PAGE = Path(__file__).parents[2] / "docs" / "guides" / "add-an-objective.md"


@pytest.fixture(scope="module")
def module() -> ModuleType:
    """The first block of the page, as a module."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    made = ModuleType("sampled_causal")
    # dataclasses looks up the module of a class.
    sys.modules[made.__name__] = made
    exec(compile(code, str(PAGE), "exec"), made.__dict__)
    return made


def test_docstring_of_the_page_is_true(module: ModuleType) -> None:
    result = doctest.testmod(module)
    assert result.attempted > 5 and result.failed == 0


def test_draws_and_divisor_of_the_page_agree(module: ModuleType) -> None:
    lengths = np.array([7, 1, 0, 8])
    places = NoisePlaces(np.full(4, 3), np.zeros(4, np.int64), np.arange(4) * 8, lengths)
    objective = module.SampledCausal(0.3, start_id=0, noise_seed=5)
    is_sampled = objective.noise(places, width=8)["is_sampled_BL"]
    assert is_sampled.sum(1).tolist() == [3, 1, 0, 3]
    assert is_sampled.sum() == objective.loss_tokens(places)
    assert not (is_sampled & (np.arange(8) >= lengths[:, None])).any()
    later = NoisePlaces(places.seed_N, places.epoch_N + 1, places.start_N, lengths)
    assert (objective.noise(later, width=8)["is_sampled_BL"] != is_sampled).any()
