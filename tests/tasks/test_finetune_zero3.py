"""Fine-tuning on two ranks of which neither holds the whole model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rank_starts import LIMIT_S, start_ranks
from small_tasks import READINGS, MakeConfig, write_rows
from time_limits import takes_up_to

from reptrain.config.load import dump_yaml
from reptrain.tasks.finetune import finetune, load_finetune
from reptrain.tasks.records import Results, StepRecord, read_results, task_metrics
from reptrain.training.loop import train

pytestmark = pytest.mark.ranks

# One rank has a batch of the report split more than the other, and answers of other lengths.
SMALL = [
    "limits.select_examples=5", "limits.target_tokens=6", "limits.input_tokens=24", "epochs=1",
    "train.batch_windows=4", "train.device=cpu", "optimizer.lr=1e-2", "evaluate.every_fraction=0.5",
    "evaluate.batch_examples=2",
]  # fmt: skip
STAGE_3 = ["train.zero_stage=3"]
SPARSE = ["model.moe={num_experts: 4, every: 1, capacity_factor: 0.75}"]
RUNS = {"t5": READINGS["t5"], "sparse": SPARSE}
# The parent, and the task: answers that are generated, or the likeliest label.
CASES = {"t5": ("t5", "qa"), "sparse": ("sparse", "labels")}


def _write_task(folder: Path, **settings: Any) -> Path:
    folder.mkdir()
    answers = {"list": "it is a list of them", "module": "os"}
    rows = [
        {"input": f"what is {name}?", "target": kind, "answers": [answers[kind]]}
        for kind, names in (("list", "abcdefgh"), ("module", "ijklmnop"))
        for name in names
    ]
    write_rows(folder / "train.jsonl", rows)
    write_rows(folder / "validation.jsonl", rows[::3][:5])
    (folder / "task.yaml").write_text(dump_yaml({"name": "small"} | settings))
    return folder


@pytest.fixture(scope="module")
@takes_up_to(LIMIT_S)
def tuned(tiny: MakeConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Each case on two ranks at ZeRO 3, and on one rank that holds the model."""
    out = tmp_path_factory.mktemp("tuned")
    for name, settings in RUNS.items():
        train(tiny("train.total_tokens=300", "evaluate.every_fraction=1", *settings), out / f"run-{name}")
    tasks = {
        "qa": _write_task(out / "qa", kind="qa"),
        "labels": _write_task(out / "labels", kind="classification", labels=["module", "list"], answers=None),
    }
    cases: dict[str, dict[str, Any]] = {}
    for name, (run, task) in CASES.items():
        case = {"run": str(out / f"run-{run}"), "task": str(tasks[task]), "overrides": [*SMALL, *STAGE_3]}
        cases[name] = case
        alone = finetune(Path(case["run"]), load_finetune(tasks[task], SMALL), out / f"{name}-alone")
        assert alone.results is not None
    cases["stopped"] = cases["t5"] | {"stop_after": 1}
    # Two cases in one folder.
    cases["resumed"] = cases["t5"]
    (out / "resumed").symlink_to(out / "stopped")
    start_ranks(2, out, cases, script="finetune_ranks.py")
    return out


def _losses(folder: Path) -> list[float]:
    records = task_metrics(folder / "seed-0").records()
    return [record.loss_nats for record in records if isinstance(record, StepRecord)]


def _agree(found: Results, expected: Results) -> None:
    for which in ("best", "last"):
        mine, theirs = (getattr(results.seeds[0], which) for results in (found, expected))
        assert mine.step == theirs.step
        assert mine.report.figures == pytest.approx(theirs.report.figures, rel=1e-4)
    assert found.examples == expected.examples


@pytest.mark.parametrize("name", CASES)
def test_partitioned_fine_tuning_gives_the_results_of_one_rank(tuned: Path, name: str) -> None:
    _agree(read_results(tuned / name), read_results(tuned / f"{name}-alone"))
    assert _losses(tuned / name) == pytest.approx(_losses(tuned / f"{name}-alone"), abs=1e-4)


@pytest.mark.parametrize("name", CASES)
def test_no_rank_holds_the_model_that_it_scores(tuned: Path, name: str) -> None:
    scored = 0
    for rank in (0, 1):
        for held, whole in json.loads((tuned / f"{name}-rank{rank}.json").read_text()):
            assert held <= 0.51 * whole
            scored += 1
    assert scored in (2, 4)


def test_stopped_partitioned_fine_tuning_resumes_with_the_same_steps(tuned: Path) -> None:
    assert _losses(tuned / "resumed") == _losses(tuned / "t5")
    assert read_results(tuned / "resumed").seeds == read_results(tuned / "t5").seeds
