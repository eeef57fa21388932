"""What pre-training is worth downstream: the session of docs/guides/tasks.md, from articles to intervals."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from reptrain.cli import app

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("REPTRAIN_DATA") or ROOT.parent / "shared" / "data")
SQUAD = DATA / "tasks" / "squad"
SLICE = [
    f"task.data={SQUAD}",
    *("limits.input_tokens=128", "limits.long_inputs=leave_out", "limits.target_tokens=16"),
    *("limits.train_examples=2000", "epochs=2", "optimizer.lr=1e-3", "evaluate.every_fraction=0.5"),
]


def run(*words: object) -> str:
    result = CliRunner().invoke(app, [str(word) for word in words], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.mark.slow
@pytest.mark.timeout(10_800)
@pytest.mark.skipif(not SQUAD.is_dir(), reason=f"no folder {SQUAD}; REPTRAIN_DATA names another")
def test_pretrained_t5_answers_better_than_its_fresh_twin(tmp_path: Path) -> None:
    store, parent, task = tmp_path / "store", tmp_path / "copy", ROOT / "configs" / "tasks" / "squad.yaml"
    articles = [DATA / "corpus" / "wiki" / f"wiki-{shard:03}.jsonl.gz" for shard in range(8)]
    run("tokenize", *articles, "--out", store, "--passages", 512, "--vocab-size", 4096)
    config = ROOT / "configs" / "tiny" / "t5-denoising.yaml"
    settings = [f"data.store={store}", "data.unique_tokens=2**22", "train.total_tokens=1.1epochs"]
    run("train", config, *settings, "--out", parent)
    assert run("audit", parent).splitlines()[0] == "exact"

    def tuned(out: str, *words: object) -> dict[str, Any]:
        told = run("finetune", parent, task, *SLICE, "--seeds", 5, "--out", tmp_path / out, "--json", *words)
        return json.loads(told)

    tuned("fresh", "weights=fresh")
    gained = tuned("trained", "--against", tmp_path / "fresh")["against"]["best"]
    assert gained["nats_per_answer"]["high"] < 0
    assert gained["f1"]["low"] > 0
