"""Routers, experts and sparse layers against loops over tokens."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._python_dispatch import TorchDispatchMode

from reptrain.config.model import DecoderConfig, MoEConfig, Recompute, T5Config
from reptrain.model import Decoder, DropoutContext, EncoderDecoder, Routing, build_model, router
from reptrain.model.dropout import Dropout, LayerKeys, Site, layer_keys
from reptrain.model.router import RoutedTokens, Router
from reptrain.model.sparse import SparseMLP
from reptrain.sizes import load_subject
from reptrain_kernels.counter import jitter

B, T, D, E = 4, 6, 16, 5
# Rows of 6, 4, 6 and 0 tokens; the rest is padding.
IS_TOKEN_BT = torch.arange(T) < torch.tensor([6, 4, 6, 0])[:, None]
TARGETS_B = torch.tensor([6, 3, 5, 0])
ACTIVATIONS = ("swiglu", "geglu", "relu")


def moe(**changes: Any) -> MoEConfig:
    return MoEConfig.model_validate({"num_experts": E} | changes)


def sparse_mlp(activation: str = "swiglu", *, dropout: float = 0.0, **changes: Any) -> SparseMLP:
    torch.manual_seed(0)
    layer = SparseMLP(
        D,
        24,
        activation=activation,
        config=moe(**changes),
        dropout=dropout,
        shared_dropout=Dropout(dropout, Site.MLP_HIDDEN),
    )
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return layer


def states() -> Tensor:
    return torch.randn(B, T, D, generator=torch.Generator().manual_seed(1))


def routed() -> RoutedTokens:
    return RoutedTokens(IS_TOKEN_BT, TARGETS_B)


def keys(row_B: Tensor | None = None) -> LayerKeys:
    row_B = torch.arange(B) if row_B is None else row_B
    actual = layer_keys(DropoutContext(seed=1, step=2, row_B=row_B).key_B, 3, 1, 1)[0]
    assert actual is not None
    return actual


def plain_scores(layer: SparseMLP, x_D: Tensor) -> Tensor:
    logit_E = layer.router.weight @ x_D
    return logit_E.softmax(0) if layer.config.score == "softmax" else logit_E.sigmoid()


def plain_expert(layer: SparseMLP, expert: int, x_D: Tensor) -> Tensor:
    up_F = layer.experts.up[expert] @ x_D
    if layer.experts.gate is None:
        return layer.experts.down[expert] @ up_F.relu()
    gate_F = layer.experts.gate[expert] @ x_D
    tanh_form = 0.5 * gate_F * (1 + ((2 / math.pi) ** 0.5 * (gate_F + 0.044715 * gate_F**3)).tanh())
    return layer.experts.down[expert] @ (
        up_F * (gate_F * gate_F.sigmoid() if layer.experts.activation == "swiglu" else tanh_form)
    )


@pytest.mark.parametrize("backend", ["grouped", "loop"])
@pytest.mark.parametrize(
    "changes",
    [
        {"top_k": 1},
        {"top_k": 2, "shared_d_ff": 8},
        {"top_k": 3, "score": "sigmoid"},
        {"top_k": 2, "normalize": False, "d_ff": 40},
    ],
    ids=str,
)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_sparse_layer_equals_a_loop_over_its_tokens(
    activation: str, changes: dict[str, Any], backend: str
) -> None:
    layer, x_BTD = sparse_mlp(activation, backend=backend, **changes), states()
    y_BTD, _ = layer(x_BTD, None, routed())
    expected_BTD = torch.zeros_like(x_BTD)
    for row, position in IS_TOKEN_BT.nonzero().tolist():
        x_D = x_BTD[row, position]
        score_E = plain_scores(layer, x_D)
        chosen = score_E.topk(layer.config.top_k).indices.tolist()
        total = score_E[chosen].sum() if layer.config.normalizes else 1
        expected_BTD[row, position] = sum(
            score_E[expert] / total * plain_expert(layer, expert, x_D) for expert in chosen
        )
    if layer.shared is not None:
        expected_BTD += layer.shared(x_BTD, None)
    torch.testing.assert_close(y_BTD, expected_BTD, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize(
    "experts", [[0, 1, 2, 3, 4], [2], [0, 4]], ids=["all_used", "one_has_all", "some_empty"]
)
def test_backends_match_in_output_and_gradients(activation: str, experts: list[int]) -> None:
    results = []
    for backend in ("loop", "grouped"):
        layer = sparse_mlp(activation, backend=backend, dropout=0.3, top_k=1, jitter=0.2)
        with torch.no_grad():
            # Only these experts get tokens.
            layer.router.votes_E[[e for e in range(E) if e not in experts]] = -1
            layer.router.config = layer.config.model_copy(update={"bias_rate": 100.0})
        x_BTD = states().requires_grad_()
        y_BTD, routing = layer(x_BTD, keys(), routed())
        assert set((routing.figure_S[4:] > 0).nonzero().flatten().tolist()) == set(experts)
        wanted = [x_BTD, *layer.parameters()]
        loss = (y_BTD * torch.arange(D)).square().sum() + routing.loss_nats
        results.append((y_BTD, routing.loss_nats, *torch.autograd.grad(loss, wanted)))
    for plain, grouped in zip(*results, strict=True):
        torch.testing.assert_close(grouped, plain, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("group_windows", [1, 2, 3, 4])
@pytest.mark.parametrize("score", ["softmax", "sigmoid"])
def test_router_losses_follow_their_formulas_within_each_group(score: str, group_windows: int) -> None:
    coefficients = {"balance_coefficient": 0.3, "z_coefficient": 0.7}
    layer = sparse_mlp(score=score, group_windows=group_windows, top_k=2, **coefficients)
    x_BTD = states()
    _, routing = layer(x_BTD, None, routed())
    balance = z = 0.0
    for first in range(0, B, group_windows):
        rows = slice(first, first + group_windows)
        tokens = x_BTD[rows][IS_TOKEN_BT[rows]]
        if len(tokens):
            score_NE = torch.stack([plain_scores(layer, x_D) for x_D in tokens])
            chosen_NE = torch.zeros_like(score_NE).scatter(1, score_NE.topk(2).indices, 1.0)
            share_E = chosen_NE.mean(0) / 2
            probability_E = (score_NE / score_NE.sum(1, keepdim=True)).mean(0)
            square = (tokens @ layer.router.weight.T).logsumexp(1).square().mean().item()
            targets = TARGETS_B[rows].sum().item()
            balance += targets * E * (share_E * probability_E).sum().item()
            z += targets * square
    assert routing.loss_nats.item() == pytest.approx(0.3 * balance + 0.7 * z, rel=1e-5)
    assert routing.figure_S[:4].tolist() == pytest.approx([balance, z, 0, 32], rel=1e-5)


def test_balance_loss_is_one_for_a_uniform_load() -> None:
    layer = sparse_mlp(top_k=E)
    torch.nn.init.zeros_(layer.router.weight)
    _, routing = layer(states(), None, routed())
    assert routing.figure_S[0].item() == pytest.approx(TARGETS_B.sum().item())


@pytest.mark.parametrize("preset", ["moe-base", "moe-large"])
def test_preset_of_st_moe_adds_the_losses_of_t5x(preset: str) -> None:
    """Reference in NumPy: flaxformer's losses of each layer, 2 for a uniform load, averaged by T5X."""
    published = load_subject(Path(__file__).parents[2] / f"configs/models/{preset}.yaml").model
    assert isinstance(published, T5Config) and published.moe is not None
    shape = {"d_model": 16, "d_ff": 16, "num_heads": 2, "head_dim": 8}
    small = published.model_copy(update=shape | {"moe": published.moe.model_copy(update={"shared_d_ff": 8})})
    model = build_model(small, vocab_size=32128, seed=1)
    read: list[np.ndarray] = []
    with torch.no_grad():
        for _, layer in model.sparse_layers():
            layer.router.weight.mul_(40)
            layer.router.register_forward_hook(
                lambda router, given, _: read.append(logits_of(router, given[0]))
            )
        tokens_BT = torch.randint(2, 90, (2, 30), generator=torch.Generator().manual_seed(2))
        routing, ones_BT = Routing(torch.tensor([30, 30])), torch.ones_like(tokens_BT)
        model(tokens_BT, tokens_BT, source_segments_BS=ones_BT, segments_BT=ones_BT, routing=routing)
    balances, squares = [], []
    for logit_BTE in read:
        total_BT1 = np.exp(logit_BTE).sum(-1, keepdims=True)
        probability_BE = (np.exp(logit_BTE) / total_BT1).mean(1)
        is_chosen_BTE = logit_BTE >= np.sort(logit_BTE, -1)[..., -2:-1]
        balances.append((is_chosen_BTE.mean(1) * probability_BE).mean() * logit_BTE.shape[-1] ** 2)
        squares.append((np.log(total_BT1) ** 2).mean())
    assert len(read) == {"moe-base": 6, "moe-large": 12}[preset] and min(balances) > 2
    expected = 0.01 * np.mean(balances) + 0.0001 * np.mean(squares)
    assert routing.loss_nats is not None and not published.moe.normalizes
    assert float(routing.loss_nats) / 60 == pytest.approx(expected, rel=1e-4)


