"""Attention: its definition in plain torch, and its Triton kernels without a GPU and on one."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from attention_cases import CASES, SLOW_CASES, Case, inputs_of, results, segments_of
from interpreted import results_of
from time_limits import takes_up_to
from tolerances import relative_error, tolerance

from reptrain_kernels import counter
from reptrain_kernels.ops.attention import AttentionMask, attention, prepare_mask, spread_bias

CHECKS = ["dropped_weights", "operator"]


def assert_within(case: Case, errors: dict[str, float], *, tensor_cores: bool = False) -> None:
    """Every result's error is within the table."""
    kinds = {"y": "output", "bias": "summed"}
    assert {"y", "q", "k", "v"} <= errors.keys()
    assert ("bias" in errors) == (case.end > 0)
    for name, error in errors.items():
        limit = tolerance(case.dtype, kinds.get(name, "gradient"), tensor_cores=tensor_cores)
        assert error <= limit, (name, error)


@pytest.fixture(scope="module")
@takes_up_to(900)
def found() -> Any:
    """One process for all: half of its time is imports."""
    return results_of("attention_interpreted.py", *CASES, *CHECKS)


@pytest.mark.parametrize("name", CASES)
def test_attention_in_triton_equals_float64_under_the_interpreter(name: str, found: Any) -> None:
    assert_within(CASES[name], found[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW_CASES)
def test_attention_at_length_equals_float64_under_the_interpreter(name: str) -> None:
    assert_within(SLOW_CASES[name], results_of("attention_interpreted.py", name)[name])


def test_attention_in_fp32_on_tensor_cores_is_within_their_tolerance() -> None:
    names = ["wide_256", "causal_bias"]
    for name, errors in results_of("attention_interpreted.py", "--tensor-cores", *names).items():
        assert_within(CASES[name], errors, tensor_cores=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["t5_500", "t5_causal_500", "prefix_300"])
def test_attention_at_length_on_tensor_cores_is_within_their_tolerance(name: str) -> None:
    errors = results_of("attention_interpreted.py", "--tensor-cores", name)[name]
    assert_within(SLOW_CASES[name], errors, tensor_cores=True)


def test_attention_in_triton_drops_the_weights_of_the_counter(found: Any) -> None:
    assert found["dropped_weights"] == {"0.25": True, "0.75": True}


@pytest.mark.parametrize("way", ["again", "recomputed", "compiled"])
def test_attention_in_triton_gives_the_same_bits(way: str, found: Any) -> None:
    assert found["operator"][way]


def plain(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, add: torch.Tensor) -> torch.Tensor:
    """One row and head, one query at a time."""
    lines = []
    for query, line in zip(q, add, strict=True):
        weight = (k @ query * scale + line).exp()
        lines.append((weight[:, None] * v).sum(0) / weight.sum() if weight.sum() else torch.zeros_like(query))
    return torch.stack(lines)


@pytest.mark.parametrize("name", ["bias", "segments", "prefix", "cross_dropout", "causal_grouped"])
def test_attention_follows_its_written_formula(name: str) -> None:
    keys = 9 if name == "cross_dropout" else 12
    case = CASES[name]._replace(queries=12, keys=keys, dtype=torch.float64, rate=0.0)
    inputs = inputs_of(case)
    y = attention(*inputs[:3], scale=case.scale, mask=inputs.mask._replace(bias_HR=inputs.bias_HR))
    segments_BS = inputs.mask.key_segments()
    for row in range(case.rows):
        for head in range(case.heads):
            add = torch.zeros(case.queries, case.keys, dtype=torch.float64)
            for t in range(case.queries):
                for s in range(case.keys):
                    before = s <= t or (case.prefix and s < inputs.mask.prefix_BT[row, t])
                    seen = before or not case.causal
                    if segments_BS is not None:
                        seen = seen and inputs.mask.segments_BT[row, t] == segments_BS[row, s]
                    offset = max(-case.end, min(case.end, s - t))
                    bias = 0.0 if inputs.bias_HR is None else inputs.bias_HR[head, offset + case.end]
                    add[t, s] = bias if seen else -torch.inf
            kv_head = head // (case.heads // case.kv_heads)
            k, v = inputs.k_BKSN[row, kv_head], inputs.v_BKSN[row, kv_head]
            torch.testing.assert_close(y[row, head], plain(inputs.q_BHTN[row, head], k, v, case.scale, add))


def test_attention_passes_gradcheck() -> None:
    case = CASES["prefix"]._replace(dtype=torch.float64, queries=9, keys=9, width=3, rate=0.3, end=2)
    inputs = inputs_of(case)
    leaves = [x.double().requires_grad_() for x in (*inputs[:3], inputs.bias_HR)]

    def call(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return attention(
            q, k, v, scale=0.7, mask=inputs.mask._replace(bias_HR=bias), key_BH=inputs.key_BH, rate=case.rate
        )

    assert torch.autograd.gradcheck(call, leaves)


def test_attention_without_features_equals_torchs() -> None:
    case = CASES["causal_grouped"]
    inputs = inputs_of(case)
    expected = F.scaled_dot_product_attention(*inputs[:3], is_causal=True, scale=case.scale, enable_gqa=True)
    torch.testing.assert_close(attention(*inputs[:3], scale=case.scale, mask=inputs.mask), expected)


def test_attention_drops_weights_by_the_counter() -> None:
    q, k = torch.randn(1, 2, 8, 16), torch.randn(1, 2, 8, 16)
    v = torch.eye(8, 16).expand(1, 2, 8, 16)
    key_BH = counter.fold(counter.row_keys(3, 5, torch.arange(1))[:, None], torch.arange(2))
    y = attention(q, k, v, scale=1.0, key_BH=key_BH, rate=0.4)[..., :8]
    weight = ((q @ k.transpose(-1, -2)).softmax(-1)).contiguous()
    torch.testing.assert_close(y, counter.dropout(weight, key_BH, 0.4))


MASKS = {
    "window": AttentionMask(causal=True, sliding_window=3),
    "window with a bias": AttentionMask(sliding_window=3, bias_HR=torch.randn(2, 7)),
    "positions": AttentionMask(causal=True, position_BT=torch.tensor([[3, 4], [7, 8]])),
    "positions with a bias": AttentionMask(
        causal=True, position_BT=torch.tensor([[3, 4], [7, 8]]), bias_HR=torch.randn(2, 5)
    ),
    "queries without keys": AttentionMask(segments_BT=segments_of(2, 9), segments_BS=segments_of(2, 9) + 5),
}


@pytest.mark.parametrize("name", MASKS)
@pytest.mark.parametrize("prepared", [False, True])
def test_masks_are_the_same_in_sdpa_and_in_the_reference(name: str, prepared: bool) -> None:
    mask = MASKS[name]
    queries = 9 if mask.position_BT is None else 2
    q, k, v = (torch.randn(2, 2, length, 8) for length in (queries, 9, 9))
    expected = attention(q, k, v, scale=0.4, mask=mask, impl="torch")
    if prepared:
        mask = prepare_mask(mask, queries, 9, q.device)
        assert mask.dense is not None
    torch.testing.assert_close(attention(q, k, v, scale=0.4, mask=mask), expected)


def test_mask_allows_the_keys_that_every_rule_allows() -> None:
    mask = AttentionMask(causal=True, sliding_window=2, position_BT=torch.tensor([[1, 3]]))
    expected = [[[True, True, False, False], [False, False, True, True]]]
    assert mask.allowed(2, 4, torch.device("cpu")).tolist() == expected


def test_spread_bias_repeats_its_ends() -> None:
    assert spread_bias(torch.tensor([[5, 6, 7]]), 3, 3).tolist() == [[[6, 7, 7], [5, 6, 7], [5, 5, 6]]]


FIVE_KEYS = dict.fromkeys(("k_BKSN", "v_BKSN"), torch.ones(1, 2, 5, 8))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k_BKSN": torch.ones(1, 3, 4, 8), "v_BKSN": torch.ones(1, 3, 4, 8)}, "H a multiple of K"),
        ({"v_BKSN": torch.ones(1, 2, 4, 8).half()}, "one dtype"),
        ({"mask": AttentionMask(bias_HR=torch.ones(2, 4))}, "bias_HR: must be"),
        (
            {"mask": AttentionMask(causal=True)} | FIVE_KEYS,
            "keys",
        ),
        ({"mask": AttentionMask(sliding_window=2), "impl": "triton"}, "supports no sliding_window"),
        ({"mask": AttentionMask(position_BT=torch.ones(1, 3))}, "position_BT: must have shape"),
        ({"mask": AttentionMask(prefix_BT=torch.ones(1, 4))}, "causal must be True"),
        ({"mask": AttentionMask(segments_BT=torch.ones(1, 3))}, "segments_BT: must have shape"),
        ({"mask": AttentionMask(segments_BS=torch.ones(1, 4))}, "needs the queries' segments"),
        ({"key_BH": torch.ones(1, 2)}, "key_BH: must be int64"),
        ({"key_BH": torch.ones(1, 2).long(), "rate": 1.0}, "rate: must be in"),
        ({"impl": "cuda"}, "impl: must be one of"),
    ],
)
def test_attention_refuses_arguments_that_do_not_fit(change: dict[str, Any], message: str) -> None:
    x = torch.ones(1, 2, 4, 8)
    with pytest.raises(ValueError, match=message):
        attention(**({"q_BHTN": x, "k_BKSN": x, "v_BKSN": x, "scale": 1.0} | change))


