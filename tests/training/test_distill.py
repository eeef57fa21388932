"""Runs that are distilled from a teacher, or from their own previous cycle."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from interrupts import crash, interrupt_at

from reptrain.config import RunConfig
from reptrain.errors import ConfigError, ReptrainError, ResumeError, RunError
from reptrain.evaluation.ensemble import snapshot_steps
from reptrain.hub.saved_model import open_saved_model
from reptrain.model.head import Distribution, imitation_loss
from reptrain.runs import RunFolder
from reptrain.training.loop import train
from reptrain.training.rebuilt_inputs import audit_inputs
from reptrain_kernels.ops.linear_cross_entropy import IGNORE, Targets, coefficient, cross_entropy

Make = Callable[..., RunConfig]
SHORT = ("train.total_tokens=0.5epochs", "evaluate.every_fraction=1", "optimizer.lr=1e-2")
CYCLIC = (*SHORT, "schedule.name=cyclic", "schedule.cycles=2", "model.dropout.residual=0.1")
OWN = (*CYCLIC, "distill={weight: 0.5}")


def losses(folder: Path) -> list[float]:
    return [record.loss_nats for record in RunFolder.open(folder).metrics.records("train")]


@pytest.fixture(scope="module")
def teacher(tiny: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("teacher") / "run"
    train(tiny("train.total_tokens=2epochs", "evaluate.every_fraction=1", "optimizer.lr=1e-2"), path)
    return path


@pytest.fixture(scope="module")
def own(tiny: Make, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("own") / "run"
    train(tiny(*OWN), path)
    return path


def test_imitation_loss_and_its_gradient_follow_the_definition() -> None:
    torch.manual_seed(0)
    logits_BTV = torch.randn(2, 5, 7, requires_grad=True)
    other_BTV, weight_BT = torch.randn(2, 5, 7), torch.rand(2, 5)
    target_BT = torch.randint(7, (2, 5))
    target_BT[0, 1] = target_BT[1, 4] = IGNORE
    targets = Targets(target_BT, weight_BT, label_smoothing=coefficient(0.1), z_loss=coefficient(1e-2))
    found = imitation_loss(logits_BTV, targets, Distribution(other_BTV, torch.tensor(0.3)))
    (gradient,) = torch.autograd.grad(found.loss, logits_BTV)
    divergence_BT = F.kl_div(
        logits_BTV.log_softmax(-1), other_BTV.log_softmax(-1), reduction="none", log_target=True
    ).sum(-1)
    imitated = (divergence_BT * weight_BT)[target_BT != IGNORE].sum()
    expected = 0.7 * cross_entropy(logits_BTV, targets).loss + 0.3 * imitated
    torch.testing.assert_close(found.loss, expected)
    torch.testing.assert_close(gradient, torch.autograd.grad(expected, logits_BTV)[0])
    # The reported loss is the cross-entropy alone.
    assert torch.equal(found.nats, cross_entropy(logits_BTV, targets).nats)


def test_a_distribution_of_more_rows_is_cut_to_those_of_the_head() -> None:
    logits_BTV, other_BTV = torch.randn(1, 3, 4), torch.randn(1, 3, 4)
    targets = Targets(torch.zeros(1, 3, dtype=torch.int64))
    more = F.pad(other_BTV, (0, 5), value=9.0)
    found, expected = (
        imitation_loss(logits_BTV, targets, Distribution(each, torch.tensor(0.5)))
        for each in (more, other_BTV)
    )
    torch.testing.assert_close(found.loss, expected.loss)


def test_runs_resume_with_the_same_bits_and_teacher(
    teacher: Path, tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = (*SHORT, f"distill={{teacher: {teacher}, weight: {{value: 0.8, start: 3steps}}}}")
    train(tiny(*SHORT), tmp_path / "plain")
    train(tiny(*settings), tmp_path / "whole")
    expected, plain = losses(tmp_path / "whole"), losses(tmp_path / "plain")
    assert expected[:4] == plain[:4]
    assert all(one != other for one, other in zip(expected[4:], plain[4:], strict=True))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_at(patch, 5, crash)
        train(tiny(*settings), tmp_path / "run")
    # The same weights in another folder are the same teacher.
    moved = tmp_path / "moved"
    shutil.copytree(teacher, moved)
    again = [setting.replace(str(teacher), str(moved)) for setting in settings]
    assert train(tiny(*again), tmp_path / "run").state == "done"
    assert losses(tmp_path / "run") == expected
    plan = json.loads((tmp_path / "run" / "plan.json").read_text())
    assert plan["teacher"] == open_saved_model(teacher).fingerprint()
    assert "teacher" not in json.loads((tmp_path / "plain" / "plan.json").read_text())
    assert audit_inputs(tmp_path / "run").exact


def test_other_weights_at_the_teachers_path_are_refused(
    teacher: Path, tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(teacher, tmp_path / "teacher")
    settings = (*SHORT, f"distill={{teacher: {tmp_path / 'teacher'}}}")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_at(patch, 5, crash)
        train(tiny(*settings), tmp_path / "run")
    shutil.rmtree(tmp_path / "teacher")
    train(tiny(*SHORT, "seed=3"), tmp_path / "teacher")
    with pytest.raises(ResumeError, match="teacher"):
        train(tiny(*settings), tmp_path / "run")


def test_the_first_cycle_has_no_teacher(own: Path, tiny: Make, tmp_path: Path) -> None:
    train(tiny(*CYCLIC), tmp_path / "plain")
    found, expected = losses(own), losses(tmp_path / "plain")
    end, last = snapshot_steps(own)
    assert last == len(found) and end + 1 < last
    assert found[: end + 1] == expected[: end + 1]
    assert all(one != other for one, other in zip(found[end + 1 :], expected[end + 1 :], strict=True))


@pytest.mark.parametrize("step", [1, 5])
def test_a_run_distilled_from_itself_resumes_with_the_same_bits(
    step: int, own: Path, tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_at(patch, step, crash)
        train(tiny(*OWN), tmp_path / "run")
    assert train(tiny(*OWN), tmp_path / "run").state == "done"
    assert losses(tmp_path / "run") == losses(own)
    assert audit_inputs(tmp_path / "run").exact


def test_a_missing_snapshot_is_named(
    own: Path, tiny: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    end, last = snapshot_steps(own)
    settings = (*OWN, f"checkpoint.at_steps=[{end + 1}]")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_at(patch, last - 1, crash)
        train(tiny(*settings), tmp_path / "run")
    shutil.rmtree(tmp_path / f"run/checkpoints/step-{end}")
    with pytest.raises(RunError, match=f"step-{end}"):
        train(tiny(*settings), tmp_path / "run")


def test_several_teachers_teach_the_weighted_mean_of_their_probabilities(
    teacher: Path, own: Path, tiny: Make, tmp_path: Path
) -> None:
    def run(name: str, more: str) -> list[float]:
        train(tiny(*SHORT, f"distill={{{more}}}"), tmp_path / name)
        return losses(tmp_path / name)

    # Weights are relative. A mean of two equal models is that model, up to rounding.
    alone = run("alone", f"teacher: {teacher}")
    assert run("twice", f"teacher: [{teacher}, {teacher}]") == pytest.approx(alone, rel=1e-5)
    first, other = (
        run(f"weighted {scale}", f"teacher: [{teacher}, {own}], teacher_weights: [{3 * scale}, {scale}]")
        for scale in (1, 2)
    )
    assert first == other and first != pytest.approx(alone, rel=1e-5)


REFUSED = {
    "no cycle": (["distill={}"], "distill without a teacher needs schedule.name cyclic"),
    "one cycle": (["schedule.name=cyclic", "distill={}"], "schedule.cycles of at least 2"),
    "no folder": (["distill.teacher=/nowhere"], "/nowhere"),
    "other family": (
        [
            "distill.teacher=TEACHER",
            "objective.name=span_corruption",
            "model={family: t5, d_model: 32, num_encoder_layers: 1, num_decoder_layers: 1, num_heads: 2,"
            " head_dim: 8, d_ff: 48}",
        ],
        "must have model.family t5",
    ),
    "other attention": (["distill.teacher=TEACHER", "objective.name=masked_diffusion"], "attention"),
    "one weight": (["distill={teacher: [TEACHER, TEACHER], teacher_weights: [1]}"], "one weight for each"),
    "no path": (["distill.teacher=['']"], "at least 1 character"),
    "a weight that vanishes": (
        ["distill={teacher: [TEACHER, TEACHER], teacher_weights: [1e-320, 1e5]}"],
        "greater than or equal",
    ),
    "share of 1": (["distill={teacher: TEACHER, weight: 1}"], "less than 1"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_teachers_that_do_not_fit_are_refused(name: str, teacher: Path, tiny: Make, tmp_path: Path) -> None:
    settings, words = REFUSED[name]
    with pytest.raises(ReptrainError, match=words) as caught:
        train(tiny(*SHORT, *(one.replace("TEACHER", str(teacher)) for one in settings)), tmp_path / "run")
    assert isinstance(caught.value, (ConfigError, RunError))
    assert not (tmp_path / "run").exists()


def test_a_teacher_of_too_few_positions_is_refused(tiny: Make, tmp_path: Path) -> None:
    learned = ("model.positions=learned", "model.max_positions=32", "train.total_tokens=1", "seed=5")
    train(tiny(*SHORT, *learned), tmp_path / "teacher")
    settings = (*SHORT, f"distill.teacher={tmp_path / 'teacher'}")
    train(tiny(*settings), tmp_path / "fits")
    with pytest.raises(ConfigError, match="32 learned positions"):
        train(tiny(*settings, "data.window_tokens=64"), tmp_path / "run")
    assert not (tmp_path / "run").exists()
