"""The kernels of sparse layers: their definitions in torch, and Triton without a GPU and on one."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from interpreted import results_of
from moe_cases import (
    GROUPED,
    KINDS,
    LOWEST_FIRST,
    PERMUTED,
    ROUTED,
    SLOW_GROUPED,
    SORTED,
    Grouped,
    RoutedCase,
    grouped_inputs,
    grouped_results,
    normal,
    permuted_results,
    routed_inputs,
    routed_results,
    sorted_results,
    tied_experts,
)
from time_limits import takes_up_to
from tolerances import relative_error, tolerance

from reptrain_kernels import counter, implementation
from reptrain_kernels.implementation import assume, choose_grouped
from reptrain_kernels.ops.grouped import grouped_mlp, grouped_mm, one_by_one
from reptrain_kernels.ops.grouped.bench import OPERATION as GROUPED_OPERATION
from reptrain_kernels.ops.grouped.tiles import grouped_tiles
from reptrain_kernels.ops.permute import Places, combine, dispatch, sort
from reptrain_kernels.ops.router import route


def assert_within(dtype: torch.dtype, errors: dict[str, Any], *, tensor_cores: bool = False) -> None:
    """Every result's error is within the table; whole numbers are equal."""
    for name, error in errors.items():
        if isinstance(error, bool):
            assert error, name
        else:
            # Gradients of gates and logits are fp32 whatever the rows are.
            limit = tolerance(dtype, KINDS.get(name, "gradient"), tensor_cores=tensor_cores)
            assert error <= limit, (name, error)


@pytest.fixture(scope="module")
@takes_up_to(900)
def found() -> Any:
    """One process for all: half of its time is imports."""
    return results_of("moe_interpreted.py")


@pytest.mark.parametrize("name", GROUPED)
def test_grouped_products_in_triton_equal_float64_under_the_interpreter(name: str, found: Any) -> None:
    errors = found["grouped"][name]
    assert ("gate" in errors) == (GROUPED[name].activation in ("swiglu", "geglu"))
    assert {"y", "x", "up", "down", "product", "product_x", "product_up"} <= errors.keys()
    assert_within(GROUPED[name].dtype, errors)


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW_GROUPED)
def test_grouped_products_by_a_gpus_tiles_equal_float64_under_the_interpreter(name: str) -> None:
    assert_within(SLOW_GROUPED[name].dtype, results_of("moe_interpreted.py", name)[name])


@pytest.mark.parametrize("name", PERMUTED)
def test_send_and_collect_in_triton_equal_float64_under_the_interpreter(name: str, found: Any) -> None:
    assert found["permuted"][name].keys() == {"dispatched", "combined", "x_back", "y_back", "gate_back"}
    assert_within(PERMUTED[name].dtype, found["permuted"][name])


@pytest.mark.parametrize("name", SORTED)
def test_sort_in_triton_is_torchs_under_the_interpreter(name: str, found: Any) -> None:
    assert found["sorted"][name] == {"order": True, "place": True, "count": True}


def test_moe_kernels_write_each_place_once_and_stay_in_their_tensors(found: Any) -> None:
    kernels = {"hidden", "product", "hidden_gradient", "row_gradient", "weight_gradient"}
    kernels |= {"count", "place", "dispatch", "combine", "combine_gradient", "route", "route_gradient"}
    assert found["strays"] == {f"{kernel}_kernel": [0, 0] for kernel in kernels}


@pytest.mark.parametrize("name", ROUTED)
def test_route_in_triton_equals_float64_under_the_interpreter(name: str, found: Any) -> None:
    assert found["routed"][name].keys() == {"experts", "count", "gates", "share", "square", "logits_back"}
    assert_within(torch.float32, found["routed"][name])


def test_route_in_triton_takes_the_lowest_of_equal_experts(found: Any) -> None:
    assert found["ties"] == LOWEST_FIRST


