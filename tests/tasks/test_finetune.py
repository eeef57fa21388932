"""Fine-tuning: exact epochs, the same by any road, and figures that are those of the checkpoints."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small_tasks import READINGS, ROWS, MakeTask
from time_limits import START_S
from typer.testing import CliRunner

from reptrain.cli import app
from reptrain.errors import ConfigError, ReptrainError, ResumeError, RunError
from reptrain.generation import Sampling, Writer
from reptrain.hub.saved_model import open_saved_model
from reptrain.runs.events import Events
from reptrain.runs.parent import read_parent
from reptrain.tasks.finetune import Outcome, finetune, load_finetune
from reptrain.tasks.pairs import Encoder, SourceTarget, pack, widths_of
from reptrain.tasks.records import Results, StepRecord, read_results, task_metrics
from reptrain.training import checkpoints, loop
from reptrain.training.batches import Batch
from reptrain.training.regularize import Settings
from reptrain.training.step import Trainer

Trained = Callable[[str], Path]
_pad = Writer._pad
SMALL = (
    "limits.select_examples=5", "limits.target_tokens=6", "limits.input_tokens=24", "epochs=3",
    "train.batch_windows=4", "train.device=cpu", "optimizer.lr=1e-2", "evaluate.every_fraction=0.25",
)  # fmt: skip
# From the middle on each step shrinks the weights to a fifth: the model forgets, on any processor, and its
# best checkpoint is not its last.
FORGETS = ("schedule.name=constant", "optimizer.weight_decay={value: 80, before: 0, start: 50%}")


def tune(run: Path, task: Path, out: Path, *overrides: str, seeds: int = 1) -> Results:
    done: Outcome = finetune(run, load_finetune(task, [*SMALL, *overrides]), out, seeds=seeds)
    assert done.results is not None
    return done.results


def weights(folder: Path, step: int | None = None) -> dict[str, torch.Tensor]:
    return {name: p.detach() for name, p in open_saved_model(folder, step).load().named_parameters()}


def same(these: dict[str, torch.Tensor], those: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, those[name]) for name, value in these.items())


@pytest.mark.parametrize("reading", READINGS)
def test_targets_stand_where_texts_are_written(
    reading: str, trained: Trained, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the model writes greedily is, as a target, what it ranks first at each place."""
    model = open_saved_model(trained(reading))
    tokenizer = model.tokenizer()
    config = load_finetune_limits()
    encoder = Encoder.of(model, tokenizer, " so", config)
    assert model.reading == {"t5": "inputs"}.get(reading, reading)
    (pair,) = encoder.pairs(["the name of a list"], ["it"])
    assert pair.target[-1] == tokenizer.eos_id
    net = model.load()
    read: list[dict[str, Any]] = []
    net.register_forward_pre_hook(
        lambda _, given, named: read.append(named | dict(enumerate(given))), with_kwargs=True
    )
    padded: list[list[list[int]]] = []
    monkeypatch.setattr(Writer, "_pad", lambda self, rows: padded.append(rows) or _pad(self, rows))
    writer = Writer(net, encoder.special, tokenizer.vocab_size, encoder.reading)
    (written,) = writer.write([encoder.prompt(pair)], max_new_tokens=6, sampling=Sampling(), batch_rows=1)
    # The very ids, and as many of them read both ways.
    assert padded == [[pair.source]]
    if encoder.in_one_row:
        prefix_B = read[0]["prefix_B"]
        assert pair.prefix == (0 if prefix_B is None else int(prefix_B))
    pairs = [pair._replace(target=written)]
    number = np.arange(1)
    widths = widths_of(pairs, in_one_row=encoder.in_one_row)
    batch = pack(pairs, number, number, in_one_row=encoder.in_one_row, widths=widths)
    start = encoder.special.start
    assert start is not None
    example = SourceTarget(start, encoder.in_one_row).example(batch)
    with torch.no_grad():
        first_T = net(**example.inputs).argmax(-1)[example.is_scored_BT]
    assert first_T.tolist() == written


def load_finetune_limits() -> Any:
    from reptrain.config.task import TaskLimits

    return TaskLimits(input_tokens=24, target_tokens=6)


