"""Properties of every objective: examples, reconstruction, noise that depends on the window, no leaks."""

from __future__ import annotations

import doctest
import importlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from made_batches import places, windows
from pydantic import TypeAdapter
from torch.overrides import TorchFunctionMode

from reptrain.batch.objectives import (
    IGNORE,
    UL2,
    AugmentedCausal,
    Causal,
    Denoising,
    Example,
    FillInTheMiddle,
    MaskedDiffusion,
    MiddleIds,
    NoisePlaces,
    PrefixLM,
    SpanCorruption,
    spans_native,
)
from reptrain.config.model import DecoderConfig, T5Config
from reptrain.config.objectives import (
    AugmentedCausalConfig,
    FillInTheMiddleConfig,
    ObjectiveConfig,
    PrefixLMConfig,
    UL2Config,
)
from reptrain.model import build_model

EOS, START, FIRST_RAW, VOCABULARY = 1, 0, 2, 1000
MODES, MASK = (997, 998, 999), 999
SENTINELS = tuple(range(996, 696, -1))
MODULES = [
    "augmented_causal",
    "causal",
    "example",
    "rows",
    "prefix_lm",
    "span_corruption",
    "denoising",
    "ul2",
    "masked_diffusion",
    "fill_in_the_middle",
]
Make = Callable[..., Any]


def augmented(window: int, **noise: Any) -> AugmentedCausal:
    config = AugmentedCausalConfig(name="augmented_causal", max_offset=3, right_to_left=0.5)
    return AugmentedCausal(config, (START, *range(900, 905)), **noise)


def prefix_lm(window: int, *, in_one_row: bool, fraction: float | None = None, **noise: Any) -> PrefixLM:
    config = PrefixLMConfig(name="prefix_lm", prefix_fraction=fraction)
    return PrefixLM(config, START, window, in_one_row=in_one_row, **noise)


def span_corruption(window: int, *, in_one_row: bool, **noise: Any) -> SpanCorruption:
    return SpanCorruption(
        *(0.3, 2.0, SENTINELS, EOS, START),
        window_tokens=window,
        in_one_row=in_one_row,
        **noise,
    )


def denoising(window: int, *, in_one_row: bool, **noise: Any) -> Denoising:
    return Denoising(*(0.3, 2.0, MASK, EOS, START, window), in_one_row=in_one_row, **noise)


def ul2(window: int, *, in_one_row: bool, **noise: Any) -> UL2:
    return UL2(*(UL2Config(name="ul2"), SENTINELS, MODES, EOS, START, window), in_one_row=in_one_row, **noise)


def diffusion(window: int, *, exact: bool = True, **noise: Any) -> MaskedDiffusion:
    return MaskedDiffusion(MASK, exact=exact, **noise)


def middle(window: int, *, rate: float = 0.7, **noise: Any) -> FillInTheMiddle:
    config = FillInTheMiddleConfig(name="fill_in_the_middle", rate=rate)
    return FillInTheMiddle(config, MiddleIds(*MODES), EOS, START, window, **noise)


IN_T5: dict[str, Make] = {
    "prefix_lm": lambda window, **noise: prefix_lm(window, in_one_row=False, **noise),
    "prefix_lm fixed": lambda window, **noise: prefix_lm(window, in_one_row=False, fraction=0.4, **noise),
    "span_corruption": lambda window, **noise: span_corruption(window, in_one_row=False, **noise),
    "denoising": lambda window, **noise: denoising(window, in_one_row=False, **noise),
    "ul2": lambda window, **noise: ul2(window, in_one_row=False, **noise),
}
IN_DECODER: dict[str, Make] = {
    "prefix_lm": lambda window, **noise: prefix_lm(window, in_one_row=True, **noise),
    "span_corruption": lambda window, **noise: span_corruption(window, in_one_row=True, **noise),
    "denoising": lambda window, **noise: denoising(window, in_one_row=True, **noise),
    "ul2": lambda window, **noise: ul2(window, in_one_row=True, **noise),
    "masked_diffusion": diffusion,
    "masked_diffusion independent": lambda window, **noise: diffusion(window, exact=False, **noise),
    "fill_in_the_middle": middle,
    "augmented_causal": augmented,
}
ALL = {f"t5 {name}": make for name, make in IN_T5.items()} | {
    f"decoder {name}": make for name, make in IN_DECODER.items()
}


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples_are_true(name: str) -> None:
    module = importlib.import_module(f"reptrain.batch.objectives.{name}")
    result = doctest.testmod(module, extraglobs={"torch": torch})
    assert result.attempted >= 3 and result.failed == 0


