"""lm-eval on our models, offline: its scores of a small task equal ours."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from reptrain.cli import app
from reptrain.errors import ConfigError
from reptrain.evaluation.lm_eval import score_by_lm_eval
from reptrain.hub.saved_model import open_saved_model

pytestmark = pytest.mark.slow
TEXTS = ["The list is sorted in place.", "Return the name of the module", "a loop over it"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    pytest.importorskip("lm_eval")
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    (tmp_path / "tasks").mkdir()
    (tmp_path / "tasks" / "small.yaml").write_text(
        "task: small_texts\n"
        "dataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{validation: {rows}}}}}\n"
        "output_type: loglikelihood_rolling\n"
        "validation_split: validation\n"
        'doc_to_text: ""\n'
        'doc_to_target: "{{text}}"\n'
        "metric_list: [{metric: bits_per_byte}]\n"
    )
    return tmp_path / "tasks"


def test_lm_eval_bits_per_byte_equal_ours(folder: Path, trained: Callable[[str], Path]) -> None:
    run = trained("causal")
    (score,) = score_by_lm_eval(run, ["small_texts"], include=folder)
    model, tokenizer = open_saved_model(run).load(), open_saved_model(run).tokenizer()
    nats = 0.0
    for ids in tokenizer.encode(TEXTS):
        tokens = torch.from_numpy(ids.astype("int64"))
        with torch.no_grad():
            logits_TV = model(torch.cat([torch.zeros(1, dtype=torch.int64), tokens[:-1]])[None])[0]
        nats += float(torch.nn.functional.cross_entropy(logits_TV, tokens, reduction="sum"))
    assert open_saved_model(run).special_ids(tokenizer).start == 0
    size = sum(len(text.encode()) for text in TEXTS)
    assert score.metric == "bits_per_byte" and score.value == pytest.approx(
        nats / size / math.log(2), rel=1e-4
    )


def test_command_and_unknown_tasks(folder: Path, trained: Callable[[str], Path]) -> None:
    words = ["lm-eval", str(trained("causal")), "--tasks", "small_texts", "--include", str(folder)]
    told = CliRunner().invoke(app, [*words, "--max-examples", "2", "--device", "cpu"], catch_exceptions=False)
    assert "bits_per_byte" in told.output
    with pytest.raises(ConfigError, match="must be names of lm-eval's tasks, but got no_such_task"):
        score_by_lm_eval(trained("causal"), ["small_texts", "no_such_task"], include=folder)


def test_task_without_available_data_is_refused(folder: Path, trained: Callable[[str], Path]) -> None:
    task = (
        (folder / "small.yaml").read_text().replace("small_texts", "gone").replace("rows.jsonl", "gone.jsonl")
    )
    (folder / "gone.yaml").write_text(task)
    for name in ("gone", "lambada_openai"):
        with pytest.raises(ConfigError, match=f"--tasks {name}: must be tasks whose data can be loaded"):
            score_by_lm_eval(trained("causal"), [name], include=folder)
