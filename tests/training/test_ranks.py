"""The same data, masks and losses on 1 and 2 ranks, at every micro-batch and ZeRO stage, with dropout on."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
from flips import assert_losses_agree, assert_routing_agrees
from ledgers import data_of
from rank_starts import LIMIT_S, start_ranks, write_config
from time_limits import takes_up_to

from reptrain.auditing.audit import audit
from reptrain.checkpoint import CheckpointManifest
from reptrain.checkpoint.step_folder import step_folders
from reptrain.config import RunConfig
from reptrain.config.model import DropoutConfig
from reptrain.hub.revisions import revision_steps
from reptrain.runs import RunFolder
from reptrain.training.loop import train

pytestmark = pytest.mark.ranks

DROPOUT = [f"model.dropout.{site}=0.2" for site in ("embedding", "attention", "residual", "mlp")]
GRID = {
    f"zero{stage}-micro{micro}": [f"train.zero_stage={stage}", f"train.micro_batch_windows={micro}"]
    for stage in range(4)
    for micro in (1, 2, 4)
}
# Every stage and every micro-batch; the rest of the grid is left to `make test-all`.
QUICK = ("zero0-micro1", "zero0-micro2", "zero0-micro4", "zero1-micro2", "zero2-micro4", "zero3-micro1")
# The other family and objective, with a mixture of documents in a window kept apart.
T5 = [
    "model={family: t5, d_model: 32, num_encoder_layers: 1, num_decoder_layers: 2, num_heads: 2, head_dim: 8,"
    " d_ff: 48}",
    "objective.name=span_corruption",
    "data.document_mask=true",
    *DROPOUT,
]
T5_QUICK = ("zero0-micro4", "zero0-micro1", "zero1-micro2", "zero2-micro1", "zero3-micro2")
# Sparse layers, each of them shared by two, recomputed in the backward pass.
SPARSE = [
    "model.num_layers=4",
    "model.num_stored_layers=2",
    "model.moe={num_experts: 4, every: 2, jitter: 0.1, shared_d_ff: 16, bias_rate: 0.01}",
    *("model.dropout.expert=0.2", "model.dropout.expert_output=0.3", "model.dropout.mlp_output=0.2"),
    "train.activation_checkpointing=true",
]
SPARSE_QUICK = ("zero0-micro4", "zero0-micro1", "zero1-micro2", "zero2-micro1", "zero3-micro2")
# Groups of two windows, with room for some of their tokens only.
SPARSE_T5 = [
    *T5,
    "model.moe={num_experts: 4, top_k: 1, group_windows: 2, capacity_factor: 0.75, backend: loop}",
    *("model.dropout.expert=0.2", "model.dropout.expert_output=0.3", "model.dropout.mlp_output=0.2"),
    "regularize={input_noise: 0.1, input_noise_by: random, masked_inputs: 0.4}",
]
SPARSE_T5_QUICK = ("zero0-micro4", "zero1-micro2", "zero3-micro4")
# What keys noise of its own, and an average of the weights, which is scored too.
REGULARIZED = [
    "regularize={label_smoothing: 0.1, z_loss: 1e-3, input_noise: 0.2, input_noise_by: random,"
    " masked_inputs: {value: 0.4, start: 1steps}}",
    "model.dropout.path={value: 0.3, start: 1steps}",
    "average={decay: 0.5}",
    "model.parallel_block=true",
]
REGULARIZED_QUICK = ("zero0-micro4", "zero2-micro1", "zero3-micro2")
# Target offsets in repacked epochs, a cyclic rate with its weight decay, distillation from the first cycle,
# relative positions, and checkpoints at amounts of text.
RECENT = [
    "objective={name: augmented_causal, max_offset: 3, right_to_left: 0.5}",
    "schedule={name: cyclic, cycles: 2, weight_decay_ratio: 4}",
    "distill.weight=0.5",
    *("model.dropout.mlp_output=0.2", *DROPOUT),
    *("model.positions=relative", "model.num_kv_heads=1", "data.cut=repacked"),
    *("checkpoint.at_text=[10words, 1200bytes]", "checkpoint.keep_last=1"),
]
RECENT_QUICK = ("zero0-micro4", "zero2-micro1", "zero3-micro2")
# An encoder-decoder that starts from a decoder, with two teachers and a budget in bytes. OUT stands for the
# folder of all runs.
TAUGHT_T5 = (
    "model={family: t5, d_model: 32, num_encoder_layers: 2, num_decoder_layers: 2, num_heads: 2,"
    " head_dim: 16, d_ff: 64, mlp: swiglu, tie_embeddings: true}"
)
TAUGHT = [
    *(TAUGHT_T5, "objective.name=span_corruption", *DROPOUT, "init_from=OUT/decoder"),
    "distill={teacher: [OUT/teacher, OUT/teacher/checkpoints/step-1], teacher_weights: [3, 1]}",
    "train.total_tokens=1800bytes",
]
TAUGHT_QUICK = ("zero0-micro4", "zero3-micro1")
# Objectives whose loss is divided by what was drawn, or weighted by it.
UL2 = ["objective.name=ul2", *T5[:1], *DROPOUT]
DIFFUSION = ["objective={name: masked_diffusion, masking: independent}", "evaluate.noise_samples=2"]
OBJECTIVES_QUICK = ("zero0-micro4", "zero1-micro1")
FAMILIES = {
    "": ([], QUICK),
    "t5-": (T5, T5_QUICK),
    "sparse-": (SPARSE, SPARSE_QUICK),
    "sparse_t5-": (SPARSE_T5, SPARSE_T5_QUICK),
    "regularized-": (REGULARIZED, REGULARIZED_QUICK),
    "recent-": (RECENT, RECENT_QUICK),
    "taught-": (TAUGHT, TAUGHT_QUICK),
    "ul2-": (UL2, OBJECTIVES_QUICK),
    "diffusion-": (DIFFUSION, OBJECTIVES_QUICK),
}
CASES = {
    f"{family}{name}": [*settings, *GRID[name]]
    for family, (settings, names) in FAMILIES.items()
    for name in names
}
# State in the memory of the host, and other ways to reduce gradients, beside the case that each must equal.
# The whole model has 30 thousand parameters.
ELSEWHERE = {
    "offloaded-zero2": ("zero2-micro4", ["train.offload_optimizer=cpu"]),
    "offloaded-zero3": ("zero3-micro1", ["train.offload_optimizer=cpu"]),
    "weights_offloaded-zero3": ("zero3-micro1", ["train.offload_parameters=cpu"]),
    "all_offloaded-zero3": (
        "zero3-micro1",
        ["train.offload_parameters=cpu", "train.offload_optimizer=cpu"],
    ),
    "overlapped-zero2": (
        "zero2-micro4",
        ["train.overlap_communication=true", "train.bucket_elements=5000"],
    ),
}
CASES |= {name: [*CASES[same], *settings] for name, (same, settings) in ELSEWHERE.items()}
BF16 = {f"bf16-zero{stage}": [f"train.zero_stage={stage}", "train.precision=bf16"] for stage in (1, 3)}
BF16_ELSEWHERE = {
    "bf16-buckets-zero1": ("bf16-zero1", ["train.bucket_elements=5000"]),
    "bf16-weights_offloaded-zero3": ("bf16-zero3", ["train.offload_parameters=cpu"]),
}
BF16 |= {name: [*BF16[same], *settings] for name, (same, settings) in BF16_ELSEWHERE.items()}
ELSEWHERE |= BF16_ELSEWHERE
# Two sources of one store; STORE stands for its path.
MIXTURE = {
    "mixture": [
        *("data.store=null", "data.unique_tokens=null", "train.total_tokens=null"),
        "data.sources.first={store: 'STORE', unique_tokens: 320, total_tokens: 1.5epochs, cut: repacked}",
        "data.sources.second={store: 'STORE', unique_tokens: 200, subset_seed: 1, cut: repacked}",
        "train.micro_batch_windows=2",
    ]
}


Matrix = dict[tuple[str, int], RunFolder]


# On two ranks a smaller micro-batch of the same family proves the same. The plain family runs at every stage,
# sparse models at ZeRO 1 and 2 in distributed/test_expert_parallel.py.
_PLAIN_ON_ONE = ("t5", "sparse", "recent", "taught", "ul2", "diffusion")
LATER_ON_TWO = {f"{family}-zero0-micro4" for family in _PLAIN_ON_ONE} | {
    "zero0-micro2", "t5-zero1-micro2", "t5-zero2-micro1", "sparse-zero1-micro2", "sparse-zero2-micro1",
    "sparse_t5-zero1-micro2", "regularized-zero2-micro1", "recent-zero2-micro1",
}  # fmt: skip
# On one rank: what all others are compared with, small micro-batches, and ZeRO 3 and bf16 at ZeRO 1.
NOW_ON_ONE = {f"{family}zero0-micro4" for family in FAMILIES} | {
    "zero0-micro1", "zero0-micro2", "zero3-micro1", *MIXTURE, "t5-zero0-micro1", "sparse-zero0-micro1",
    "bf16-zero1",
}  # fmt: skip


def _is_quick(name: str, ranks: int) -> bool:
    """Whether `make test` trains a case on so many ranks; `make test-all` trains the others too."""
    return name in NOW_ON_ONE if ranks == 1 else name not in LATER_ON_TWO


def _pairs(names: Iterable[str]) -> list[Any]:
    """Each case with each number of ranks, as parameters."""
    return [
        pytest.param(name, ranks, marks=[] if _is_quick(name, ranks) else [pytest.mark.slow])
        for name in names
        for ranks in (1, 2)
    ]


def _of(matrix: Matrix, name: str) -> list[RunFolder]:
    """A case's runs on any ranks."""
    return [folder for (case, _), folder in matrix.items() if case == name]