def test_grouped_mlp_in_triton_drops_the_units_of_the_counter(found: Any) -> None:
    assert found["dropped_units"] == {"0.25": True, "0.75": True}


@pytest.mark.parametrize("way", ["again", "recomputed", "compiled"])
@pytest.mark.parametrize("model", ["experts", "router"])
def test_moe_kernels_give_the_same_bits(model: str, way: str, found: Any) -> None:
    assert found["operators"][model][way]


@pytest.mark.parametrize("name", ["swiglu", "geglu", "relu", "gelu"])
def test_grouped_mlp_follows_its_written_formula(name: str) -> None:
    case = GROUPED[name]._replace(dtype=torch.float64)
    x_ND, gate_EFD, up_EFD, down_EDF, count_E, key_N, _ = grouped_inputs(case)
    how: dict[str, Any] = {"activation": case.activation, "key_N": key_N, "rate": case.rate}
    y_ND = grouped_mlp(x_ND, gate_EFD, up_EFD, down_EDF, count_E, **how)
    expert_N = [group for group, count in enumerate(case.counts) for _ in range(count)]
    for row, group in enumerate(expert_N):
        up_F = up_EFD[group] @ x_ND[row]
        bent_F = up_F if gate_EFD is None else gate_EFD[group] @ x_ND[row]
        if case.activation == "relu":
            h_F = bent_F.clamp(min=0)
        elif case.activation == "swiglu":
            h_F = bent_F / (1 + (-bent_F).exp())
        else:
            h_F = 0.5 * bent_F * (1 + ((2 / math.pi) ** 0.5 * (bent_F + 0.044715 * bent_F**3)).tanh())
        h_F = h_F if gate_EFD is None else h_F * up_F
        if key_N is not None:
            h_F = counter.dropout(h_F[None, None], key_N[row : row + 1], case.rate)[0, 0]
        torch.testing.assert_close(y_ND[row], down_EDF[group] @ h_F)


def test_grouped_mlp_passes_gradcheck() -> None:
    case = Grouped(torch.float64, counts=(2, 0, 3), width=3, hidden=4, rate=0.3)
    x_ND, gate_EFD, up_EFD, down_EDF, count_E, key_N, _ = grouped_inputs(case)
    leaves = [x.requires_grad_() for x in (x_ND, gate_EFD, up_EFD, down_EDF)]
    how: dict[str, Any] = {"activation": "swiglu", "key_N": key_N, "rate": 0.3}
    assert torch.autograd.gradcheck(lambda *given: grouped_mlp(*given, count_E, **how), leaves)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_grouped_mm_in_torch_equals_one_product_after_the_other(dtype: torch.dtype) -> None:
    inputs = grouped_inputs(GROUPED["fp16"]._replace(dtype=dtype))
    expected = one_by_one(inputs.x_ND, inputs.up_EFD, inputs.count_E)
    torch.testing.assert_close(grouped_mm(inputs.x_ND, inputs.up_EFD, inputs.count_E), expected)