def test_long_texts_are_cut_at_their_end_and_counted(
    trained: Trained, make_task: MakeTask, tmp_path: Path
) -> None:
    for reading in ("t5", "causal", "inputs"):
        model = open_saved_model(trained(reading))
        encoder = Encoder.of(model, model.tokenizer(), " so", load_finetune_limits())
        short, long = encoder.pairs(["a", "the name " * 30], ["b", "list " * 30])
        assert len(long.source) == 24 and len(long.target) == 6
        assert long.source_is_cut and long.target_is_cut and not (short.source_is_cut or short.target_is_cut)
        assert long.source[-1] == short.source[-1]
    longest = max(len(model.tokenizer().encode([str(row["input"])])[0]) for row in ROWS)
    task = make_task()
    cut = tune(trained("t5"), task, tmp_path / "cut", f"limits.input_tokens={longest}", "epochs=1")
    left = tune(
        trained("t5"),
        task,
        tmp_path / "left",
        f"limits.input_tokens={longest}",
        "epochs=1",
        "limits.long_inputs=leave_out",
    )
    # With EOS the longest are one too long.
    assert cut.cut["inputs"] > 0 == cut.left_out and left.cut["inputs"] == 0 < left.left_out
    with pytest.raises(ConfigError, match=r"must be more than the . tokens"):
        tune(trained("causal"), task, tmp_path / "none", "limits.input_tokens=2", "task.separator=so it is")


def test_a_step_that_is_not_finite_ends_the_fine_tuning(
    trained: Trained, make_task: MakeTask, tmp_path: Path
) -> None:
    with pytest.raises(RunError, match=r"diverged at step \d+: loss and gradient must be finite.*seed 3"):
        tune(trained("causal"), make_task(), tmp_path / "out", "seed=3", "optimizer.lr=1e30")
    events = list(Events(tmp_path / "out" / "seed-3" / "events.jsonl").records())
    assert [event.event for event in events] == ["started", "failed"]


