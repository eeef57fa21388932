"""Residual add and RMSNorm: the reference in plain torch (`test_linewise` tests the kernels)."""

from __future__ import annotations

from typing import Any

import norm_cases as cases
import pytest
import torch

from reptrain_kernels import counter, rates
from reptrain_kernels.ops.norm import Drops, join, join_and_norm, rms_norm


def test_cases_drop_one_rows_path_and_keep_anothers() -> None:
    for name, case in cases.CASES.items():
        if case.path:
            key_B = cases.inputs_of(case).drops.path_key_B
            is_kept_B = counter.dropout(torch.ones(case.rows, 1, 1), key_B, case.path).flatten() > 0
            assert is_kept_B.tolist() == [False, True], name


def drops_of(rows: int, units: float, path: float) -> Drops:
    """Of some rows."""
    key_B = counter.row_keys(3, 5, torch.arange(rows))
    return Drops(counter.fold(key_B, 4), units, counter.fold(key_B, 12), path)


def test_join_and_norm_follow_their_written_formula() -> None:
    x, branch = torch.randn(2, 12, 4, 6, dtype=torch.float64).unbind(0)
    weight, drops = torch.rand(6, dtype=torch.float64), drops_of(12, 0.3, 0.5)
    stream, normed = join_and_norm(x, branch, weight, 0.1, drops)
    keep_unit = counter.random_words(drops.unit_key_B, 4, 6) >= rates.threshold_and_scale(0.3)[0]
    keep_path = counter.random_words(drops.path_key_B, 1, 1) >= rates.threshold_and_scale(0.5)[0]
    assert 0 < keep_path.sum() < 12
    for b in range(12):
        for t in range(4):
            line = [
                x[b, t, d] + branch[b, t, d] * keep_unit[b, t, d] / 0.7 * keep_path[b] / 0.5 for d in range(6)
            ]
            line = torch.tensor(line, dtype=torch.float64)
            torch.testing.assert_close(stream[b, t], line, rtol=1e-8, atol=1e-8)
            expected = line / ((line**2).sum() / 6 + 0.1) ** 0.5 * weight
            torch.testing.assert_close(normed[b, t], expected, rtol=1e-8, atol=1e-8)
    assert torch.equal(join(x, branch, drops), stream)
    assert torch.equal(rms_norm(stream, weight, 0.1), normed)


def test_some_positions_are_joined_as_in_the_whole_stream() -> None:
    assert cases.of_positions("torch")


def test_join_without_rates_is_a_sum() -> None:
    x, branch = torch.randn(2, 3, 4, 6).unbind(0)
    for drops in (None, Drops(), drops_of(3, 0.0, 0.0)):
        assert torch.equal(join(x, branch, drops), x + branch)
        assert torch.equal(join_and_norm(x, branch, torch.ones(6), 0.1, drops)[0], x + branch)


def test_join_and_norm_pass_gradcheck() -> None:
    x, branch = (x.requires_grad_() for x in torch.randn(2, 3, 2, 4, dtype=torch.float64).unbind(0))
    weight = torch.rand(4, dtype=torch.float64, requires_grad=True)
    drops = drops_of(3, 0.3, 0.4)
    assert torch.autograd.gradcheck(lambda *leaves: join_and_norm(*leaves, 0.1, drops), (x, branch, weight))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"branch_BTD": torch.ones(2, 4, 7)}, r"branch_BTD: must have shape \(2, 4, 8\)"),
        ({"weight_D": torch.ones(1)}, r"weight_D: must have shape \(8,\)"),
        ({"drops": drops_of(3, 0.1, 0.0)}, r"unit_key_B: must be int64 of shape \(2,\)"),
        ({"drops": Drops(path_key_B=torch.ones(2), path_rate=0.1)}, "path_key_B: must be int64"),
        ({"drops": drops_of(2, 0.1, 1.0)}, "rate: must be in"),
        ({"impl": "cuda"}, "impl: must be one of"),
        ({name: torch.ones(2, 4, 8193) for name in ("x_BTD", "branch_BTD")}
         | {"weight_D": torch.ones(8193), "impl": "triton"}, "at most 8192 units"),
    ],
)  # fmt: skip
def test_join_and_norm_refuse_arguments_that_do_not_fit(change: dict[str, Any], message: str) -> None:
    given = {"x_BTD": torch.ones(2, 4, 8), "branch_BTD": torch.ones(2, 4, 8), "weight_D": torch.ones(8)}
    with pytest.raises(ValueError, match=message):
        join_and_norm(**(given | {"eps": 0.1} | change))