def example_of(objective: Any, tokens: np.ndarray, lengths: list[int], *, epoch: int = 0) -> Example:
    width = tokens.shape[1]
    noise = objective.noise(places(lengths, epoch=epoch, width=width), width=width)
    return objective.example(windows(torch.from_numpy(tokens), lengths, noise))


class FromHost(TorchFunctionMode):
    """Counts the tensors that are made from Python values."""

    count = 0

    def __torch_function__(self, function: Any, types: Any, args: Any = (), named: Any = None) -> Any:
        self.count += function in (torch.tensor, torch.as_tensor)
        return function(*args, **(named or {}))


@pytest.mark.parametrize("name", ALL)
def test_later_examples_copy_nothing_from_the_host(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # As on a GPU, where such a copy waits for the device.
    monkeypatch.setattr(spans_native, "hide_spans", lambda *_, **__: None)
    objective, tokens = ALL[name](40), np.arange(FIRST_RAW, FIRST_RAW + 80).reshape(2, 40)
    example_of(objective, tokens, [40, 30])
    noise = objective.noise(places([40, 30], width=40), width=40)
    batch = windows(torch.from_numpy(tokens), [40, 30], noise)
    with FromHost() as counted:
        objective.example(batch)
    assert counted.count == 0


def read(example: Example, row: int) -> tuple[list[int], list[int]]:
    """Input tokens of a row that are not predicted, and its targets."""
    targets = example.targets_BT[row]
    inputs = example.inputs
    if "source_BS" in inputs:
        source = inputs["source_BS"][row][inputs["source_segments_BS"][row] > 0]
    else:
        source = inputs["tokens_BT"][row][: int(inputs["prefix_B"][row])]
    return source.tolist(), targets[targets != IGNORE].tolist()


def unhidden(source: list[int], targets: list[int]) -> list[int]:
    """Reconstruct the window from the inputs and targets of hidden spans."""
    assert source[-1] == targets[-1] == EOS
    spans: dict[int, list[int]] = {}
    for token in targets[:-1]:
        if token in SENTINELS:
            spans[token] = []
        else:
            spans[next(reversed(spans))].append(token)
    assert list(spans) == [token for token in source if token in SENTINELS]
    return [raw for token in source[:-1] for raw in spans.get(token, [token])]


def in_order(targets: list[int]) -> list[int]:
    """Reconstruct the window from the reordered parts of fill-in-the-middle."""
    if not targets or targets[0] != MODES[0]:
        return targets
    assert targets[-1] == EOS
    suffix, mid = targets.index(MODES[1]), targets.index(MODES[2])
    prefix, rest = targets[1:suffix], targets[mid + 1 : -1]
    return prefix + rest + targets[suffix + 1 : mid]


def as_read(example: Example, row: int) -> list[int]:
    """Reconstruct the window from inputs, targets and the start token, which identifies the view."""
    length = int(example.inputs["is_token_BT"][row].sum())
    if not length:
        return []
    (start, *before), targets = (
        x[row, :length].tolist() for x in (example.inputs["tokens_BT"], example.targets_BT)
    )
    is_reversed, skipped = divmod([START, *range(900, 905)].index(start), 3)
    tokens = [*before, targets[length - 1 - skipped]]
    assert targets == tokens[skipped:] + [IGNORE] * skipped
    return tokens[::-1] if is_reversed else tokens


def rebuilt(name: str, example: Example, row: int) -> list[int]:
    if "augmented" in name:
        return as_read(example, row)
    if "diffusion" in name:
        seen, targets = example.inputs["tokens_BT"][row], example.targets_BT[row]
        assert ((targets != IGNORE) == (seen == MASK)).all()
        return torch.where(targets == IGNORE, seen, targets).tolist()[: int(example.inputs["prefix_B"][row])]
    if "middle" in name:
        targets = example.targets_BT[row]
        return in_order(targets[targets != IGNORE].tolist())
    source, targets = read(example, row)
    if "prefix" in name:
        # In a decoder-only model the start token comes before them.
        return (source[1:] if "decoder" in name else source) + targets
    if not source:
        return targets
    if "denoising" in name:
        assert source[-1] == targets[-1] == EOS and len(source) == len(targets)
        assert all(read in (MASK, written) for read, written in zip(source, targets, strict=True))
        return targets[:-1]
    if "ul2" in name:
        assert source[0] in MODES
        source = source[1:]
    return unhidden(source, targets)


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=40)
@given(window=st.integers(1, 120), seed=st.integers(0, 2**40), data=st.data())
def test_inputs_and_targets_reconstruct_the_window(name: str, window: int, seed: int, data: Any) -> None:
    lengths = [*data.draw(st.lists(st.integers(0, window), min_size=1, max_size=4)), window]
    tokens = np.random.default_rng(seed).integers(FIRST_RAW, 600, (len(lengths), window))
    objective = ALL[name](window, noise_seed=seed)
    example = example_of(objective, tokens, lengths)
    for row, length in enumerate(lengths):
        assert rebuilt(name, example, row) == tokens[row, :length].tolist()
    assert int(example.loss_tokens_B.sum()) == objective.loss_tokens(places(lengths, width=window))
    if "source_BS" not in example.inputs:
        assert example.targets_BT.shape == example.inputs["tokens_BT"].shape
        is_token = example.inputs["is_token_BT"]
        assert not (example.is_scored_BT & ~is_token).any()
        assert not is_token[torch.tensor(lengths) == 0].any()
    assert not (example.is_raw_BT & ~example.is_scored_BT).any()


