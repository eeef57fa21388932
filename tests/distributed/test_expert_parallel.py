"""Expert parallelism gives the losses, masks and checkpoints of runs without it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import rank_matrix
import torch
from flips import EVALUATED, assert_losses_agree, assert_routing_agrees
from rank_starts import LIMIT_S, start_ranks, write_config
from safetensors.torch import load_file
from time_limits import takes_up_to
from torch import Tensor

from reptrain.checkpoint import CheckpointManifest
from reptrain.config import RunConfig, config_fingerprint
from reptrain.config.model import MoEConfig
from reptrain.distributed.world import choose_device, join
from reptrain.errors import ConfigError
from reptrain.hub.saved_model import open_saved_model
from reptrain.model.dropout import Dropout, Site
from reptrain.model.sparse import SparseMLP
from reptrain.runs import RunFolder
from reptrain.training.loop import train

MakeConfig = Callable[..., RunConfig]
Cases = dict[str, dict[str, Any]]

DROPOUT = [f"model.dropout.{site}=0.2" for site in ("embedding", "attention", "residual", "mlp", "expert")]
# Each sparse layer is shared by two and recomputed in the backward pass.
DECODER = [
    "model.num_layers=4",
    "model.num_stored_layers=2",
    "model.moe={num_experts: 4, every: 2, jitter: 0.1, shared_d_ff: 16, bias_rate: 0.01}",
    "train.activation_checkpointing=true",
    *DROPOUT,
]
# Groups of two windows, with room for some of their tokens only.
T5 = [
    "model={family: t5, d_model: 32, num_encoder_layers: 1, num_decoder_layers: 2, num_heads: 2, head_dim: 8,"
    " d_ff: 48}",
    "model.moe={num_experts: 4, top_k: 1, group_windows: 2, capacity_factor: 0.75, backend: loop}",
    "objective.name=span_corruption",
    "data.document_mask=true",
    *DROPOUT,
]
BF16 = [*DECODER, "train.precision=bf16"]
FAMILIES = {"decoder": DECODER, "t5": T5, "bf16": BF16}
STEPS = 3


def place(family: str, size: int, stage: int, micro: int = 2, **more: Any) -> dict[str, Any]:
    """A case: a family's settings, P, the ZeRO stage and the micro-batch."""
    settings = [f"train.{key}" for key in (f"zero_stage={stage}", f"expert_parallel_size={size}")]
    return {
        "overrides": [*FAMILIES[family], *settings, f"train.micro_batch_windows={micro}"],
        "counts": True,
        **more,
    }


PLAIN: Cases = {family: place(family, 1, 0, 4) for family in ("decoder", "t5")}
PLAIN["continued"] = place("decoder", 1, 0, 4, init_from="decoder")
ON_TWO: Cases = {
    "decoder-p2-zero1": place("decoder", 2, 1),
    "t5-p2-zero2": place("t5", 2, 2),
    "bf16-p2-zero1": place("bf16", 2, 1),
    "moved": place("decoder", 2, 1, stop_after=2),
    "nan-fp32-zero2": place("decoder", 2, 2, nan=[1, 1, "gradient"]),
    "p2-to-p2": place("decoder", 2, 2, copy="decoder-p2-zero1"),
    "continued-p2-zero2": place("decoder", 2, 2, init_from="decoder"),
}
ON_ONE: Cases = {
    "moved": place("decoder", 1, 0),
    "p2-to-p1": place("decoder", 1, 1, copy="decoder-p2-zero1"),
    "bf16-p2-to-p1": place("bf16", 1, 2, copy="bf16-p2-zero1"),
}
ON_FOUR: Cases = {
    "decoder-p4-zero1": place("decoder", 4, 1, 1),
    "decoder-p4-zero2": place("decoder", 4, 2, 1),
    "decoder-p2of4-zero2": place("decoder", 2, 2, 3),
    "t5-p4-zero2": place("t5", 4, 2),
    "t5-p2of4-zero1": place("t5", 2, 1),
    "bf16-p2of4-zero1": place("bf16", 2, 1),
    "bf16-p4-zero2": place("bf16", 4, 2),
    "nan-bf16-zero1": place("bf16", 2, 1, nan=[1, 1, "gradient"]),
    "p2-to-p4": place("decoder", 4, 2, copy="decoder-p2-zero1"),
    "p2-to-p2of4": place("decoder", 2, 1, copy="decoder-p2-zero1"),
}
AFTER_FOUR: Cases = {
    "p4-to-p1": place("decoder", 1, 0, copy="p2-to-p4"),
    "p2of4-to-p1": place("decoder", 1, 2, copy="p2-to-p2of4"),
    "bf16-p2of4-to-p1": place("bf16", 1, 1, copy="bf16-p2of4-zero1"),
}