def test_attention_in_triton_refuses_more_heads_than_a_grid_has() -> None:
    x = torch.ones(4096, 16, 1, 8)
    with pytest.raises(ValueError, match="at most 65535, but got 4096 x 16"):
        attention(
            x, x, x, scale=1.0, mask=AttentionMask(segments_BT=torch.ones(4096, 1).long()), impl="triton"
        )


@pytest.mark.gpu
@pytest.mark.parametrize("name", [*CASES, *SLOW_CASES])
def test_attention_on_a_gpu_equals_float64(name: str) -> None:
    case = (CASES | SLOW_CASES)[name]
    inputs = inputs_of(case, "cuda")
    expected = results(case, inputs, "torch", exact=True)
    actual = results(case, inputs, "triton")
    errors = {key: relative_error(actual[key], expected[key], inputs.grad_BHTN) for key in expected}
    assert_within(case, errors, tensor_cores=True)
    again = results(case, inputs, "triton")
    assert all(torch.equal(actual[key], again[key]) for key in actual)


def milliseconds(call: Any) -> float:
    """The median of some runs."""
    from triton.testing import do_bench

    return do_bench(call, return_mode="median")


@pytest.mark.gpu
@pytest.mark.parametrize("positions", [512, 2048])
def test_attention_on_a_gpu_is_faster_than_torchs_with_a_bias_spelled_out(positions: int) -> None:
    from reptrain_kernels.ops.attention.bench import ATTENTION, attention_tensors

    shape = next(shape for shape in ATTENTION if shape.name == "T5-Base encoder")
    shape = shape._replace(B=8192 // positions, T=positions, S=positions)
    q, k, v, bias, _, _ = attention_tensors(shape, "cuda")
    leaves = [x.requires_grad_() for x in (q, k, v, bias)]
    grad = torch.randn_like(q)

    def fused() -> None:
        torch.autograd.grad(attention(q, k, v, scale=1.0, mask=AttentionMask(bias_HR=bias)), leaves, grad)

    def spelled_out() -> None:
        offset = torch.arange(1 - positions, positions, device="cuda").clamp(-shape.E, shape.E) + shape.E
        mask = bias[:, offset].unfold(1, positions, 1).flip(1).to(q.dtype)[None]
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0)
        torch.autograd.grad(y, leaves, grad)

    assert milliseconds(fused) < milliseconds(spelled_out)
