"""The Python API in a Jupyter notebook: worker processes, training, a study and a report."""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

import pytest

from reptrain.text import stdlib_documents

CELLS = (
    """
from pathlib import Path
import reptrain
reptrain.tokenize([Path("corpus.jsonl")], Path("store"), processes=2, vocab_size=400)
assert reptrain.verify(Path("store")).ok
""",
    """
config = reptrain.load_run_config(Path("run.json"))
result = reptrain.train(config, Path("run"))
assert result.state == "done" and reptrain.audit(result.run).exact is True
assert len(reptrain.generate(result.run, ["The list"], max_new_tokens=2)) == 1
""",
    """
study = reptrain.load_study(Path("study.json"))
print([outcome.state for outcome in reptrain.run_study(study, Path("study")).outcomes])
reptrain.build_report(study, Path("study"))
""",
)


@pytest.mark.slow
def test_the_api_works_in_a_notebook(tmp_path: Path) -> None:
    reason = "needs nbclient and ipykernel: pip install nbclient ipykernel"
    client, notebooks = (pytest.importorskip(name, reason=reason) for name in ("nbclient", "nbformat"))
    pytest.importorskip("ipykernel", reason=reason)
    run = {
        "data": {"store": str(tmp_path / "store"), "unique_tokens": 2048, "window_tokens": 64},
        "model": {"d_model": 32, "num_layers": 1, "num_heads": 2, "d_ff": 64},
        "train": {"total_tokens": "2epochs", "batch_windows": 8, "device": "cpu"},
        "evaluate": {"max_windows": 2},
    }
    study = {"base": run, "axes": {"data.unique_tokens": [1024]}, "seeds": [0]}
    (tmp_path / "run.json").write_text(json.dumps(run))
    (tmp_path / "study.json").write_text(json.dumps(study))
    rows = [json.dumps({"text": document.text}) for document in islice(stdlib_documents(), 150)]
    (tmp_path / "corpus.jsonl").write_text("\n".join(rows) + "\n")
    cells = [notebooks.v4.new_code_cell(cell) for cell in CELLS]
    notebook = notebooks.v4.new_notebook(cells=cells)
    resources = {"metadata": {"path": str(tmp_path)}}
    client.NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources).execute()
    assert "['done']" in json.dumps(notebook.cells[-1].outputs)
    assert (tmp_path / "study" / "report.html").exists()