@pytest.mark.parametrize(
    ("dtype", "capability", "expected"),
    [
        (torch.bfloat16, 80, "triton"),
        (torch.bfloat16, 89, "triton"),
        (torch.bfloat16, 90, "torch"),
        (torch.bfloat16, 100, "torch"),
        (torch.bfloat16, 120, "triton"),
        (torch.float16, 90, "triton"),
        (torch.float32, 90, "triton"),
    ],
)
def test_choose_grouped_leaves_to_torch_what_torch_multiplies_in_one_kernel(
    dtype: torch.dtype, capability: int, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(implementation, "capability", lambda device: capability)
    device = torch.device("cuda")
    assert choose_grouped(device, dtype) == expected
    assert choose_grouped(device, dtype, "torch") == "torch"
    assert choose_grouped(device, dtype, "triton") == "triton"
    assert choose_grouped(torch.device("cpu"), dtype) == "torch"
    with assume(impl="triton"):
        assert choose_grouped(device, dtype) == "triton"
    with pytest.raises(ValueError, match="impl: must be one of"):
        choose_grouped(device, dtype, "cuda")  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"up_EFD": torch.ones(2, 4, 7)}, "up_EFD: must be"),
        ({"up_EFD": torch.ones(2, 4, 8).half()}, r"up_EFD: must be torch.float32.*got torch.float16"),
        ({"count_E": torch.tensor([1, 2, 3])}, r"gate_EFD: must be .* in \(3,\) groups"),
        ({"gate_EFD": torch.ones(2, 5, 8)}, "gate_EFD: must have the shape"),
        ({"down_EDF": torch.ones(2, 4, 8)}, "down_EDF: must be"),
        ({"activation": "relu"}, "gate_EFD: must be given for swiglu and geglu only"),
        ({"gate_EFD": None}, "gate_EFD: must be given for swiglu and geglu only"),
        ({"key_N": torch.ones(5).long()}, r"key_N: must be int64 of shape \(6,\)"),
        ({"key_N": torch.ones(6).long(), "rate": 1.0}, "rate: must be in"),
        ({"impl": "cuda"}, "impl: must be one of"),
    ],
)
def test_grouped_mlp_refuses_arguments_that_do_not_fit(change: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {
        "x_ND": torch.ones(6, 8),
        "gate_EFD": torch.ones(2, 4, 8),
        "up_EFD": torch.ones(2, 4, 8),
        "down_EDF": torch.ones(2, 8, 4),
        "count_E": torch.tensor([2, 4]),
        "activation": "swiglu",
    }
    with pytest.raises(ValueError, match=message):
        grouped_mlp(**(given | change))


def test_send_and_collect_follow_their_written_formulas() -> None:
    places = Places.of(torch.tensor([2, 0, 3, 1, 5, 4]), 2)
    assert places.place_MK.tolist() == [[1, 3], [0, 2], [5, 4]]
    x_MD, y_ND, gate_MK = normal(3, 4, seed=0), normal(6, 4, seed=1), normal(3, 2, seed=2)
    dispatched_ND, combined_MD = dispatch(x_MD, places), combine(y_ND, gate_MK, places)
    for token, row in enumerate(places.place_MK.tolist()):
        assert all(torch.equal(dispatched_ND[place], x_MD[token]) for place in row)
        expected_D = sum(gate * y_ND[place] for gate, place in zip(gate_MK[token], row, strict=True))
        torch.testing.assert_close(combined_MD[token], expected_D)


def test_sort_keeps_the_order_of_an_experts_tokens() -> None:
    places, count_E = sort(torch.tensor([[2, 0], [0, 2], [2, 3]]), 5)
    assert places.order_N.tolist() == [1, 2, 0, 3, 4, 5]
    assert places.place_MK.tolist() == [[2, 0], [1, 3], [4, 5]]
    assert count_E.tolist() == [2, 0, 3, 1, 0]


def test_send_and_collect_pass_gradcheck() -> None:
    places = Places.of(torch.tensor([2, 0, 3, 1, 5, 4]), 2)
    leaves = [normal(*shape, seed=1).double().requires_grad_() for shape in ((3, 4), (6, 4), (3, 2))]
    assert torch.autograd.gradcheck(lambda x: dispatch(x, places), leaves[:1])
    assert torch.autograd.gradcheck(lambda y, gate: combine(y, gate, places), leaves[1:])


def test_send_and_collect_refuse_arguments_that_do_not_fit() -> None:
    places = Places.of(torch.arange(6), 2)
    with pytest.raises(ValueError, match=r"x_MD: must have shape \[3, D\]"):
        dispatch(torch.ones(4, 2), places)
    with pytest.raises(ValueError, match=r"y_ND: must have shape \[6, D\]"):
        combine(torch.ones(3, 2), torch.ones(3, 2), places)
    with pytest.raises(ValueError, match=r"gate_MK: must have shape \(3, 2\)"):
        combine(torch.ones(6, 2), torch.ones(3, 3), places)
    with pytest.raises(ValueError, match="expert_MK: must be int64 of two axes"):
        sort(torch.ones(6).long(), 2)


@pytest.mark.parametrize("name", ["top_2", "five_experts", "sigmoid", "sigmoid_raw"])
def test_route_follows_its_written_formula(name: str) -> None:
    case = ROUTED[name]._replace(tokens=6)
    logit_BTE, is_token_BT, bias_E = routed_inputs(case)
    how: dict[str, Any] = {"top_k": case.top_k, "score": case.score, "normalize": case.normalize}
    routed = route(logit_BTE, is_token_BT, bias_E, **how)
    for row in range(case.rows):
        count_E, share_E = torch.zeros(case.experts), torch.zeros(case.experts)
        square = torch.zeros(())
        for token in range(case.tokens):
            raised_E = logit_BTE[row, token].exp()
            score_E = raised_E / raised_E.sum() if case.score == "softmax" else raised_E / (1 + raised_E)
            chosen_K = (score_E + bias_E).argsort(descending=True)[: case.top_k]
            assert routed.expert_BTK[row, token].tolist() == chosen_K.tolist()
            gate_K = score_E[chosen_K] / (score_E[chosen_K].sum() if case.normalize else 1)
            torch.testing.assert_close(routed.gate_BTK[row, token], gate_K)
            if is_token_BT[row, token]:
                count_E[chosen_K] += 1
                share_E += score_E / score_E.sum()
                square += raised_E.sum().log() ** 2
        assert routed.count_BE[row].tolist() == count_E.tolist()
        torch.testing.assert_close(routed.share_BE[row], share_E)
        torch.testing.assert_close(routed.square_B[row], square)


@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
@pytest.mark.parametrize("normalize", [True, False])
def test_route_passes_gradcheck(score: str, normalize: bool) -> None:
    case = RoutedCase(experts=5, tokens=4, rows=2)
    logit_BTE, is_token_BT, bias_E = routed_inputs(case)
    how: dict[str, Any] = {"top_k": 2, "score": score, "normalize": normalize}

    def call(logit_BTE: torch.Tensor) -> tuple[torch.Tensor, ...]:
        routed = route(logit_BTE, is_token_BT, bias_E.double(), **how)
        return routed.gate_BTK, routed.share_BE, routed.square_B

    assert torch.autograd.gradcheck(call, logit_BTE.double().requires_grad_())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"is_token_BT": torch.ones(2, 3)}, "is_token_BT, bias_E: must be bool"),
        ({"bias_E": torch.ones(4)}, "is_token_BT, bias_E: must be bool"),
        ({"top_k": 6}, "top_k: must be from 1 to 5"),
        ({"score": "linear"}, "score: must be one of"),
        ({"logit_BTE": torch.ones(2, 3, 5).double(), "impl": "triton"}, "logit_BTE: must be torch.float32"),
        ({"impl": "cuda"}, "impl: must be one of"),
    ],
)
def test_route_refuses_arguments_that_do_not_fit(change: dict[str, Any], message: str) -> None:
    given: dict[str, Any] = {
        "logit_BTE": torch.ones(2, 3, 5),
        "is_token_BT": torch.ones(2, 3, dtype=torch.bool),
        "bias_E": torch.ones(5),
        "top_k": 2,
        "score": "softmax",
        "normalize": True,
    }
    with pytest.raises(ValueError, match=message):
        route(**(given | change))