@pytest.fixture(scope="module")
@takes_up_to(LIMIT_S + 600)
def runs(tmp_path_factory: pytest.TempPathFactory, tiny: MakeConfig) -> Path:
    """Folder of all runs on one and two ranks."""
    out = tmp_path_factory.mktemp("experts")
    # 24 windows of an epoch of 16 in batches of 10; the last one is short.
    data = ("train.total_tokens=1.5epochs", "data.unique_tokens=500", "train.batch_windows=10")
    rarely = ("evaluate.every_fraction=1", "checkpoint.every_fraction=1")
    write_config(out, tiny(*data, *rarely, "train.on_nonfinite=skip"))
    rank_matrix.main(out, PLAIN)
    start_ranks(2, out, ON_TWO)
    rank_matrix.main(out, ON_ONE)
    return out


def losses(out: Path, name: str) -> list[tuple[int, float]]:
    """Step and loss of each training step and each evaluation of the three sets."""
    records = RunFolder.open(out / name).metrics
    trained = [(record.step, record.loss_nats) for record in records.records("train")]
    return trained + [(record.step, record.nats) for record in records.records("valid")]


def norms(out: Path, name: str) -> list[float]:
    return [record.grad_norm for record in RunFolder.open(out / name).metrics.records("train")]


def both(out: Path, *names: str) -> list[RunFolder]:
    return [RunFolder.open(out / name) for name in names]


@pytest.mark.ranks
@pytest.mark.parametrize("name", [name for name in ON_TWO if name.split("-")[0] in PLAIN])
def test_losses_masks_and_norms_equal_those_without_expert_parallelism(runs: Path, name: str) -> None:
    assert_losses_agree(*both(runs, name, name.split("-")[0]))


def assert_bf16_follows(out: Path, name: str) -> None:
    found, expected = ([loss for _, loss in losses(out, run)] for run in (name, "decoder"))
    assert found == pytest.approx(expected, abs=2e-3)
    assert norms(out, name) == pytest.approx(norms(out, "decoder"), rel=0.02)


@pytest.mark.ranks
def test_bf16_matches_the_run_without_expert_parallelism(runs: Path) -> None:
    assert_bf16_follows(runs, "bf16-p2-zero1")


@pytest.mark.ranks
@pytest.mark.parametrize(("name", "plain"), [("decoder-p2-zero1", "decoder"), ("t5-p2-zero2", "t5")])
def test_routing_records_equal_those_without_expert_parallelism(runs: Path, name: str, plain: str) -> None:
    if not assert_routing_agrees(*both(runs, name, plain)):
        return
    found, expected = (
        CheckpointManifest.read(runs / run / f"checkpoints/step-{STEPS}").expert_bias for run in (name, plain)
    )
    assert found == expected


def whole(out: Path, name: str) -> dict[str, Tensor]:
    """The parameters in a run's last checkpoint, assembled; checks that no element is written twice."""
    folder = out / name / f"checkpoints/step-{STEPS}"
    manifest = CheckpointManifest.read(folder)
    found: dict[str, Tensor] = {}
    for file in manifest.files:
        for key, piece in load_file(folder / file).items():
            kind_and_name, _, start = key.rpartition("@")
            shape = manifest.parameters[kind_and_name.partition(":")[2]]
            flat = found.setdefault(kind_and_name, torch.full(shape, torch.nan)).view(-1)
            stretch = flat[int(start) : int(start) + len(piece)]
            assert len(stretch) == len(piece) and stretch.isnan().all(), key
            stretch.copy_(piece)
    assert len(found) == 3 * len(manifest.parameters)
    assert not any(values.isnan().any() for values in found.values())
    return found