# A value that is not finite on rank 1 alone, in step 1 of 3, at every stage.
NAN = {
    f"nan-{place}-{precision}-zero{stage}": {
        "nan": [1, 1, place],
        "overrides": [
            *(f"train.zero_stage={stage}", f"train.precision={precision}", "train.on_nonfinite=skip"),
            "train.micro_batch_windows=3",
        ],
    }
    for place, precision, stage in (
        *(("loss", "fp32", 0), ("gradient", "fp32", 1), ("gradient", "fp32", 2), ("gradient", "fp32", 3)),
        *(("gradient", "bf16", 1), ("loss", "bf16", 3)),
    )
}
NAN["nan-gradient-fp32-offloaded"] = {
    "nan": [1, 1, "gradient"],
    "overrides": ["train.zero_stage=2", "train.offload_optimizer=cpu", "train.on_nonfinite=skip"],
}
# Both precisions and ZeRO 0, 2 and 3 in fp32 are checked in `make test`.
LATER_NAN = {"nan-gradient-fp32-zero1", "nan-loss-bf16-zero3"}
DIVERGED = {"diverged": {"nan": [1, 1, "gradient"], "overrides": ["train.zero_stage=2"]}}


@pytest.fixture(scope="module")
@takes_up_to(2 * LIMIT_S)
def matrix(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, tiny: Callable[..., RunConfig]
) -> Matrix:
    """Cases on 1 and on 2 ranks, all where slow tests are selected; each number of ranks starts once."""
    items = (item for item in request.session.items if item.path == request.path)
    quick = not any(item.get_closest_marker("slow") for item in items)
    out = tmp_path_factory.mktemp("matrix")
    planted = {name: case for name, case in (NAN | DIVERGED).items() if not quick or name not in LATER_NAN}
    return _train_all(out, tiny, CASES | BF16 | MIXTURE, planted, quick=quick)