@pytest.mark.parametrize("name", ALL)
def test_example_shape_matches_the_configuration(name: str) -> None:
    family, kind = name.split()[:2]
    given = {"name": kind} | ({"prefix_fraction": 0.4} if "fixed" in name else {})
    given |= {"rate": 0.7} if kind == "fill_in_the_middle" else {}
    given |= (
        {"noise_density": 0.3, "mean_span_tokens": 2.0} if kind in ("span_corruption", "denoising") else {}
    )
    given |= {"masking": "independent"} if "independent" in name else {}
    config = TypeAdapter(ObjectiveConfig).validate_python(given)
    windows_drawn, length = 4_000, 60
    tokens = np.full((windows_drawn, length), 5)
    example = example_of(ALL[name](length), tokens, [length] * windows_drawn)
    source = example.inputs.get("source_BS", torch.zeros(1, 0))
    assert (source.shape[1], example.targets_BT.shape[1]) == config.shape(length, family)
    counts = config.counts(length)
    actual = example.num_inputs_B.double().mean(), example.is_scored_BT.sum(1).double().mean()
    # A standard deviation of at most half the window, over 4,000 windows: five standard errors.
    assert [float(count) for count in actual] == pytest.approx([float(count) for count in counts], abs=2.5)


@pytest.mark.parametrize("name", ALL)
def test_noise_depends_on_the_window_alone(name: str) -> None:
    objective = ALL[name](64, noise_seed=5)
    length = np.array([64, 64, 10, 0, 64])
    whole = NoisePlaces(np.array([7, 7, 8, 0, 7]), np.array([2, 2, 2, 0, 3]), np.arange(5) * 64, length)
    drawn = objective.noise(whole, width=64)
    for rows in ([4, 2], [3], [1, 0, 4, 2, 3]):
        part = objective.noise(NoisePlaces(*(values[rows] for values in whole)), width=64)
        assert all(np.array_equal(part[key], drawn[key][rows]) for key in drawn)
    if "fixed" in name:
        return
    many = NoisePlaces(np.zeros(64, int), np.ones(64, int), np.arange(64) * 64, np.full(64, 64))
    fresh = objective.noise(many, width=64)

    def differs(other: dict[str, np.ndarray]) -> bool:
        return all(not np.array_equal(other[key], fresh[key]) for key in fresh)

    assert differs(replace(objective, noise_seed=6).noise(many, width=64))
    assert differs(objective.noise(many._replace(seed_N=many.seed_N + 1), width=64))
    assert differs(objective.noise(many._replace(epoch_N=many.epoch_N + 1), width=64))
    assert differs(objective.noise(many._replace(start_N=many.start_N + 1), width=64))
    frozen = replace(objective, frozen=True)
    first, later = (frozen.noise(many._replace(epoch_N=np.full(64, epoch)), width=64) for epoch in (0, 9))
    assert all(np.array_equal(first[key], later[key]) for key in first)
    of_first_epoch = objective.noise(many._replace(epoch_N=np.zeros(64, int)), width=64)
    assert all(np.array_equal(first[key], of_first_epoch[key]) for key in first)