def assert_equal_state(out: Path, name: str, origin: str) -> None:
    found, expected = whole(out, name), whole(out, origin)
    assert found.keys() == expected.keys()
    for key, values in expected.items():
        assert torch.equal(found[key], values), key
    manifests = [CheckpointManifest.read(out / run / f"checkpoints/step-{STEPS}") for run in (name, origin)]
    assert (
        manifests[0].expert_bias == manifests[1].expert_bias
        and manifests[0].parameters == manifests[1].parameters
    )
    assert manifests[0].optimizer_steps == manifests[1].optimizer_steps == STEPS


@pytest.mark.ranks
@pytest.mark.parametrize(
    ("name", "origin"),
    [
        ("p2-to-p1", "decoder-p2-zero1"),
        ("p2-to-p2", "decoder-p2-zero1"),
        ("bf16-p2-to-p1", "bf16-p2-zero1"),
    ],
)
def test_checkpoint_loads_bit_for_bit_in_the_other_layout(runs: Path, name: str, origin: str) -> None:
    assert_equal_state(runs, name, origin)


@pytest.mark.ranks
@pytest.mark.parametrize(("name", "plain"), [("decoder-p2-zero1", "decoder"), ("t5-p2-zero2", "t5")])
def test_each_expert_is_at_its_place_in_the_whole_parameter(runs: Path, name: str, plain: str) -> None:
    found, expected = whole(runs, name), whole(runs, plain)
    experts = [key for key in expected if ".experts." in key]
    assert len(experts) >= 3 * 2 and {len(expected[key]) for key in experts} == {4}
    for key in experts:
        distance_EE = torch.cdist(found[key].flatten(1), expected[key].flatten(1))
        assert distance_EE.argmin(1).tolist() == [0, 1, 2, 3], key
        others = distance_EE[~torch.eye(4, dtype=torch.bool)].min()
        assert distance_EE.diagonal().max() < 0.05 * others, key


@pytest.mark.ranks
def test_init_from_takes_over_the_parents_experts(runs: Path) -> None:
    begun = RunFolder.open(runs / "continued-p2-zero2").metrics.records("valid")
    ended = RunFolder.open(runs / "decoder").metrics.records("valid")
    first = {record.set: record.nats for record in begun if record.step == 0}
    last = {record.set: record.nats for record in ended if record.step == STEPS}
    assert first == pytest.approx(last, rel=0, abs=EVALUATED)


@pytest.mark.ranks
def test_model_trained_with_expert_parallelism_opens(runs: Path) -> None:
    model = open_saved_model(runs / "decoder-p2-zero1").load()
    expected = whole(runs, "decoder-p2-zero1")
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, expected[f"weight:{name}"]), name


@pytest.mark.ranks
def test_run_resumes_without_expert_parallelism(runs: Path) -> None:
    (event,) = (
        event for event in RunFolder.open(runs / "moved").events.records() if event.event == "resumed"
    )
    assert event.detail == "by 1 rank at ZeRO 0, written by 2 ranks at ZeRO 1, experts over 2"
    assert_losses_agree(*both(runs, "moved", "decoder"))


def assert_left_out(out: Path, name: str) -> None:
    assert [record.applied for record in RunFolder.open(out / name).ledger.records()] == [True, False, True]
    assert all(values.isfinite().all() for values in whole(out, name).values())


@pytest.mark.ranks
def test_step_that_is_not_finite_on_one_rank_is_applied_on_none(runs: Path) -> None:
    assert_left_out(runs, "nan-fp32-zero2")


