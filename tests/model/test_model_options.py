"""Options of both families: head width, biases, scaled RoPE, sliding window, relative bias per layer."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from reptrain.config import RunConfig
from reptrain.config.continuation import model_settings
from reptrain.config.load import validate
from reptrain.config.model import DecoderConfig, ModelConfig, T5Config
from reptrain.config.rope import LinearRope, Llama3Rope
from reptrain.errors import ConfigError
from reptrain.model import Decoder, DropoutContext, Routing, build_model
from reptrain.model.attention_mask import attention_implementation, decoder_mask
from reptrain.model.init import parameter_groups
from reptrain.model.rope import rotation
from reptrain.sizes import count_parameters
from reptrain.training.optimizers import is_for_muon
from reptrain.training.recorder import stated_attention
from reptrain_kernels.implementation import assume

VOCAB, CPU = 61, torch.device("cpu")
SMALL: dict[str, Any] = {
    "d_model": 32, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2, "d_ff": 48, "init_std": 0.2,
}  # fmt: skip
T5: dict[str, Any] = {
    "family": "t5", "d_model": 32, "num_heads": 2, "head_dim": 16, "d_ff": 48, "num_encoder_layers": 2,
    "num_decoder_layers": 3,
}  # fmt: skip
MOE = {"num_experts": 4}
LLAMA3 = {"name": "llama3", "factor": 8.0, "original_max_positions": 64}


def decoder(**changes: Any) -> DecoderConfig:
    return DecoderConfig.model_validate(SMALL | changes)


def t5(**changes: Any) -> T5Config:
    return T5Config.model_validate(T5 | changes)


def tokens(num_rows: int = 3, num_positions: int = 14) -> Tensor:
    return torch.randint(VOCAB, (num_rows, num_positions), generator=torch.Generator().manual_seed(0))


COUNTED: dict[str, ModelConfig] = {
    "head width": decoder(head_dim=12),
    "biases of queries, keys and values": decoder(attention_bias="qkv"),
    "biases of the output too": decoder(attention_bias="all"),
    "biases of the MLP": decoder(mlp_bias=True),
    "biases but in the MLP": decoder(bias=True, mlp_bias=False),
    "biases but in attention": decoder(bias=True, attention_bias="none", norm="layernorm", head_dim=6),
    "biases in attention, sparse": decoder(attention_bias="all", moe=MOE),
    "biases by layer": t5(relative_bias_per_layer=True),
    "biases by layer, shared": t5(relative_bias_per_layer=True, num_stored_decoder_layers=1),
    "biases by layer, sparse": t5(relative_bias_per_layer=True, moe=MOE, mlp="swiglu"),
}


@pytest.mark.parametrize("name", COUNTED)
def test_model_parameters_match_the_count(name: str) -> None:
    config = COUNTED[name]
    model = build_model(config, vocab_size=VOCAB, seed=0)
    assert sum(p.numel() for p in model.parameters()) == count_parameters(config, VOCAB).total


def plain_attention(config: DecoderConfig, visible_TT: Tensor) -> Tensor:
    """Reference: attention of the first layer for `tokens(1)`, one head at a time."""
    model = build_model(config, vocab_size=VOCAB, seed=3)
    block, x_TD = model.blocks[0], model.embedding(tokens(1))[0]
    x_TD = block.attention_norm(x_TD)
    q_THN, k_TKN, v_TKN = (
        part(x_TD).unflatten(-1, (-1, config.head_width))
        for part in (block.attention.query, block.attention.key, block.attention.value)
    )
    cos_TM, sin_TM = rotation(len(x_TD), config.head_width, config.rope_theta, CPU, config.rope_scaling)

    def turned(x_TN: Tensor) -> Tensor:
        a, b = x_TN.chunk(2, -1)
        return torch.cat((a * cos_TM - b * sin_TM, b * cos_TM + a * sin_TM), -1)

    heads = []
    for head in range(config.num_heads):
        group = head // (config.num_heads // config.kv_heads)
        score_TT = turned(q_THN[:, head]) @ turned(k_TKN[:, group]).T / math.sqrt(config.head_width)
        heads.append(score_TT.masked_fill(~visible_TT, -torch.inf).softmax(-1) @ v_TKN[:, group])
    return block.attention.output(torch.cat(heads, -1))


def model_attention(config: DecoderConfig, **inputs: Tensor) -> Tensor:
    """The same attention, computed by the model."""
    model, actual = build_model(config, vocab_size=VOCAB, seed=3), []
    model.blocks[0].attention.register_forward_hook(lambda module, given, result: actual.append(result))
    model(tokens(1), **inputs)
    return actual[0][0]


@pytest.mark.parametrize("dropout", [{}, {"attention": 1e-9}], ids=["fused", "spelled out"])
@pytest.mark.parametrize("case", ["causal", "documents", "prefix"])
def test_sliding_window_masks_distant_positions(case: str, dropout: dict[str, float]) -> None:
    config = decoder(sliding_window=4, head_dim=12, attention_bias="qkv", dropout=dropout)
    row_T = torch.arange(14)
    apart_TT = row_T[:, None] - row_T
    segment_T = (row_T > 5).long() + 1
    seen_TT, inputs = (apart_TT >= 0) & (apart_TT < 4), {}
    if case == "documents":
        seen_TT, inputs = seen_TT & (segment_T[:, None] == segment_T), {"segments_BT": segment_T[None]}
    if case == "prefix":
        seen_TT = ((apart_TT >= 0) | (row_T < 6)) & (apart_TT.abs() < 4)
        inputs = {"prefix_B": torch.tensor([6])}
    if dropout:
        inputs["dropout"] = DropoutContext(seed=0, step=0, row_B=torch.arange(1))
    torch.testing.assert_close(model_attention(config, **inputs), plain_attention(config, seen_TT))


def test_sliding_window_runs_on_other_devices() -> None:
    with torch.device("meta"):
        model = Decoder(decoder(sliding_window=4), vocab_size=VOCAB)
    assert model(tokens().to("meta")).shape == (3, 14, VOCAB)


def test_sliding_window_as_long_as_the_row_changes_nothing() -> None:
    logits = [
        build_model(decoder(sliding_window=window), vocab_size=VOCAB, seed=3)(tokens())
        for window in (None, 14, 2**20)
    ]
    assert torch.equal(logits[0], logits[1]) and torch.equal(logits[0], logits[2])
    assert decoder_mask(tokens(), sliding_window=14).is_plain()


def test_scaled_rope_follows_its_formula() -> None:
    theta, width = 500.0, 16
    frequency = [theta ** (-i / width) for i in range(0, width, 2)]
    linear = rotation(5, width, theta, CPU, LinearRope(name="linear", factor=2.5))
    expected = torch.tensor([[math.cos(p * f / 2.5) for f in frequency] for p in range(5)])
    torch.testing.assert_close(linear.cos_TM, expected)

    scaling = Llama3Rope.model_validate(LLAMA3)
    scaled, regimes = [], set()
    for f in frequency:
        wavelength = 2 * math.pi / f
        if wavelength < 64 / 4:
            regimes.add("kept")
            scaled.append(f)
        elif wavelength > 64 / 1:
            regimes.add("divided")
            scaled.append(f / 8)
        else:
            regimes.add("between")
            share = (64 / wavelength - 1) / (4 - 1)
            scaled.append((1 - share) * f / 8 + share * f)
    assert regimes == {"kept", "divided", "between"}
    actual = rotation(5, width, theta, CPU, scaling)
    expected = torch.tensor([[math.sin(p * f) for f in scaled] for p in range(5)])
    torch.testing.assert_close(actual.sin_TM, expected)


BOTH: dict[str, tuple[ModelConfig, dict[str, Tensor]]] = {
    "decoder": (
        decoder(
            sliding_window=5, head_dim=12, attention_bias="qkv", mlp_bias=True, rope_scaling=LLAMA3,
            dropout={"attention": 0.1, "residual": 0.1},
        ),
        {"tokens_BT": tokens(), "segments_BT": torch.tensor([[1] * 6 + [2] * 6 + [0] * 2] * 3)},
    ),
    "t5": (
        t5(relative_bias_per_layer=True, mlp="swiglu", dropout={"attention": 0.1}),
        {
            "source_BS": tokens(3, 11), "inputs_BT": tokens(),
            "source_segments_BS": torch.tensor([[1] * 6 + [2] * 5] * 3),
            "segments_BT": torch.tensor([[1] * 6 + [2] * 6 + [0] * 2] * 3),
        },
    ),
}  # fmt: skip


def gradients(family: str, *, recompute: str = "none", compiled: bool = False) -> list[Tensor]:
    config, inputs = BOTH[family]
    model = build_model(config, vocab_size=VOCAB, seed=3)
    model.recompute = recompute
    context = DropoutContext(seed=1, step=2, row_B=torch.arange(3))
    call = torch.compile(model, backend="eager", fullgraph=True) if compiled else model
    call(**inputs, dropout=context, routing=Routing(torch.tensor([12] * 3))).square().mean().backward()
    actual = [parameter.grad for parameter in model.parameters()]
    assert all(grad is not None and grad.isfinite().all() for grad in actual)
    return actual


@pytest.mark.parametrize("family", BOTH)
@pytest.mark.parametrize("way", ["full", "selective", "compiled"])
def test_recomputed_and_compiled_models_have_the_same_gradients(family: str, way: str) -> None:
    compiled = way == "compiled"
    again = gradients(family, recompute="none" if compiled else way, compiled=compiled)
    for one, other in zip(gradients(family), again, strict=True):
        torch.testing.assert_close(one, other)


def test_relative_bias_per_layer_differs_between_layers() -> None:
    config, inputs = BOTH["t5"]
    model = build_model(config, vocab_size=VOCAB, seed=3).eval()
    assert model.encoder.relative_bias is None
    tables = [block.relative_bias.table for stack in (model.encoder, model.decoder) for block in stack.blocks]
    assert len({table.weight.data_ptr() for table in tables}) == 5
    before = model(**inputs)
    for table in tables:
        with torch.no_grad():
            kept = table.weight.clone()
            table.weight.add_(torch.randn(table.weight.shape))
        assert not torch.allclose(model(**inputs), before)
        with torch.no_grad():
            table.weight.copy_(kept)


def test_relative_bias_per_layer_is_optimized_as_that_of_a_stack() -> None:
    """No weight decay, no Muon, and the same initial standard deviation."""
    model = build_model(t5(relative_bias_per_layer=True, d_model=256), vocab_size=VOCAB, seed=3)
    tables = {name: p for name, p in model.named_parameters() if "relative_bias" in name}
    decayed = {id(p) for group in parameter_groups(model) if group["decays"] for p in group["params"]}
    assert len(tables) == 5
    for name, table in tables.items():
        assert id(table) not in decayed and not is_for_muon(name, table)
        assert table.std().item() == pytest.approx(256**-0.5, rel=0.4)


def test_equal_tables_in_all_layers_match_one_table_for_the_stack() -> None:
    _, inputs = BOTH["t5"]
    shared, own = (
        build_model(t5(relative_bias_per_layer=per_layer), vocab_size=VOCAB, seed=3).eval()
        for per_layer in (False, True)
    )
    with torch.no_grad():
        for stack, other in ((shared.encoder, own.encoder), (shared.decoder, own.decoder)):
            for block in other.blocks:
                block.relative_bias.table.weight.copy_(stack.relative_bias.table.weight)
    torch.testing.assert_close(own(**inputs), shared(**inputs))


def test_torch_attention_under_a_sliding_window_is_reported(capsys: pytest.CaptureFixture[str]) -> None:
    windowed = decoder(sliding_window=8)
    assert stated_attention(windowed, CPU, 64) == "torch"
    with assume(impl="triton"):
        for config, positions in ((decoder(), 64), (windowed, 8), (t5(), 64)):
            assert attention_implementation(config, CPU, positions) == "triton"
            assert stated_attention(config, CPU, positions) == "triton"
        assert capsys.readouterr().err == ""
        assert stated_attention(windowed, CPU, 64) == "torch"
    assert "WARNING: model.sliding_window 8 is shorter than the window's 64" in capsys.readouterr().err


def test_init_from_accepts_explicit_defaults() -> None:
    spelled = decoder(head_dim=8, attention_bias="none", mlp_bias=False, num_stored_layers=2)
    assert model_settings(spelled) == model_settings(decoder())
    sparse = {"num_experts": 4, "capacity_factor": 1.5}
    spelled = decoder(moe=sparse | {"eval_capacity_factor": 1.5})
    assert model_settings(spelled) == model_settings(decoder(moe=sparse))


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"head_dim": 7}, "head_dim must be even; 7 is not"),
        ({"d_model": 30, "num_heads": 4}, "d_model must be num_heads times an even head width"),
        ({"mlp_bias": True, "moe": MOE}, "mlp_bias must be false with moe"),
        ({"sliding_window": 0}, "greater than 0"),
        ({"attention_bias": "kv"}, "none|qkv|all"),
        (
            {"rope_scaling": {"name": "yarn", "factor": 2}},
            r"^model\.rope_scaling\.name: .*'linear', 'llama3'",
        ),
        ({"rope_scaling": {"factor": 2}}, r"^model\.rope_scaling\.name: must be set"),
        ({"rope_scaling": {"name": "linear"}}, r"^model\.rope_scaling\.factor: must be set"),
        ({"rope_scaling": {"name": "linear", "factr": 2.0}}, "Did you mean model.rope_scaling.factor"),
        ({"rope_scaling": LLAMA3 | {"high_freq_factor": 1}}, "high_freq_factor must be above"),
        (
            {"positions": "learned", "max_positions": 64, "rope_scaling": LLAMA3},
            "rope_scaling must be null where positions is learned",
        ),
    ],
)
def test_conflicting_options_are_refused(model: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        validate(RunConfig, {"data": {"store": "a", "window_tokens": 32}, "model": model})