def test_each_example_is_seen_in_each_epoch(
    trained: Trained, make_task: MakeTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent, seen = trained("causal"), list[list[int]]()
    inner = loop.train_step

    def noted(trainer: Trainer, batch: Batch, settings: Settings) -> Any:
        rows = [row for part in batch.micro_batches for row in zip(part.start_B, part.length_B, strict=True)]
        seen.append([number for number, length in rows if length])
        return inner(trainer, batch, settings)

    monkeypatch.setattr(loop, "train_step", noted)
    results = tune(parent, make_task(), tmp_path / "out", "train.micro_batch_windows=3")
    flat = [int(number) for step in seen for number in step]
    train = results.examples["train"]
    assert train == 15 and len(flat) == 3 * train
    orders = [flat[first : first + train] for first in range(0, len(flat), train)]
    assert all(sorted(order) == list(range(train)) for order in orders)
    assert orders[0] != orders[1] != orders[2]
    steps = [r for r in task_metrics(tmp_path / "out" / "seed-0").records() if isinstance(r, StepRecord)]
    assert [record.examples for record in steps] == [4] * 11 + [1]
    assert steps[-1].epoch == 3 and max(Counter(flat).values()) == 3


@pytest.mark.parametrize("reading", ["t5", "inputs"])
def test_micro_batches_and_masks(reading: str, trained: Trained, make_task: MakeTask, tmp_path: Path) -> None:
    task, short = make_task(), ("epochs=1", "evaluate.batch_examples=3")
    whole = tune(trained(reading), task, tmp_path / "whole", "epochs=1")
    parts = tune(trained(reading), task, tmp_path / "parts", "train.micro_batch_windows=1", *short)
    assert parts.mean["last"]["nats_per_token"].mean == pytest.approx(
        whole.mean["last"]["nats_per_token"].mean, abs=1e-4
    )
    still = tune(trained(reading), task, tmp_path / "still", "model.dropout.residual=0", "epochs=1")
    assert still.mean["last"]["nats_per_token"].mean != whole.mean["last"]["nats_per_token"].mean


def test_interrupted_goes_on_bit_for_bit(
    trained: Trained, make_task: MakeTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, task = trained("t5"), make_task()
    unbroken = tune(run, task, tmp_path / "unbroken", seeds=2)
    inner = loop.train_step
    with monkeypatch.context() as patch:

        def crashing(trainer: Trainer, batch: Batch, settings: Settings) -> Any:
            if trainer.seed == 1 and batch.step == 7:
                raise KeyboardInterrupt
            return inner(trainer, batch, settings)

        patch.setattr(loop, "train_step", crashing)
        with pytest.raises(KeyboardInterrupt):
            tune(run, task, tmp_path / "broken", seeds=2)
    steps: list[tuple[int, int]] = []

    def noted(trainer: Trainer, batch: Batch, settings: Settings) -> Any:
        steps.append((trainer.seed, batch.step))
        return inner(trainer, batch, settings)

    monkeypatch.setattr(loop, "train_step", noted)
    resumed = tune(run, task, tmp_path / "broken", seeds=2)
    # The first seed was done; the second had a checkpoint of its best so far.
    assert steps[0][0] == 1 and 0 < steps[0][1] <= 6
    assert resumed.seeds == unbroken.seeds and resumed.mean == unbroken.mean
    for seed in (0, 1):
        folders = [tmp_path / name / f"seed-{seed}" for name in ("unbroken", "broken")]
        assert same(*map(weights, folders))
        lines = [[r.loss_nats for r in task_metrics(f).records() if r.kind == "train"] for f in folders]
        assert lines[0] == lines[1] and len(lines[0]) == 12
    assert not same(weights(folders[0]), weights(tmp_path / "unbroken" / "seed-0"))
    again = tune(run, task, tmp_path / "broken", seeds=1)
    assert again.seeds == unbroken.seeds[:1] and again.mean["best"]["f1"].low is None


def test_checkpoints_are_written_while_the_training_goes_on(
    trained: Trained,
    make_task: MakeTask,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run, task = trained("t5"), make_task()
    waits = tune(run, task, tmp_path / "waits")
    assert "in the background" not in capsys.readouterr().err
    monkeypatch.setattr(checkpoints, "_SMALL_BYTES", 0)
    found = tune(run, task, tmp_path / "background")
    assert found.seeds == waits.seeds and found.mean == waits.mean
    folders = [tmp_path / name / "seed-0" for name in ("waits", "background")]
    assert same(*map(weights, folders))
    kept = [{path.name for path in (folder / "checkpoints").iterdir()} for folder in folders]
    assert kept[0] == kept[1]
    printed = capsys.readouterr()
    assert "written in the background in" in printed.err and "background" not in printed.out


def test_folder_holds_what_was_done(trained: Trained, make_task: MakeTask, tmp_path: Path) -> None:
    run, task, out = trained("t5"), make_task(), tmp_path / "out"
    results = tune(run, task, out, *FORGETS, seeds=2)
    assert read_results(out) == results
    parent, seed = read_parent(out), out / "seed-1"
    assert parent is not None and parent.weights == open_saved_model(run).fingerprint()
    assert parent.step == open_saved_model(run).step and read_parent(seed) == parent
    looks = {r.step: r.nats_per_token for r in task_metrics(seed).records() if r.kind == "select"}
    found = results.seeds[1]
    assert found.best.step == min(looks, key=looks.__getitem__) and found.last.step == max(looks) == 12
    assert found.best.select_nats_per_token == looks[found.best.step] and found.best.step < found.last.step
    environment = json.loads((out / "environment.json").read_text())
    assert environment["kernels"] == "torch" and environment["device"] == "cpu"
    texts = [json.loads(line) for line in (seed / "texts.jsonl").read_text().splitlines()]
    assert len(texts) == found.best.report.examples == 7
    # Any command takes it as a model: scored again it does the same.
    words = [
        "score-task",
        str(seed),
        "--task",
        str(task),
        "--step",
        str(found.best.step),
        "--device",
        "cpu",
        "--json",
    ]
    for setting in ("limits.target_tokens=6", "limits.input_tokens=24"):
        words += ["--set", setting]
    told = CliRunner().invoke(app, words, catch_exceptions=False)
    (row,) = json.loads(told.output)
    assert {name: row[name] for name in found.best.report.figures} == pytest.approx(
        found.best.report.figures, rel=1e-5
    )
    per_seed = [s.best.report.nats_per_token for s in results.seeds]
    assert results.mean["best"]["nats_per_token"].mean == pytest.approx(sum(per_seed) / 2)


def test_other_settings_and_other_folders_are_refused(
    trained: Trained, make_task: MakeTask, tmp_path: Path
) -> None:
    run, task, out = trained("causal"), make_task(), tmp_path / "out"
    tune(run, task, out, "epochs=1")
    with pytest.raises(ResumeError, match=r"optimizer.lr: must be 0.01"):
        tune(run, task, out, "epochs=1", "optimizer.lr=1e-3")
    with pytest.raises(ResumeError, match="parent's weights"):
        tune(trained("prefix"), task, out, "epochs=1")
    data = json.loads((out / "data.json").read_text())
    (out / "data.json").write_text(json.dumps({"files": data["files"]}))
    with pytest.raises(ResumeError, match="but got numerics_version 1"):
        tune(run, task, out, "epochs=1")
    (out / "data.json").write_text(json.dumps(data))
    (task / "train.jsonl").write_text((task / "train.jsonl").read_text().replace("sys", "sis"))
    with pytest.raises(ResumeError, match="files"):
        tune(run, task, out, "epochs=1")
    with pytest.raises(RunError, match="must be new, empty"):
        tune(run, task, task)
    for override, words in (
        ("train.total_tokens=3epochs", "set epochs instead"),
        ("train.batch_tokens=512", "set train.batch_windows"),
        ("train.expert_parallel_size=2", "needs train.expert_parallel_size 1; 2 was given"),
        ("train.precision=bf16", "needs train.zero_stage 1, 2 or 3"),
        ("model.dropout.residul=0", r"Did you mean model\.dropout\.residual"),
    ):
        with pytest.raises(ConfigError, match=words):
            load_finetune(task, [override])
    with pytest.raises(ReptrainError, match="must be the results of a fine-tuning"):
        read_results(task)


def test_fresh_weights_are_the_seeds(trained: Trained, make_task: MakeTask, tmp_path: Path) -> None:
    task, still = make_task(), ("optimizer.lr=1e-12", "epochs=1")
    for name, more in (("fresh", ["weights=fresh"]), ("trained", [])):
        tune(trained("t5"), task, tmp_path / name, *still, *more, seeds=2)
    first, second, kept = (
        weights(tmp_path / name)["embedding.weight"]
        for name in ("fresh/seed-0", "fresh/seed-1", "trained/seed-1")
    )
    parent = weights(trained("t5"))["embedding.weight"]
    assert torch.allclose(kept, parent, atol=1e-6) and not torch.allclose(first, parent, atol=1e-3)
    assert not torch.allclose(first, second, atol=1e-3)
    words = ["finetune", trained("t5"), task, *SMALL, *still, "--seeds", 2, "--out", tmp_path / "trained"]
    words += ["--against", tmp_path / "fresh", "--json"]
    gained = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    told = json.loads(gained.output)
    means = [
        read_results(tmp_path / name).mean["best"]["nats_per_token"].mean for name in ("trained", "fresh")
    ]
    assert told["against"]["best"]["nats_per_token"]["mean"] == pytest.approx(means[0] - means[1])


@pytest.mark.parametrize("by", ["likelihood", "text"])
def test_classes_are_learned_and_told(by: str, trained: Trained, make_task: MakeTask, tmp_path: Path) -> None:
    given = {"kind": "classification", "labels": ["module", "list"], "by": by}
    task = make_task(input="{target} {target} {target}", answers=None, **given)
    sites = ("embedding", "attention", "residual", "mlp")
    still = [f"model.dropout.{site}=0" for site in sites]
    results = tune(trained("causal"), task, tmp_path / "out", "epochs=8", *still)
    last, before = (
        results.seeds[0].last.report,
        tune(trained("causal"), task, tmp_path / "before", "epochs=1", "optimizer.lr=1e-12")
        .seeds[0]
        .last.report,
    )
    assert last.metrics["accuracy"] == 100 and last.nats_per_answer < 2 < before.nats_per_answer
    # Untrained, it writes neither.
    assert before.metrics["accuracy"] == (0 if by == "text" else pytest.approx(50, abs=10))


def test_diffusion_is_refused(tiny: Any, make_task: MakeTask, tmp_path: Path) -> None:
    from reptrain.training.loop import train

    train(
        tiny("train.total_tokens=400", "evaluate.every_fraction=1", "objective.name=masked_diffusion"),
        tmp_path / "run",
    )
    with pytest.raises(ConfigError, match="must be autoregressive"):
        tune(tmp_path / "run", make_task(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_command_prints_json_and_nothing_else(trained: Trained, make_task: MakeTask, tmp_path: Path) -> None:
    words = ["finetune", str(trained("t5")), str(make_task()), "--out", str(tmp_path / "out"), "--json"]
    told = CliRunner().invoke(app, [*words, *SMALL], catch_exceptions=False)
    assert json.loads(told.stdout) == json.loads(read_results(tmp_path / "out").model_dump_json())
    assert "select" in told.stderr


@pytest.mark.slow
@pytest.mark.ranks
@pytest.mark.timeout(4 * START_S)
@pytest.mark.parametrize("stage", [0, 2])
def test_two_ranks_do_as_one(stage: int, trained: Trained, make_task: MakeTask, tmp_path: Path) -> None:
    task, run = make_task(), trained("t5")
    # Both must choose the same checkpoint: it is better than the others by far more than rounding.
    alone = tune(run, task, tmp_path / "one", *FORGETS)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    command += ["-m", "reptrain", "finetune", str(run), str(task), "--out", str(tmp_path / "two")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "DS_ACCELERATOR": "cpu"}
    ended = subprocess.run(
        [*command, *SMALL, *FORGETS, f"train.zero_stage={stage}"],
        env=environment,
        capture_output=True,
        text=True,
        timeout=3 * START_S,
    )
    assert ended.returncode == 0, ended.stderr[-3000:]
    together = read_results(tmp_path / "two")
    assert together.examples == alone.examples
    for which in ("best", "last"):
        mine, theirs = (getattr(found.seeds[0], which) for found in (alone, together))
        assert theirs.step == mine.step
        assert theirs.report.figures == pytest.approx(mine.report.figures, rel=1e-4)