def _train_all(
    out: Path,
    tiny: Callable[..., RunConfig],
    cases: dict[str, list[str]],
    on_two_ranks: dict[str, dict[str, Any]] | None = None,
    *,
    quick: bool = False,
) -> Matrix:
    # 24 windows of an epoch of 16 in batches of 10: batches straddle epochs, and the last one is short.
    config = tiny(
        "train.total_tokens=1.5epochs", "data.unique_tokens=500", "train.batch_windows=10", *DROPOUT
    )
    write_config(out, config)
    if any(name.startswith("taught") for name in cases):
        few = ("train.total_tokens=200", "train.batch_windows=4", "evaluate.every_fraction=1")
        train(tiny(*few), out / "decoder")
        train(tiny(*few, TAUGHT_T5, "objective.name=span_corruption"), out / "teacher")
    places = {"STORE": str(config.data.store), "OUT": str(out)}
    named = {
        name: [re.sub("|".join(places), lambda found: places[found[0]], override) for override in overrides]
        for name, overrides in cases.items()
    }
    for ranks in (1, 2):
        started: dict[str, dict[str, Any]] = {
            f"{name}-ranks{ranks}": {"overrides": overrides, "counts": name.startswith("sparse")}
            for name, overrides in named.items()
            if not quick or _is_quick(name, ranks)
        }
        start_ranks(ranks, out, started | (on_two_ranks or {} if ranks == 2 else {}))
    both = {
        (name, ranks): out / f"{name}-ranks{ranks}"
        for name in cases
        for ranks in (1, 2)
        if not quick or _is_quick(name, ranks)
    }
    two = {(name, 2): out / name for name in on_two_ranks or {}}
    return {key: RunFolder.open(path) for key, path in (both | two).items()}