def logits_of(router: Router, x_BTD: Tensor) -> np.ndarray:
    logit_BTE: np.ndarray = (x_BTD.double() @ router.weight.double().T).numpy()
    return logit_BTE


@pytest.mark.parametrize("group_windows", [1, 2])
@pytest.mark.parametrize("factor", [0.3, 1.0, 1.25])
def test_capacity_drops_the_later_tokens_of_a_group(factor: float, group_windows: int) -> None:
    layer = sparse_mlp(top_k=2, capacity_factor=factor, min_capacity=1, group_windows=group_windows)
    x_BTD = states()
    choice, _ = layer.router(x_BTD, IS_TOKEN_BT, None)
    dropped = 0
    for first in range(0, B, group_windows):
        rows = slice(first, first + group_windows)
        # Python rounds half to even, as flaxformer does.
        room = [max(round(factor * IS_TOKEN_BT[rows].sum().item() / E), 1)] * E
        for row in range(first, first + group_windows):
            for position in range(T):
                for slot, expert in enumerate(choice.expert_BTK[row, position].tolist()):
                    is_token = bool(IS_TOKEN_BT[row, position])
                    taken = is_token and room[expert] > 0
                    assert choice.taken_BTK[row, position, slot] == taken
                    assert (choice.gate_BTK[row, position, slot] > 0) == taken
                    room[expert] -= is_token
                    dropped += is_token and not taken
    assert dropped > 0
    _, routing = layer(x_BTD, None, routed())
    assert routing.figure_S[2].item() == dropped
    # The count of an expert includes dropped assignments.
    assert routing.figure_S[4:].sum().item() == 32


