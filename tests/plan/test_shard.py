"""Steps and the ranks' shares of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from reptrain.errors import PlanError
from reptrain.plan import StepPlan, micro_steps_of, rank_rows


@given(st.integers(1, 70), st.integers(1, 9), st.integers(1, 9))
def test_rank_rows_partition_the_step(batch_windows, world_size, micro_batch_windows):
    shares = [
        rank_rows(batch_windows, rank=rank, world_size=world_size, micro_batch_windows=micro_batch_windows)
        for rank in range(world_size)
    ]
    expected = micro_steps_of(batch_windows, world_size, micro_batch_windows)
    assert all(share.shape == (expected, micro_batch_windows) for share in shares)
    rows = np.concatenate([share.reshape(-1) for share in shares])
    assert rows.tolist() == list(range(len(rows)))
    assert len(rows) >= batch_windows
    assert len(rows) - batch_windows < world_size * micro_batch_windows


@given(st.integers(1, 100), st.integers(1, 500))
def test_window_range_partitions_the_run(batch_windows, total_windows):
    steps = StepPlan(batch_windows, total_windows)
    consumed = []
    for step in range(steps.num_steps):
        first, count = steps.window_range(step)
        assert count == batch_windows or step == steps.num_steps - 1
        consumed += range(first, first + count)
    assert consumed == list(range(total_windows))


@pytest.mark.parametrize("step", [-1, 3])
def test_window_range_refuses_a_step_outside_the_run(step):
    with pytest.raises(PlanError, match="from 0 to 2"):
        StepPlan(4, 10).window_range(step)
