"""The audit of a fine-tuning: every step's inputs are those of the task."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from small_tasks import MakeTask
from typer.testing import CliRunner

from reptrain.cli import app
from reptrain.errors import CannotSayError, ConfigError, RunError
from reptrain.tasks.audit import audit_finetuning
from reptrain.tasks.finetune import finetune, load_finetune
from reptrain.tasks.pairs import SourceTarget

Trained = Callable[[str], Path]
SMALL = (
    "limits.select_examples=5", "limits.target_tokens=6", "limits.input_tokens=24", "epochs=2",
    "train.batch_windows=4", "train.device=cpu", "evaluate.every_fraction=1",
)  # fmt: skip


def tune(run: Path, task: Path, out: Path, *overrides: str, seeds: int = 1) -> Path:
    assert finetune(run, load_finetune(task, [*SMALL, *overrides]), out, seeds=seeds).results is not None
    return out


def audited(folder: Path) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["audit", str(folder)])
    return done.exit_code, done.output


@pytest.mark.parametrize("reading", ["t5", "causal"])
def test_audit_of_a_fine_tuning_is_exact(
    reading: str, trained: Trained, make_task: MakeTask, tmp_path: Path
) -> None:
    masked = ("regularize.masked_inputs=0.5",) if reading == "causal" else ()
    settings = ("train.micro_batch_windows=3", "regularize.input_noise=0.2", *masked)
    out = tune(trained(reading), make_task(), tmp_path / "out", *settings, seeds=2)
    (out / "seed-old").mkdir()
    report = audit_finetuning(out)
    assert (report.exact, report.complete, report.exit_code) == (True, True, 0), report.text()
    with pytest.raises(RunError, match="must be the folder of a fine-tuning run, or its folder seed-S"):
        audit_finetuning(out / "seed-old")
    assert [(seed.seed, seed.steps, seed.exposures) for seed in report.seeds] == [
        (0, 8, {2: 15}),
        (1, 8, {2: 15}),
    ]
    code, text = audited(out / "seed-1")
    assert code == 0 and text.splitlines()[:2] == ["exact", "seed 1: 8 steps; 15 examples 2 times"]
    refused = CliRunner().invoke(app, ["audit", str(out), "--head", "0" * 32]).exception
    assert isinstance(refused, ConfigError) and refused.what == "--head"


def test_audit_of_a_fine_tuning_finds_other_inputs(
    trained: Trained, make_task: MakeTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner, calls = SourceTarget.example, []

    def example(self: SourceTarget, batch: Any) -> Any:
        made = inner(self, batch)
        calls.append(batch)
        if len(calls) == 3:
            # One token of the third step, where `is_token_BT` is True.
            made.inputs["tokens_BT"][0, 1] += 1
        return made

    with monkeypatch.context() as patch:
        patch.setattr(SourceTarget, "example", example)
        out = tune(trained("causal"), make_task(), tmp_path / "out", "train.micro_batch_windows=4")
    report = audit_finetuning(out)
    assert report.exit_code == 1
    (seed,) = report.seeds
    assert seed.problems == ("step 2: the model saw other inputs than the task's",)
    assert seed.exposures == {1: 4, 2: 11}

    metrics = out / "seed-0" / "metrics.jsonl"
    lines = metrics.read_text().splitlines(keepends=True)
    # A step left out, then one twice.
    for changed in (lines[:3] + lines[4:], [*lines, lines[0]]):
        metrics.write_text("".join(changed))
        assert audit_finetuning(out).exit_code == 1
    # Records of a version without input digests.
    metrics.write_text("".join(json.dumps({k: v for k, v in json.loads(line).items() if k != "inputs"}) + "\n"
                               for line in lines))  # fmt: skip
    code, text = audited(out)
    assert code == 4 and "without an input digest" in text


def test_audit_of_a_fine_tuning_cannot_say_on_other_files(
    trained: Trained, make_task: MakeTask, tmp_path: Path
) -> None:
    task = make_task()
    out = tune(trained("t5"), task, tmp_path / "out", "epochs=1")
    rows = (task / "train.jsonl").read_text()
    (task / "train.jsonl").write_text(rows.replace("a", "b", 1))
    code, text = audited(out)
    assert code == 4 and "train.jsonl" in text
    (task / "train.jsonl").write_text(rows)
    assert audited(out)[0] == 0
    (out / "data.json").write_text("{")
    with pytest.raises(CannotSayError):
        audit_finetuning(out)