def off(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> dict[str, Any]:
    return {
        name: relative_error(found[name], x, x) if x.is_floating_point() else torch.equal(found[name], x)
        for name, x in expected.items()
    }


def test_traffic_of_experts_is_counted_as_by_hand() -> None:
    shape = next(shape for shape in GROUPED_OPERATION.shapes if shape.name == "MoE-Base")
    flops, matrix = 2 * 16384 * 768 * 2048, 768 * 2048 * 2
    rows, hidden = 16384 * 768 * 2, 16384 * 2048 * 2
    forward, backward = GROUPED_OPERATION.needed(shape)
    assert (forward.matrix_flops, backward.matrix_flops) == (3 * flops, 6 * flops)
    assert forward.memory_bytes == 2 * rows + 3 * 16 * matrix + 2 * hidden
    assert backward.memory_bytes == 3 * rows + 6 * 16 * matrix + 2 * hidden
    (up, down), (bent, back, *weights) = GROUPED_OPERATION.moved(shape, 80)
    # 128 tiles of 128 rows, and half a tile more for each of 16 experts; of a weight's gradient 16 rows more.
    shares = [kernel.matrix_flops / flops for kernel in (up, down, bent, back, *weights)]
    assert shares == [2 * 136 / 128, 136 / 128, 136 / 128, 2 * 136 / 128, *[1040 / 1024] * 3]
    assert up.memory_bytes == rows + 3 * hidden + 2 * 16 * matrix
    # A tile of 128 rows and two of 64 columns, each 32 deep: staged, then read by four warps, each of which
    # has 32 rows and all columns.
    assert grouped_tiles("hidden", 2, 80)[:4] == (128, 64, 32, 4)
    assert up.shared_bytes == 136 * 32 * 24 * 64 * (128 + 2 * 64 + 128 + 4 * 2 * 64)


@pytest.mark.gpu
@pytest.mark.parametrize("impl", ["triton", "torch"])
@pytest.mark.parametrize("name", [*GROUPED, *SLOW_GROUPED])
def test_grouped_products_on_a_gpu_equal_float64(name: str, impl: str) -> None:
    case = (GROUPED | SLOW_GROUPED)[name]
    inputs = grouped_inputs(case, "cuda")
    actual = grouped_results(case, inputs, impl)
    if impl == "triton":
        errors = off(actual, grouped_results(case, inputs, "torch", exact=True))
        assert_within(case.dtype, errors, tensor_cores=True)
    again = grouped_results(case, inputs, impl)
    assert all(torch.equal(actual[key], again[key]) for key in actual)


@pytest.mark.gpu
@pytest.mark.parametrize("name", PERMUTED)
def test_send_and_collect_on_a_gpu_equal_float64(name: str) -> None:
    case = PERMUTED[name]
    actual = permuted_results(case, "triton", device="cuda")
    assert_within(case.dtype, off(actual, permuted_results(case, "torch", exact=True, device="cuda")))


@pytest.mark.gpu
@pytest.mark.parametrize("name", SORTED)
def test_sort_on_a_gpu_is_torchs(name: str) -> None:
    actual = sorted_results(SORTED[name], "triton", device="cuda")
    expected = sorted_results(SORTED[name], "torch", device="cpu")
    assert all(torch.equal(actual[key].cpu(), expected[key]) for key in expected)


@pytest.mark.gpu
@pytest.mark.parametrize("name", ROUTED)
def test_route_on_a_gpu_equals_float64(name: str) -> None:
    actual = routed_results(ROUTED[name], "triton", device="cuda")
    expected = routed_results(ROUTED[name], "torch", exact=True, device="cuda")
    assert_within(torch.float32, off(actual, expected))


@pytest.mark.gpu
def test_route_on_a_gpu_takes_the_lowest_of_equal_experts() -> None:
    assert tied_experts("cuda") == LOWEST_FIRST


@pytest.mark.gpu
def test_grouped_mlp_on_a_gpu_waits_for_nothing() -> None:
    """Sizes of groups stay on the device: with synchronization forbidden, forward and backward run."""
    case = SLOW_GROUPED["bf16_tiles"]
    inputs = grouped_inputs(case, "cuda")
    grouped_results(case, inputs, "triton")
    torch.cuda.set_sync_debug_mode("error")
    try:
        grouped_results(case, inputs, "triton")
    finally:
        torch.cuda.set_sync_debug_mode("default")