@pytest.mark.parametrize(
    ("tokens", "experts", "factor", "taken"),
    # 4,096 tokens as in ST-MoE's groups; then a half above an even number, one above an odd number, and the
    # minimum.
    [(4096, 16, 1.25, 320), (4096, 16, 2.0, 512), (90, 4, 1.0, 22), (94, 4, 1.0, 24), (64, 32, 1.0, 4)],
)
def test_capacity_is_that_of_flaxformer(tokens: int, experts: int, factor: float, taken: int) -> None:
    """If all tokens select expert 0 first, it accepts `factor * tokens / experts` of them, with top-2 too."""
    config = MoEConfig(num_experts=experts, top_k=2, capacity_factor=factor)
    router = Router(D, config)
    torch.nn.init.zeros_(router.weight)
    torch.nn.init.ones_(router.weight[0])
    torch.nn.init.constant_(router.weight[1], 0.5)
    is_token_BT = torch.ones(1, tokens, dtype=torch.bool)
    choice, _ = router(torch.ones(1, tokens, D), is_token_BT, None)
    assert (choice.expert_BTK == torch.tensor([0, 1])).all()
    assert choice.taken_BTK.sum(1).tolist() == [[taken, taken]]
    assert choice.taken_BTK[0, :taken].all()


def test_eval_capacity_factor_applies_in_evaluation() -> None:
    layer = sparse_mlp(capacity_factor=0.3, min_capacity=0, eval_capacity_factor=5.0)
    assert not layer.router(states(), IS_TOKEN_BT, None)[0].taken_BTK[IS_TOKEN_BT].all()
    assert layer.eval().router(states(), IS_TOKEN_BT, None)[0].taken_BTK[IS_TOKEN_BT].all()


