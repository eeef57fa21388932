"""FLOPs of steps with masked copies and teachers, against a count step by step with the trainer's rules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from run_folders import write_run

from reptrain.cli.study_plan import bill_data, bill_text
from reptrain.config import RunConfig
from reptrain.config.load import dump_yaml, validate
from reptrain.model import build_model
from reptrain.model.head import Distribution
from reptrain.plan.cycles import cycle_ends
from reptrain.plan.position import position_at
from reptrain.plan.shared_steps import RunSteps
from reptrain.sizes import describe_sizes, load_subject, step_flops, train_flops_per_window
from reptrain.sizes.describe import sizes_text
from reptrain.sizes.memory import activation_bytes
from reptrain.sizes.rank_memory import run_activation_bytes, teacher_bytes
from reptrain.sizes.run_flops import RunFlops
from reptrain.study import StudyConfig
from reptrain.study.bill import Hardware, bill_of
from reptrain.study.build import build_graph
from reptrain.training.distill import Teacher
from reptrain_kernels.ops.linear_cross_entropy import Targets

BASE: dict[str, Any] = {
    "data": {"store": "s", "unique_tokens": 4000, "window_tokens": 64},
    "model": {"vocab_size": 512, "d_model": 64, "num_layers": 2, "num_heads": 2, "d_ff": 128},
    "train": {"total_tokens": 16384, "batch_windows": 8},
    "schedule": {"name": "cyclic", "cycles": 4, "warmup_fraction": 0},
}
MASKED = {"regularize": {"masked_inputs": 0.4}}


def run_of(**sections: Any) -> RunConfig:
    return validate(RunConfig, BASE | sections)


def teacher_run(path: Path) -> Path:
    """A run folder with a larger model."""
    larger = run_of(model=BASE["model"] | {"d_model": 96, "d_ff": 200})
    write_run(larger, path)
    return path


CASES: dict[str, dict[str, Any]] = {
    "none": {},
    "masked": MASKED,
    "masked late": {"regularize": {"masked_inputs": {"value": 0.4, "start": "50%"}}},
    "masked from a start of 0": {"regularize": {"masked_inputs": {"value": 0.4, "over": "10%"}}},
    "masked at first": {"regularize": {"masked_inputs": {"value": 0, "before": 0.4, "start": "10steps"}}},
    "masked and fading": {
        "regularize": {"masked_inputs": {"value": 0, "before": 0.4, "start": "1epochs", "over": "1epochs"}}
    },
    "masked once more at the end": {
        "regularize": {"masked_inputs": {"value": 0.1, "before": 0.4, "start": "1epochs"}}
    },
    "own cycles": {"distill": {"weight": 0.5}},
    "own cycles, late, masked": MASKED | {"distill": {"weight": {"value": 0.5, "start": "60%"}}},
    "taught at first": {"distill": {"weight": {"value": 0, "before": 0.5, "start": "40%"}}, **MASKED},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("first", [0, 13])
def test_steps_count_the_losses_that_are_on(case: str, first: int) -> None:
    config = run_of(**CASES[case])
    steps = RunSteps(config, dict.fromkeys(config.sources, 4000))
    number, of_window = steps.steps.num_steps, train_flops_per_window(config.model, 512, config.example_shape)
    teacher = None
    if config.distill is not None:
        ends = cycle_ends(config.schedule, steps.plan, steps.steps)
        teacher = Teacher(
            config.distill.weight, ends[:-1], lambda place: torch.nn.Identity(), torch.device("cpu")
        )
    expected, seen = 0.0, set()
    for step in range(first, number):
        position = position_at(steps.plan, steps.steps, step)
        begin, windows = steps.steps.window_range(step)
        tokens = steps.plan.tokens_before(begin + windows) - steps.plan.tokens_before(begin)
        rows = 2 if config.regularize.masked_inputs.at(position) > 0 else 1
        passes = 3 + (1 if teacher is not None and teacher.share(position) > 0 else 0)
        seen.add((rows, passes))
        expected += tokens / 64 * rows * passes * of_window / 3
    found = RunFlops(config, 512, steps)
    assert found.between(first, number) == pytest.approx(expected, rel=1e-9)
    assert found.between(0, first) + found.between(first, number) == pytest.approx(found.total)
    assert first or len(seen) > 1 or case in ("none", "masked", "masked once more at the end")


def test_teachers_are_read_from_their_run_folders(tmp_path: Path) -> None:
    run = teacher_run(tmp_path / "teacher")
    larger = run_of(model=BASE["model"] | {"d_model": 96, "d_ff": 200})
    of_teacher = train_flops_per_window(larger.model, 512, larger.example_shape) // 3
    two = run_of(distill={"teacher": [str(run), str(run / "checkpoints" / "step-5")]})
    found = step_flops(two, 512)
    assert (found.masked_inputs, found.teacher) == (0, 2 * of_teacher)
    both = step_flops(run_of(**MASKED, distill={"teacher": [str(run)]}), 512)
    assert (both.masked_inputs, both.teacher) == (both.model, 2 * of_teacher)
    assert both.total == 2 * both.model + 2 * of_teacher
    unknown = step_flops(run_of(distill={"teacher": [str(run), str(tmp_path / "none")]}), 512)
    assert unknown.teacher is None and unknown.total == unknown.model
    assert teacher_bytes(two, 512) == 2 * (teacher_bytes(run_of(distill={"teacher": [str(run)]}), 512) or 0)


def test_sizes_show_steps_with_other_losses_only(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(dump_yaml(BASE))
    plain = describe_sizes(load_subject(file), world_size=1, precision=None)
    assert "step_flops_per_window" not in plain and "teacher_bytes" not in plain["memory"]
    extended = describe_sizes(
        load_subject(file, ["regularize.masked_inputs=0.4", "distill.weight=0.5"]),
        world_size=1,
        precision=None,
    )
    step = extended["step_flops_per_window"]
    assert step["total"] == 2 * step["model"] + step["teacher"] and step["masked_inputs"] == step["model"]
    assert extended["flops"] == plain["flops"]
    assert extended["memory"]["teacher_bytes"] == 4 * plain["parameters"]["total"]
    text = sizes_text(extended)
    assert "a step with all losses" in text and "teacher: 0.001 GiB of weights on each rank" in text
    unknown = load_subject(file, ["distill.teacher=none"])
    assert "unknown  teacher" in sizes_text(describe_sizes(unknown, world_size=1, precision=None))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_activations_hold_masked_copies_and_what_the_imitation_keeps(precision: Any) -> None:
    how: dict[str, Any] = {"precision": precision, "recompute": "none"}
    plain, masked, distilled = run_of(), run_of(**MASKED), run_of(distill={"weight": 0.5})
    shape, rows = plain.example_shape, 3
    doubled = activation_bytes(plain.model, 512, shape, windows=2 * rows, **how)
    assert run_activation_bytes(masked, 512, shape, windows=rows, **how) == doubled
    model = build_model(plain.model, vocab_size=512, seed=0)
    if precision == "bf16":
        model = model.bfloat16()
    tokens_BT = torch.randint(512, (rows, 64))
    imitated = Distribution(torch.randn(rows, 64, 512), torch.tensor(0.5, dtype=torch.float64))
    kept = []
    for other in (None, imitated):
        found: dict[int, int] = {}

        def keep(tensor: torch.Tensor, found: dict[int, int] = found) -> torch.Tensor:
            found[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = model(tokens_BT, targets=Targets(tokens_BT), imitated=other)
        kept.append(sum(found.values()))
        del loss
    before, after = (
        run_activation_bytes(run, 512, shape, windows=rows, **how).plain for run in (plain, distilled)
    )
    # The caller holds the teacher's logits.
    assert after - before == pytest.approx(kept[1] - kept[0] + imitated.logits_BTV.nbytes, rel=0.01)


def test_bill_counts_masked_copies_and_teachers_and_names_unknown_ones(tmp_path: Path) -> None:
    run = teacher_run(tmp_path / "teacher")
    study = StudyConfig(
        name="s",
        base=BASE,
        arms=[
            {"name": "plain"},
            {"name": "masked", "set": MASKED},
            {"name": "taught", "set": {"distill": {"teacher": [str(run)]}}},
            {"name": "unknown", "set": {"distill": {"teacher": [str(tmp_path / "none")]}}},
        ],
    )
    bill = bill_of(study, build_graph(study, tmp_path / "out"), tmp_path / "out", Hardware(name="A100"))
    plain, masked, taught, unknown = (row.flops for row in bill.rows)
    of = step_flops(bill.rows[2].node.run, 512)
    assert masked == pytest.approx(2 * plain) and unknown == plain
    assert of.teacher is not None and taught / plain == pytest.approx(of.total / of.model)
    assert bill.rows[1].seconds == pytest.approx(2 * (bill.rows[0].seconds or 0))
    assert bill.unknown_teachers == 1 == bill_data(bill)["runs_with_unknown_teachers"]
    assert "runs with a teacher that is no run folder: 1" in bill_text(bill)