def _plain(matrix: Matrix, name: str) -> RunFolder:
    """The run that a case must equal: its family on one rank, in few micro-batches."""
    family = next((family for family in FAMILIES if family and name.startswith(family)), "")
    return matrix[f"{family}zero0-micro4", 1]


def _losses(folder: RunFolder) -> list[float]:
    train = [record.loss_nats for record in folder.metrics.records("train")]
    return train + [record.nats for record in folder.metrics.records("valid")]


@pytest.mark.parametrize(("name", "ranks"), _pairs(CASES))
def test_losses_are_the_same_on_any_ranks_micro_batch_and_stage(
    matrix: Matrix, name: str, ranks: int
) -> None:
    plain = _losses(_plain(matrix, name))
    assert len(plain) == 3 + 3 * 3 * (2 if name.startswith("regularized") else 1)
    if name.startswith("sparse"):
        assert_losses_agree(matrix[name, ranks], _plain(matrix, name))
    else:
        assert _losses(matrix[name, ranks]) == pytest.approx(plain, rel=0, abs=1e-5)


@pytest.mark.parametrize(("name", "ranks"), _pairs([*CASES, *BF16]))
def test_data_is_identical_on_any_ranks_micro_batch_and_stage(matrix: Matrix, name: str, ranks: int) -> None:
    found, plain = matrix[name, ranks].ledger, _plain(matrix, name).ledger
    assert data_of(found) == data_of(plain)
    # The same initial weights have the same hash, however they are partitioned.
    weights = matrix["bf16-zero1", 1].ledger if name in BF16 else plain
    first, expected = next(iter(found.records())).slice, next(iter(weights.records())).slice
    assert first and expected and first[0] == expected[0]
    assert audit(matrix[name, ranks].path).exact


@pytest.mark.parametrize("name", ELSEWHERE)
def test_offloading_and_overlapping_compute_the_same_bits(matrix: Matrix, name: str) -> None:
    both = [matrix[one, 2].checkpoints / "step-3" for one in (name, ELSEWHERE[name][0])]
    found, expected = (CheckpointManifest.read(folder).state for folder in both)
    assert found is not None and found == expected


@pytest.mark.parametrize(("name", "ranks"), _pairs(name for name in CASES if name.startswith("sparse")))
def test_routing_is_the_same_on_any_ranks_micro_batch_and_stage(
    matrix: Matrix, name: str, ranks: int
) -> None:
    plain, found = _plain(matrix, name), matrix[name, ranks]
    expert_bias = CheckpointManifest.read(plain.checkpoints / "step-3").expert_bias
    agrees = assert_routing_agrees(found, plain)
    for score, wanted in zip(found.metrics.records("valid"), plain.metrics.records("valid"), strict=True):
        # Two or three tokens may go to another expert.
        if score.set == "probe":
            peaks = [one.scores["expert_peak"] for one in (score, wanted)]
            assert peaks[0] == pytest.approx(peaks[1], abs=0.05)
            assert score.scores["dead_experts"] == pytest.approx(wanted.scores["dead_experts"], abs=1)
    for record in found.metrics.records("train"):
        assert all((layer.dropped > 0) == name.startswith("sparse_t5") for layer in record.routing or [])
    if agrees:
        assert CheckpointManifest.read(found.checkpoints / "step-3").expert_bias == expert_bias
    updates = {abs(update) for layer in expert_bias.values() for update in layer}
    # Three steps, each with one update for experts above and below their share; T5's router has no bias.
    assert updates == {0} if "t5" in name else 0 < max(updates) <= 3