@pytest.mark.slow
@pytest.mark.ranks
@pytest.mark.timeout(LIMIT_S + 900)
def test_experts_over_two_and_four_of_four_ranks(runs: Path) -> None:
    start_ranks(4, runs, ON_FOUR)
    rank_matrix.main(runs, AFTER_FOUR)
    for name in ON_FOUR:
        if name.startswith(("decoder-", "t5-")):
            of_plain = both(runs, name, name.split("-")[0])
            assert_losses_agree(*of_plain)
            assert_routing_agrees(*of_plain)
        elif name.startswith("bf16-"):
            assert_bf16_follows(runs, name)
        elif name.startswith("nan-"):
            assert_left_out(runs, name)
    for name, case in (ON_FOUR | AFTER_FOUR).items():
        if "copy" in case:
            assert_equal_state(runs, name, case["copy"])


def layer(backend: str, **changes: Any) -> SparseMLP:
    """A sparse layer whose weights are random."""
    config = MoEConfig(num_experts=4, backend=backend, **changes)
    shared = Dropout(0.0, Site.MLP_HIDDEN)
    built = SparseMLP(16, 24, activation="swiglu", config=config, dropout=0.3, shared_dropout=shared)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.normal_(generator=generator)
    return built


def outcome(experts: torch.nn.Module, counts: Sequence[int]) -> list[Tensor]:
    """The output, and the gradients of the rows and of each parameter."""
    x_ND = torch.randn(sum(counts), 16, generator=torch.Generator().manual_seed(2)).requires_grad_()
    y_ND = experts(x_ND, torch.tensor(counts), torch.arange(sum(counts)))
    y_ND.square().sum().backward()
    return [y_ND, x_ND.grad, *(parameter.grad for parameter in experts.parameters())]


@pytest.mark.parametrize("backend", ["grouped", "loop"])
@pytest.mark.parametrize("counts", [(3, 0, 4, 2), (0, 5, 0, 0), (0, 0, 0, 0)])
def test_held_experts_accept_any_number_of_rows(backend: str, counts: Sequence[int]) -> None:
    from reptrain.distributed.expert_parallel import HeldExperts

    join(choose_device("cpu"))
    whole_layer = layer(backend)
    held = HeldExperts(whole_layer, size=1, place=0)
    held.set_deepspeed_parallelism()
    found = outcome(held, counts)
    if sum(counts) == 0:
        assert [len(tensor) for tensor in found[:2]] == [0, 0]
        assert len(found) == 5 and not any(gradient.any() for gradient in found[2:])
        return
    for tensor, expected in zip(found, outcome(whole_layer.experts, counts), strict=True):
        assert torch.equal(tensor, expected)


def test_held_experts_are_a_range_of_all_experts() -> None:
    from reptrain.distributed.expert_parallel import HeldExperts

    whole_layer = layer("loop")
    for place in (0, 1):
        held = HeldExperts(whole_layer, size=2, place=place)
        for name, all_E in whole_layer.experts.named_parameters():
            own = getattr(held, name)
            assert torch.equal(own, all_E[2 * place : 2 * place + 2])
            assert own.whole_start == 2 * place * all_E[0].numel() and own.whole_shape == all_E.shape


MOE = "model.moe={num_experts: 6}"


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["train.expert_parallel_size=2", "train.zero_stage=1"], "the model is dense"),
        (
            [MOE, "train.expert_parallel_size=4", "train.zero_stage=1"],
            "must divide model.moe.num_experts 6; 4",
        ),
        ([MOE, "train.expert_parallel_size=2"], "stage 0 clips by .* set train.zero_stage=1"),
        (
            [MOE, "train.expert_parallel_size=3", "train.zero_stage=3"],
            "stage 3 takes .* set train.zero_stage=2",
        ),
    ],
)
def test_refuses_experts_that_cannot_be_spread(
    tiny: MakeConfig, overrides: Sequence[str], words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        tiny(*overrides)


def test_refuses_a_number_of_ranks_that_the_group_does_not_divide(tiny: MakeConfig, tmp_path: Path) -> None:
    config = tiny(MOE, "train.expert_parallel_size=2", "train.zero_stage=2")
    with pytest.raises(ConfigError, match="must divide the number of ranks, 1, but got 2"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_expert_parallel_size_is_not_in_the_fingerprint(tiny: MakeConfig) -> None:
    spread = tiny(MOE, "train.expert_parallel_size=2", "train.zero_stage=1")
    assert config_fingerprint(spread) == config_fingerprint(tiny(MOE))