def test_sparse_layer_is_causal() -> None:
    layer, x_BTD = sparse_mlp(capacity_factor=0.5, min_capacity=1), states()
    changed_BTD = x_BTD.clone()
    changed_BTD[:, 4:] = changed_BTD[:, 4:].flip(2)
    before, after = layer(x_BTD, keys(), routed())[0], layer(changed_BTD, keys(), routed())[0]
    # Later tokens change the row of an earlier one in its expert's matrix product, which may change its last
    # bit.
    torch.testing.assert_close(after[:, :4], before[:, :4], rtol=1e-6, atol=1e-6)
    assert not torch.allclose(after[:, 4:], before[:, 4:], atol=1e-2)


def test_padding_outputs_zeros_and_changes_no_token() -> None:
    layer, x_BTD = sparse_mlp(), states()
    y_BTD, routing = layer(x_BTD, None, routed())
    assert (y_BTD[~IS_TOKEN_BT] == 0).all()
    other_BTD = torch.where(IS_TOKEN_BT[..., None], x_BTD, 7.0)
    other, other_routing = layer(other_BTD, None, routed())
    torch.testing.assert_close(other, y_BTD)
    torch.testing.assert_close(other_routing.loss_nats, routing.loss_nats)
    assert torch.equal(other_routing.figure_S, routing.figure_S)


def test_expert_bias_changes_the_selection_and_not_the_gates() -> None:
    layer, x_BTD = sparse_mlp(top_k=1, bias_rate=0.5), states()
    before, _ = layer.router(x_BTD, IS_TOKEN_BT, None)
    layer.router.votes_E[3] = 4
    after, _ = layer.router(x_BTD, IS_TOKEN_BT, None)
    assert (after.expert_BTK == 3).all() and not (before.expert_BTK == 3).all()
    score_BTE = (x_BTD @ layer.router.weight.T).softmax(-1)
    torch.testing.assert_close(after.gate_BTK[IS_TOKEN_BT], score_BTE[IS_TOKEN_BT][:, 3:4])


def test_jitter_is_bounded_and_applies_in_training_only() -> None:
    torch.manual_seed(0)
    plain, noisy = Router(D, moe()), Router(D, moe(jitter=0.25))
    factor_BTD = jitter(torch.ones(B, T, 4096), keys().site_PB[Site.ROUTER], noisy.config.jitter)
    assert 0.75 <= factor_BTD.min() < 0.751 and 1.249 < factor_BTD.max() < 1.25
    assert factor_BTD.mean().item() == pytest.approx(1, abs=0.002)
    for each in (plain, noisy):
        torch.nn.init.ones_(each.weight)
    losses = [
        each(states(), IS_TOKEN_BT, given)[1].z_G for each in (plain, noisy) for given in (None, keys())
    ]
    assert torch.equal(losses[0], losses[1]) and torch.equal(losses[0], losses[2])
    assert not torch.allclose(losses[0], losses[3])


def test_expert_dropout_does_not_depend_on_the_micro_batch() -> None:
    layer, x_BTD = sparse_mlp(dropout=0.4, jitter=0.1, shared_d_ff=8), states()
    whole, _ = layer(x_BTD, keys(), routed())
    for row in range(B):
        part = RoutedTokens(IS_TOKEN_BT[row : row + 1], TARGETS_B[row : row + 1])
        alone, _ = layer(x_BTD[row : row + 1], keys(torch.tensor([row])), part)
        torch.testing.assert_close(alone[0], whole[row], rtol=1e-5, atol=1e-6)
    assert not torch.allclose(whole, layer(x_BTD, keys(torch.arange(B) + 1), routed())[0])


def test_expert_dropout_differs_between_slots() -> None:
    layer = sparse_mlp(dropout=0.5, top_k=2)
    with torch.no_grad():
        # Equal experts and gates of 0.5: only the masks differ between slots.
        for weight in (layer.experts.gate, layer.experts.up, layer.experts.down):
            weight.copy_(weight[:1].expand_as(weight))
        layer.router.weight.zero_()
    x_BTD = states()
    y_BTD, _ = layer(x_BTD, keys(), routed())
    once = sparse_mlp(dropout=0.5, top_k=1, normalize=True)
    once.load_state_dict(layer.state_dict())
    assert not torch.allclose(once(x_BTD, keys(), routed())[0][IS_TOKEN_BT], y_BTD[IS_TOKEN_BT])


