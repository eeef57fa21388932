"""Scheduled dropout rates: compiled models follow them without recompilation."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend

from reptrain.config.model import DecoderConfig, T5Config
from reptrain.config.scheduled import RunPosition
from reptrain.model import Decoder, DropoutContext, EncoderDecoder, Routing, build_model
from reptrain.model.dropout import Dropout, set_rates
from reptrain_kernels import rates

B, T, STEPS = 2, 5, 5
SITES = ("embedding", "attention", "residual", "mlp", "path")
LINEAR = {"before": 0.05, "value": 0.4, "over": f"{STEPS - 1}steps"}
FROM_ZERO = {"before": 0.0, "value": 0.4, "start": "1steps", "over": "4steps"}
DECODER = {"d_model": 16, "num_heads": 2, "d_ff": 24, "num_layers": 2}
T5 = {"family": "t5", "d_model": 16, "num_heads": 2, "head_dim": 8, "d_ff": 24}
T5 |= {"num_encoder_layers": 2, "num_decoder_layers": 2}
SPARSE = {"num_experts": 3, "every": 2, "shared_d_ff": 16, "jitter": 0.1}
FAMILIES = {"decoder": DECODER, "t5": T5, "sparse": DECODER | {"moe": SPARSE}}
# Kinds of layers; each is compiled once.
KINDS = {"decoder": 1, "t5": 2, "sparse": 2}
# Number of compilations of each kind: the first, and one when the rates leave 0.
SCHEDULES = pytest.mark.parametrize(
    ("schedule", "times"),
    [
        pytest.param(LINEAR, 1, id="linear"),
        pytest.param(FROM_ZERO, 2, id="from_zero", marks=pytest.mark.slow),
    ],
)


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    """Reset dynamo: compilations of other tests count toward its limit."""
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def built(family: str, schedule: dict[str, Any], **changes: Any) -> Decoder | EncoderDecoder:
    shape = FAMILIES[family] | changes
    rates = dict.fromkeys(SITES, schedule) | ({"expert": schedule} if "moe" in shape else {})
    config = (T5Config if family == "t5" else DecoderConfig).model_validate(shape | {"dropout": rates})
    return build_model(config, vocab_size=50, seed=3)


def given(family: str) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    first, second = torch.randint(50, (2, B, T), generator=generator)
    if family != "t5":
        return {"tokens_BT": first}
    ones = torch.ones_like(first)
    return {"source_BS": first, "inputs_BT": second, "source_segments_BS": ones, "segments_BT": ones}


def progress(step: int) -> RunPosition:
    return RunPosition(step=step, tokens=step, total_tokens=100, epochs=Fraction(0))


def results_of_steps(model: Any, plain: nn.Module, family: str) -> list[list[Tensor]]:
    """Logits and gradients of each step; ``plain`` holds the weights of ``model``, which may be compiled."""
    results = []
    for step in range(STEPS):
        set_rates(plain, progress(step))
        context = DropoutContext(seed=7, step=step, row_B=torch.arange(B))
        extra = {"routing": Routing(torch.full((B,), T))} if family == "sparse" else {}
        logits_BTV = model(**given(family), dropout=context, **extra)
        results.append([logits_BTV, *torch.autograd.grad(logits_BTV.square().mean(), plain.parameters())])
    return results


def check_same(actual: list[list[Tensor]], expected: list[list[Tensor]]) -> None:
    for step, expected_step in zip(actual, expected, strict=True):
        for one, other in zip(step, expected_step, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


@SCHEDULES
@pytest.mark.parametrize("family", ["decoder", pytest.param("t5", marks=pytest.mark.slow)])
def test_rate_schedule_does_not_recompile_a_model(family: str, schedule: dict[str, Any], times: int) -> None:
    one_layer = {name: 1 for name in FAMILIES[family] if name.endswith("_layers")}
    model = built(family, schedule, **one_layer)
    expected = results_of_steps(model, model, family)
    compilations = CompileCounterWithBackend("aot_eager")
    actual = results_of_steps(torch.compile(model, fullgraph=True, backend=compilations), model, family)
    assert compilations.frame_count == times
    check_same(actual, expected)


@SCHEDULES
@pytest.mark.parametrize("family", [pytest.param("decoder", marks=pytest.mark.slow), "t5", "sparse"])
def test_rate_schedule_does_not_recompile_layers(family: str, schedule: dict[str, Any], times: int) -> None:
    model = built(family, schedule)
    expected = results_of_steps(model, model, family)
    compilations = CompileCounterWithBackend("eager")
    for module in model.modules():
        if isinstance(module, nn.ModuleList):
            for block in module:
                block.compile(backend=compilations)
    actual = results_of_steps(model, model, family)
    assert compilations.frame_count == times * KINDS[family]
    check_same(actual, expected)


def test_rates_survive_casts_and_are_in_no_checkpoint() -> None:
    model = built("sparse", LINEAR)
    names = set(model.state_dict())
    set_rates(model, progress(1))
    moved = copy.deepcopy(model).bfloat16()
    set_rates(model, progress(2))
    dropouts = (module for module in moved.modules() if isinstance(module, Dropout))
    sites = [dropout for dropout in dropouts if not dropout.schedule.is_constant]
    expected = rates.packed(0.05 + 0.35 / 4)
    assert sites
    assert all(torch.equal(site.rate_2, expected) for site in sites)
    assert (
        set(moved.state_dict())
        == names
        == {name for name, _ in moved.named_parameters()} | {name for name, _ in moved.named_buffers()}
    )