DECODER = DecoderConfig(d_model=32, num_layers=2, num_heads=2, d_ff=48)
T5 = T5Config(
    family="t5", d_model=32, num_encoder_layers=1, num_decoder_layers=2, num_heads=2, head_dim=8, d_ff=48
)


@pytest.mark.parametrize("name", ["decoder causal", *ALL])
def test_no_logit_depends_on_its_target(name: str) -> None:
    """Changing a token of the window does not change the logits that predict it."""
    model = build_model(T5 if name.startswith("t5") else DECODER, vocab_size=VOCABULARY, seed=0).eval()
    objective = Causal(START) if name == "decoder causal" else ALL[name](24, noise_seed=3)
    tokens = np.random.default_rng(1).integers(FIRST_RAW, 600, (4, 24))
    before, actual, reached = example_of(objective, tokens, [24] * 4), 0, 0
    predicted_BT = before.is_raw_BT.clone()
    if "denoising" in name:
        # Tokens that are not masked are in the inputs too.
        masked = objective.noise(places([24] * 4, width=24), width=24)["is_noise_BL"]
        predicted_BT[before.is_raw_BT] = torch.from_numpy(masked).flatten()
    with torch.no_grad():
        logits_BTV = model(**before.inputs)
        for column in range(24):
            other = tokens.copy()
            other[:, column] = 601
            after = example_of(objective, other, [24] * 4)
            changed_BT = (before.targets_BT != after.targets_BT) & predicted_BT
            changed_BTV = model(**after.inputs)
            assert torch.equal(logits_BTV[changed_BT], changed_BTV[changed_BT]), column
            reached += not torch.equal(logits_BTV, changed_BTV)
            actual += int(changed_BT.sum())
    assert actual == int(predicted_BT.sum()) > 0
    assert reached >= 12


def test_prefix_positions_attend_to_the_prefix_alone() -> None:
    model = build_model(DECODER, vocab_size=VOCABULARY, seed=0).eval()
    tokens = torch.randint(2, 600, (1, 8), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before = model(tokens, prefix_B=torch.tensor([5]))
        for column, touched in ((4, range(8)), (5, range(5, 8)), (7, range(7, 8))):
            other = tokens.clone()
            other[0, column] = 700
            after = model(other, prefix_B=torch.tensor([5]))
            differs = (before != after).any(-1)[0].nonzero().flatten().tolist()
            assert differs == list(touched)
        assert torch.equal(
            model(tokens, prefix_B=torch.tensor([0])), model(tokens, prefix_B=torch.tensor([1]))
        )


def test_document_mask_applies_within_a_prefix() -> None:
    tokens = np.array([[11, 12, EOS, 21, 22, EOS, 31, 32]])
    prefix = prefix_lm(8, in_one_row=True, fraction=0.5, document_eos_id=EOS)
    example = example_of(prefix, tokens, [8])
    assert example.inputs["tokens_BT"].tolist() == [[0, 11, 12, 0, 21, 22, 0, 31]]
    assert example.inputs["segments_BT"].tolist() == [[1, 1, 1, 2, 2, 2, 3, 3]]
    assert example.inputs["prefix_B"].tolist() == [5]
    assert example.targets_BT.tolist() == [[IGNORE] * 4 + [22, EOS, 31, 32]]
    model = build_model(DECODER, vocab_size=VOCABULARY, seed=0).eval()
    other = tokens.copy()
    other[0, 1] = 77
    with torch.no_grad():
        before, after = (model(**example_of(prefix, t, [8]).inputs) for t in (tokens, other))
    assert (before != after).any(-1)[0].tolist() == [True] * 3 + [False] * 5