def test_by_group_docstring_examples_are_true() -> None:
    assert torch.equal(router.by_group(torch.tensor([1, 2, 3, 4, 5]), 2), torch.tensor([3, 7, 5]))
    assert router.by_group(torch.ones(3, 2, 4), 2).shape == (2, 2, 4)


DECODER = {"d_model": 32, "num_heads": 2, "d_ff": 48, "num_layers": 4}
T5 = {"family": "t5", "d_model": 32, "num_heads": 2, "head_dim": 16, "d_ff": 48}
T5 |= {"num_encoder_layers": 4, "num_decoder_layers": 4}
SPARSE = {"num_experts": 4, "every": 2, "shared_d_ff": 16}


def built(shape: dict[str, Any], **changes: Any) -> Decoder | EncoderDecoder:
    family = T5Config if "family" in shape else DecoderConfig
    return build_model(family.model_validate(shape | changes), vocab_size=50, seed=3)


def given(shape: dict[str, Any]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    tokens = [torch.randint(50, (B, T), generator=generator) for _ in range(2)]
    if "family" not in shape:
        return {"tokens_BT": tokens[0], "is_token_BT": IS_TOKEN_BT}
    segments = {"source_segments_BS": IS_TOKEN_BT.long(), "segments_BT": IS_TOKEN_BT.long()}
    return {"source_BS": tokens[0], "inputs_BT": tokens[1]} | segments


def trained(model: Decoder | EncoderDecoder, given: dict[str, Tensor]) -> tuple[Tensor, Routing]:
    """Logits and routing of a forward pass; the backward pass leaves gradients in the model."""
    context, routing = DropoutContext(seed=1, step=2, row_B=torch.arange(B)), Routing(TARGETS_B)
    logits_BTV = model(**given, dropout=context, routing=routing)
    loss = logits_BTV[IS_TOKEN_BT].logsumexp(-1).sum()
    (loss if routing.loss_nats is None else loss + routing.loss_nats).backward()
    return logits_BTV.detach(), routing


@pytest.mark.parametrize("shape", [DECODER, T5], ids=["decoder", "t5"])
def test_sparse_layers_are_named_in_the_order_of_the_statistics(shape: dict[str, Any]) -> None:
    model = built(shape, moe=SPARSE)
    _, routing = trained(model, given(shape))
    names = [name for name, _ in model.sparse_layers()]
    expected = ["encoder 1", "encoder 3", "decoder 1", "decoder 3"] if "family" in shape else ["1", "3"]
    assert names == expected
    assert routing.figure_LS.shape == (len(names), 4 + 4)
    assert (routing.figure_LS[:, 3] == 32).all()
    assert trained(built(shape), given(shape))[1].figure_LS is None


@pytest.mark.parametrize("sparse", [None, SPARSE], ids=["dense", "sparse"])
@pytest.mark.parametrize("stored", [1, 2])
@pytest.mark.parametrize("shape", [DECODER, T5], ids=["decoder", "t5"])
def test_shared_layers_equal_copies_of_them(
    shape: dict[str, Any], stored: int, sparse: dict[str, Any] | None
) -> None:
    if sparse and stored == 1:
        sparse = sparse | {"every": 1}
    dropout = dict.fromkeys(("attention", "residual", "mlp", "expert"), 0.1)
    names = [name for name in ("num_layers", "num_encoder_layers", "num_decoder_layers") if name in shape]
    sharing = {name.replace("num_", "num_stored_"): stored for name in names}
    shared = built(shape, moe=sparse, dropout=dropout, **sharing)
    copies = built(shape, moe=sparse, dropout=dropout)
    source = shared.state_dict()

    def stored_name(name: str) -> str:
        parts = name.split(".")
        if "blocks" in parts:
            place = parts.index("blocks") + 1
            parts[place] = str(int(parts[place]) % stored)
        return ".".join(parts)

    copies.load_state_dict({name: source[stored_name(name)] for name in copies.state_dict()})
    (actual, routing), (expected, expected_routing) = (trained(m, given(shape)) for m in (shared, copies))
    torch.testing.assert_close(actual, expected)
    if sparse:
        assert torch.equal(routing.figure_LS, expected_routing.figure_LS)
    sums: dict[str, Tensor] = {}
    for name, parameter in copies.named_parameters():
        sums[stored_name(name)] = sums.get(stored_name(name), 0) + parameter.grad
    for name, parameter in shared.named_parameters():
        torch.testing.assert_close(parameter.grad, sums[name], rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize("recompute", ["selective", "full"])
@pytest.mark.parametrize("shape", [DECODER, T5], ids=["decoder", "t5"])
def test_recomputed_sparse_layers_give_the_same_gradients(
    shape: dict[str, Any], recompute: Recompute
) -> None:
    settings = {"moe": SPARSE | {"jitter": 0.1}, "dropout": {"expert": 0.2, "mlp": 0.1}}
    plain, recomputed = built(shape, **settings), built(shape, **settings)
    recomputed.recompute = recompute
    (actual, routing), (expected, expected_routing) = (trained(m, given(shape)) for m in (recomputed, plain))
    assert torch.equal(actual, expected)
    assert torch.equal(routing.loss_nats, expected_routing.loss_nats)
    for (name, one), other in zip(plain.named_parameters(), recomputed.parameters(), strict=True):
        torch.testing.assert_close(one.grad, other.grad, msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("shape", [DECODER, T5], ids=["decoder", "t5"])
def test_compiled_sparse_model_equals_the_eager_one(shape: dict[str, Any]) -> None:
    one_layer = {name: 1 for name in shape if name.endswith("_layers")}
    model = built(shape | one_layer, moe=SPARSE | {"every": 1, "jitter": 0.1}, dropout={"expert": 0.2})
    expected, expected_routing = trained(model, given(shape))
    gradients = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    compiled, routing = trained(torch.compile(model), given(shape))
    torch.testing.assert_close(compiled, expected)
    torch.testing.assert_close(routing.loss_nats, expected_routing.loss_nats)
    for parameter, gradient in zip(model.parameters(), gradients, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-5)


class Products(TorchDispatchMode):
    """Counts matrix products and other operations."""

    def __init__(self) -> None:
        super().__init__()
        self.products = self.others = 0

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), named: Any = None) -> Any:
        if operation.name() in ("aten::mm", "reptrain::grouped_mm"):
            self.products += 1
        else:
            self.others += 1
        return operation(*args, **(named or {}))


@pytest.mark.parametrize("shape", [DECODER, T5], ids=["decoder", "t5"])
def test_selective_recomputation_repeats_no_matrix_product(shape: dict[str, Any]) -> None:
    counts = {}
    for recompute in ("none", "selective", "full"):
        model, routing = built(shape, moe=SPARSE), Routing(TARGETS_B)
        model.recompute = recompute
        loss = model(**given(shape), routing=routing).logsumexp(-1).sum()
        with Products() as counted:
            loss.backward()
        counts[recompute] = counted
    assert counts["selective"].products == counts["none"].products < counts["full"].products
    assert counts["none"].others < counts["selective"].others


@pytest.mark.slow
def test_blocks_compile_once_for_all_layers_of_a_kind() -> None:
    model, plain = (built(DECODER, moe=SPARSE, dropout={"mlp": 0.1}) for _ in range(2))
    counter = CompileCounterWithBackend("aot_eager")
    for block in model.blocks:
        block.compile(backend=counter)
    (actual, _), (expected, _) = (trained(each, given(DECODER)) for each in (model, plain))
    torch.testing.assert_close(actual, expected)
    # Four layers, two of them sparse.
    assert counter.frame_count == 2


def test_router_of_bf16_computes_in_fp32() -> None:
    plain, half = sparse_mlp(), sparse_mlp()
    rounded_BTD = states().bfloat16()
    for parameter in plain.parameters():
        parameter.data = parameter.bfloat16().float()
    half.bfloat16()
    _, expected = plain(rounded_BTD.float(), None, routed())
    y_BTD, actual = half(rounded_BTD, None, routed())
    assert y_BTD.dtype == torch.bfloat16
    assert torch.equal(actual.figure_S, expected.figure_S)
    assert half.router.votes_E.dtype == torch.int64
