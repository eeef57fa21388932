"""The GPT family: the logits of transformers from the same weights, and its parts."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from reptrain.config import RunConfig
from reptrain.config.load import validate
from reptrain.config.model import DecoderConfig
from reptrain.errors import ConfigError
from reptrain.model import Decoder, build_model
from reptrain.model.norm import LayerNorm
from reptrain_kernels.implementation import assume

VOCAB, WINDOW = 61, 20
GPT: dict[str, Any] = {
    "d_model": 32,
    "num_layers": 3,
    "num_heads": 4,
    "d_ff": 80,
    "mlp": "gelu",
    "norm": "layernorm",
    "norm_eps": 1e-5,
    "positions": "learned",
    "max_positions": 24,
    "bias": True,
    "tie_embeddings": True,
    "init_std": 0.1,
}


def gpt(**changes: Any) -> Decoder:
    return build_model(DecoderConfig.model_validate(GPT | changes), vocab_size=VOCAB, seed=2)


def tokens() -> torch.Tensor:
    return torch.randint(VOCAB, (3, WINDOW), generator=torch.Generator().manual_seed(0))


def test_gpt_logits_match_gpt2_of_transformers() -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed: no parity")
    ours = gpt()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in ours.parameters():
            if parameter.ndim == 1:  # Gains of 1 and biases of 0 would hide swapped parameters.
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    theirs = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=VOCAB, n_positions=24, n_embd=32, n_layer=3, n_head=4, n_inner=80, resid_pdrop=0.0
        )
    ).eval()
    names = {"attention_norm": "ln_1", "mlp_norm": "ln_2", "attention.output": "attn.c_proj"}
    names |= {"mlp.up": "mlp.c_fc", "mlp.down": "mlp.c_proj"}
    weights = ours.state_dict()
    with torch.no_grad():
        theirs.transformer.wte.weight.copy_(weights["embedding.weight"])
        theirs.transformer.wpe.weight.copy_(weights["position_embedding.weight"])
        for layer, block in enumerate(theirs.transformer.h):
            for kind in ("weight", "bias"):
                attention = [
                    weights[f"blocks.{layer}.attention.{part}.{kind}"] for part in ("query", "key", "value")
                ]
                joined = torch.cat(attention)
                block.attn.c_attn.get_parameter(kind).copy_(joined.T if joined.ndim == 2 else joined)
                for mine, its in names.items():
                    weight = weights[f"blocks.{layer}.{mine}.{kind}"]
                    block.get_parameter(f"{its}.{kind}").copy_(weight.T if weight.ndim == 2 else weight)
        for kind in ("weight", "bias"):
            theirs.transformer.ln_f.get_parameter(kind).copy_(weights[f"norm.{kind}"])
    torch.testing.assert_close(ours(tokens()), theirs(tokens()).logits, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("positions", ["learned", "rope"])
@pytest.mark.parametrize(
    "segments_T",
    [[1] * 5 + [2] * 9 + [3] * 6 + [0] * 4, [1] * 4 + [2] * 6 + [1] * 8 + [2] * 6],
    ids=["packed", "inputs_then_targets"],
)
def test_document_does_not_depend_on_its_place_in_the_window(positions: str, segments_T: list[int]) -> None:
    """With a document mask, logits of a document equal those of the document alone."""
    changes = {} if positions == "learned" else {"positions": "rope", "max_positions": None}
    model = gpt(**changes)
    tokens_BT = torch.randint(VOCAB, (3, 24), generator=torch.Generator().manual_seed(5))
    segments_BT = torch.tensor(segments_T).expand(3, -1)
    packed_BTV = model(tokens_BT, segments_BT=segments_BT)
    for document in set(segments_T) - {0}:
        within = segments_BT[0] == document
        alone_BTV = model(tokens_BT[:, within])
        torch.testing.assert_close(packed_BTV[:, within], alone_BTV, rtol=1e-5, atol=1e-5)
    # Positions that count from the window's start give other logits.
    assert (packed_BTV[:, -8:-4] - model(tokens_BT)[:, -8:-4]).abs().max() > 0.01


def test_gpt_is_initialized_as_gpt2() -> None:
    model = gpt(d_model=128, d_ff=512, max_positions=64)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            assert (parameter == 0).all(), name
        elif parameter.ndim == 1:
            assert (parameter == 1).all(), name
        else:
            into_residual = name.endswith(("attention.output.weight", "mlp.down.weight"))
            expected = 0.1 / 6**0.5 if into_residual else 0.1
            assert parameter.std().item() == pytest.approx(expected, rel=0.04), name


def test_gpt_with_bias_false_has_no_biases() -> None:
    assert not [name for name, _ in gpt(bias=False).named_parameters() if name.endswith("bias")]


def test_layer_norm_follows_its_formula_in_fp32() -> None:
    norm = LayerNorm(8, eps=0.5, bias=True)
    torch.nn.init.uniform_(norm.weight)
    assert norm.bias is not None
    torch.nn.init.uniform_(norm.bias)
    x = torch.randn(2, 3, 8)
    centred = x - x.mean(-1, keepdim=True)
    expected = centred / (centred.square().mean(-1, keepdim=True) + 0.5).sqrt() * norm.weight + norm.bias
    torch.testing.assert_close(norm(x), expected)
    assert norm.bfloat16()(x.bfloat16()).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"positions": "learned"}, "max_positions must be set where positions is learned"),
        ({"max_positions": 9}, "and nowhere else; 9 was given with rope"),
        ({"bias": True, "moe": {"num_experts": 4}}, "bias must be false with moe"),
        (GPT | {"max_positions": 31}, r"data\.window_tokens .* at most model\.max_positions 31"),
    ],
)
def test_conflicting_options_are_refused(model: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        validate(RunConfig, {"data": {"store": "a", "window_tokens": 32}, "model": model})


class Kernels(TorchDispatchMode):
    """Counts the operations that compute, views left out."""

    count = 0

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), named: Any = None) -> Any:
        self.count += not operation.is_view and "detach" not in operation.name()
        return operation(*args, **(named or {}))


@pytest.mark.parametrize("bias", [True, False])
def test_layernorm_on_a_gpu_is_one_kernel_and_one_for_its_gradient(bias: bool) -> None:
    torch.manual_seed(0)
    norm, x = LayerNorm(64, eps=1e-5, bias=bias), torch.randn(2, 5, 64, requires_grad=True)
    torch.nn.init.normal_(norm.weight)
    if norm.bias is not None:
        torch.nn.init.normal_(norm.bias)
    leaves, grad = [x, *norm.parameters()], torch.randn(2, 5, 64)
    expected = norm(x)
    expected_grads = torch.autograd.grad(expected, leaves, grad)
    with assume(impl="triton"), Kernels() as kernels:
        y = norm(x)
        grads = torch.autograd.grad(y, leaves, grad)
    assert kernels.count == 2
    torch.testing.assert_close([y, *grads], [expected, *expected_grads])
    rounded = norm.bfloat16()(x.bfloat16())
    with assume(impl="triton"):
        # One rounding to bf16 of 8 bits, instead of three.
        torch.testing.assert_close(norm(x.bfloat16()), rounded, rtol=3 * 2**-8, atol=3 * 2**-8)


@pytest.mark.gpu
def test_layernorm_on_a_gpu_equals_the_cpu() -> None:
    torch.manual_seed(0)
    norm, x = LayerNorm(768, eps=1e-5, bias=True), torch.randn(4, 33, 768)
    torch.nn.init.normal_(norm.weight)
    expected = norm(x)
    torch.testing.assert_close(norm.cuda()(x.cuda()).cpu(), expected, rtol=1e-5, atol=1e-5)
    rounded = norm.bfloat16()(x.bfloat16().cuda()).float().cpu()
    torch.testing.assert_close(rounded, expected, rtol=2**-6, atol=2**-6)