@pytest.mark.parametrize(("name", "ranks"), _pairs(name for name in CASES if name.startswith("recent")))
def test_checkpoints_at_amounts_of_text_are_at_the_same_steps(matrix: Matrix, name: str, ranks: int) -> None:
    folder, plain = matrix[name, ranks], _plain(matrix, name)
    assert revision_steps(folder) == revision_steps(plain) == {"chck_10": 1, "chck_1200B": 2}
    # Step 3 is the newest checkpoint, and the first cycle ends after step 1: an amount alone keeps step 2.
    assert sorted(step_folders(folder.checkpoints)) == [1, 2, 3]


def test_a_mixture_is_the_same_on_one_rank_and_two(matrix: Matrix) -> None:
    one, two = matrix["mixture", 1], matrix["mixture", 2]
    assert data_of(one.ledger) == data_of(two.ledger)
    assert _losses(two) == pytest.approx(_losses(one), rel=0, abs=1e-5)
    for folder in (one, two):
        report = audit(folder.path)
        assert report.exact, report.text()
        assert [set(source.exposures) for source in report.sources] == [{1, 2}, {1}]


@pytest.mark.slow
@pytest.mark.timeout(2 * LIMIT_S)
def test_losses_are_the_same_over_the_whole_grid(
    matrix: Matrix, tiny: Callable[..., RunConfig], tmp_path: Path
) -> None:
    rest = {name: overrides for name, overrides in GRID.items() if name not in CASES}
    plain = _losses(matrix["zero0-micro4", 1])
    for folder in _train_all(tmp_path, tiny, rest).values():
        assert _losses(folder) == pytest.approx(plain, rel=0, abs=1e-5)
        assert audit(folder.path).exact


def test_gradient_norms_agree(matrix: Matrix) -> None:
    # Those of sparse runs are compared with their losses.
    trained = {name for name, _ in matrix}
    dense = [name for name in CASES if name in trained and not name.startswith("sparse")]
    for name in dense:
        plain, *found = (
            [record.grad_norm for record in folder.metrics.records("train")]
            for folder in (_plain(matrix, name), *_of(matrix, name))
        )
        assert found
        for norms in found:
            assert norms == pytest.approx(plain, rel=1e-4)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in LATER_NAN else []) for name in NAN]
)
def test_a_step_that_is_not_finite_on_one_rank_is_applied_on_none(matrix: Matrix, name: str) -> None:
    folder = matrix[name, 2]
    assert [record.applied for record in folder.ledger.records()] == [True, False, True]
    latest = CheckpointManifest.read(folder.checkpoints / "step-3")
    assert latest.optimizer_steps == 2
    # The third step starts from the weights after the first, at any stage.
    losses = {record.step: record.loss_nats for record in folder.metrics.records("train")}
    same = next(found for found in NAN if f"-{'bf16' if 'bf16' in name else 'fp32'}-" in found)
    expected = {record.step: record.loss_nats for record in matrix[same, 2].metrics.records("train")}
    assert losses == pytest.approx(expected, rel=0, abs=0.02 if "bf16" in name else 1e-5)
    assert [event.step for event in folder.events.records() if event.event == "skipped"] == [1]
    report = audit(folder.path)
    assert not report.exact and "not applied" in report.text()


def test_a_step_that_is_not_finite_ends_the_run_as_diverged(matrix: Matrix) -> None:
    folder = matrix["diverged", 2]
    status = folder.status()
    assert status.state == "failed" and str(status.reason).startswith("diverged at step 1: loss and gradient")
    # The checkpoint before it is whole.
    assert CheckpointManifest.read(folder.checkpoints / "step-1").optimizer_steps == 1
    for rank in (0, 1):
        assert "diverged at step 1" in (folder.path.parent / f"diverged-rank{rank}.txt").read_text()


@pytest.mark.parametrize("name", BF16)
def test_bf16_follows_fp32_closely(matrix: Matrix, name: str) -> None:
    plain = _losses(matrix["zero0-micro4", 1])
    for run in _of(matrix, name):
        found = _losses(run)
        assert found != plain
        assert found == pytest.approx(plain, abs=0.02)


def test_dropout_is_on(matrix: Matrix, tmp_path: Path) -> None:
    folder = matrix["zero0-micro4", 1]
    silent = folder.config.model_copy(
        update={"model": folder.config.model.model_copy(update={"dropout": DropoutConfig()})}
    )
    train(silent, tmp_path / "run")
    assert _losses(RunFolder.open(tmp_path / "run"))[0] != pytest.approx(_losses(folder)[0], abs=1e-4)
